"""The line that says how a picture was made, and the same broken into lines of a given width."""

from __future__ import annotations

from collections.abc import Callable

SEPARATOR = " | "


def caption(
    hw: tuple[int, int],
    cfg: float = 0.0,
    steps: int = 0,
    weight: str = "",
    sampler: str = "",
    note: str = "",
) -> str:
    """Such as "Resolution: 1024×683 | CFG: 4.0 | Steps: 40 | Weight: real.safetensors".

    hw: height and width in pixels. What is 0 or blank is left out. Line ends become spaces.
    """
    number = f"{round(cfg, 2):.2f}"
    parts = {
        "Resolution": f"{hw[1]}×{hw[0]}",
        "CFG": (number[:-1] if number.endswith("0") else number) if cfg else "",
        "Steps": str(steps) if steps else "",
        "Weight": _one_line(weight),
        "Sampler": _one_line(sampler),
    }
    named = [f"{name}: {value}" for name, value in parts.items() if value]
    return SEPARATOR.join([*named, *filter(None, [_one_line(note)])])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def wrap(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """A caption in lines no wider than ``width``, in the unit of ``measure``.

    Breaks between its parts where it can, else between words, else within a word. A line has one
    letter at least, even where that is too wide.
    """
    lines: list[str] = []
    for part in text.split(SEPARATOR):
        longer = SEPARATOR.join([*lines[-1:], part])
        if lines and measure(longer) <= width:
            lines[-1] = longer
        else:
            lines += _broken(part, width, measure)
    return lines


def _broken(part: str, width: float, measure: Callable[[str], float]) -> list[str]:
    lines: list[str] = []
    for word in part.split():
        longer = " ".join([*lines[-1:], word])
        if lines and measure(longer) <= width:
            lines[-1] = longer
            continue
        while measure(word) > width and len(word) > 1:
            fits = next((n for n in range(len(word) - 1, 1, -1) if measure(word[:n]) <= width), 1)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines
