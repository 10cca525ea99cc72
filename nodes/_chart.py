"""A run's memory as a picture: a bar for each phase, against the card and what was measured."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..engine.vram_plan import GB, Plan
from ..engine.vram_words import NAMES, parts

WIDTH, HEIGHT = 960, 540
_LEFT, _TOP, _RIGHT, _BOTTOM = 90, 70, 700, 460
_PAPER, _INK, _GRID, _CARD, _SEEN = "#ffffff", "#303030", "#dddddd", "#cc2222", "#111111"
_COLOURS = {
    "dit": "#2f7d4f",
    "text_encoder": "#3f6fb5",
    "vae": "#8a5fb0",
    "lora": "#c2789a",
    "table": "#77b28c",
    "activations": "#e8a33d",
    "moving": "#d9d05a",
    "margins": "#c8c8c8",
}


def draw(made: Plan, card: int, measured: Mapping[str, int], budgets: Mapping[str, int]) -> Tensor:
    """A plan, drawn.

    card: bytes of it. measured: phase -> bytes that the run before took; a mark on its bar.
    budgets: component -> bytes, those that are held.
    Returns: (1,540,960,3) in [0,1], float32.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    pen = ImageDraw.Draw(picture)
    phases = [phase for phase in made.prediction.phases if phase.activations]
    top = 1.1 * max([card, *(phase.bytes for phase in phases), *measured.values()])
    _axis(pen, top)
    pitch = (_RIGHT - _LEFT) / max(1, len(phases))
    for place, phase in enumerate(phases):
        left = _LEFT + pitch * place + pitch / 5
        right, low = left + 0.6 * pitch, 0
        for name, count in parts(phase).items():
            box = (left, _y(low + count, top), right, _y(low, top))
            pen.rectangle(box, fill=_COLOURS[name])
            low += count
        _text(pen, (left + right) / 2, _y(low, top) + 12, f"{low / GB:.1f}", 14)
        _text(pen, (left + right) / 2, _BOTTOM + 16, phase.name, 14)
        if phase.name in measured:
            y = _y(measured[phase.name], top)
            pen.line((left - 12, y, right + 12, y), fill=_SEEN, width=4)
    for count, told, aside in ((card, "card", -7), (made.available, "less reserve", 9)):
        y = _y(count, top)
        pen.line((_LEFT, y, _RIGHT, y), fill=_CARD, width=3 if told == "card" else 1)
        _text(pen, _RIGHT + 6, y + aside, f"{told} {count / GB:.1f}", 14, "lm")
    _legend(pen, made, measured, budgets)
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.reshape(1, HEIGHT, WIDTH, 3).float() / 255


def _axis(pen: ImageDraw.ImageDraw, top: float) -> None:
    step = next(n for n in (0.01, 0.1, 1, 2, 5, 10, 20, 50, 100, 500, 1e9) if top / GB / n <= 8)
    for number in range(int(top / GB / step) + 1):
        y = _y(number * step * GB, top)
        pen.line((_LEFT, y, _RIGHT, y), fill=_GRID)
        _text(pen, _LEFT - 8, y, f"{number * step:g}", 14, "rm")
    _text(pen, _LEFT - 8, _TOP - 22, "GB", 14, "rm")


def _legend(
    pen: ImageDraw.ImageDraw, made: Plan, measured: Mapping[str, int], budgets: Mapping[str, int]
) -> None:
    job = made.job
    verdict = "fits" if made.fits else f"{made.short / GB:.1f} GB short"
    _text(pen, _LEFT, 24, f"{job.width} x {job.height}: {verdict}", 22, "lm")
    used = {name for phase in made.prediction.phases for name in parts(phase)}
    y = 150
    for name, colour in _COLOURS.items():
        if name not in used:
            continue
        pen.rectangle((_RIGHT + 16, y - 7, _RIGHT + 30, y + 7), fill=colour)
        budget = f" (budget {budgets[name] / GB:.1f})" if name in budgets else ""
        _text(pen, _RIGHT + 38, y, NAMES[name] + budget, 14, "lm")
        y += 24
    if measured:
        pen.line((_RIGHT + 12, y, _RIGHT + 34, y), fill=_SEEN, width=4)
        _text(pen, _RIGHT + 38, y, "measured, last run", 14, "lm")
    _text(pen, _LEFT, HEIGHT - 28, "Bars: predicted, with margins.", 14, "lm")


def _y(count: float, top: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * count / top


def _text(
    pen: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, anchor: str = "mm"
) -> None:
    pen.text((x, y), text, fill=_INK, font=ImageFont.load_default(size), anchor=anchor)
