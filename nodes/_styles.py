"""What DCTNetCartoon asks for between the wires and the engine: styles, a run within memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..engine import cartoon
from ..engine.dctnet import BYTES_PER_PX, DCTNet
from ..engine.faces import Face
from ..weights_loader import dctnet as style_reader
from ..weights_loader.errors import WeightsError
from ..weights_loader.style_files import StyleFiles, list_styles
from . import _faces, _host

BUILT_IN = "cel (built-in)"

_BUILT_IN_FILES = StyleFiles(BUILT_IN, _host.PACK / "assets" / "styles" / "cel.safetensors", None)
_LEAST_AREA_PX = 250_000
_CHUNK_ELSEWHERE = 16
_HALVINGS = 3


@dataclass(frozen=True, eq=False)
class Networks:
    """A style under the host's memory management."""

    whole: ModelPatcher
    head: ModelPatcher

    @property
    def style(self) -> cartoon.Style:
        """The networks themselves."""
        return cartoon.Style(self.whole.model, self.head.model)


def _styles() -> dict[str, StyleFiles]:
    return {BUILT_IN: _BUILT_IN_FILES, **list_styles(_host.model_folders(_host.STYLES_FOLDER))}


def names() -> list[str]:
    """The styles to choose from, the built-in one first."""
    return list(_styles())


def fingerprint(style: str) -> str:
    """Changes when a file of the style, or the face detector, does."""
    files = _styles().get(style)
    paths = [] if files is None else [path for path in (files.whole, files.head) if path]
    states = [_host.file_state(path) for path in paths if path.exists()]
    return f"{states}|{_faces.fingerprint()}"


def open_style(name: str) -> Networks:
    """The networks of a style. Raises: WeightsError for a name or a file that is none."""
    styles = _styles()
    if name not in styles:
        raise WeightsError(
            _host.first_model_folder(_host.STYLES_FOLDER),
            f"one of the styles {', '.join(styles)}",
            repr(name),
            "choose one of them, or put the style's files there and refresh",
        )
    files = styles[name]
    whole = _host.kept_model(files.whole, "dctnet", lambda: _build_style(files.whole))
    head = files.head
    if head is None:
        return Networks(whole, whole)
    return Networks(whole, _host.kept_model(head, "dctnet", lambda: _build_style(head)))


def _build_style(path: Path) -> DCTNet:
    config, tensors = style_reader.read(path)
    return DCTNet.with_weights(config, tensors)


def draw(
    networks: Networks,
    image_bchw: Tensor,
    faces: Sequence[Sequence[Face]],
    look: cartoon.Look,
    mask: Tensor | None,
    chunk: int,
) -> tuple[Tensor, int]:
    """Draw a batch. Returns: (B,3,H,W) laid out so that BHWC is a view, and windows a picture."""
    if look.strength == 0.0:
        return image_bchw, 0
    batch, _, height, width = image_bchw.shape
    room = torch.empty(batch, height, width, 3, device=image_bchw.device)
    drawn = room.permute(0, 3, 1, 2)
    for halvings in range(_HALVINGS + 1):
        area = _area(height, width) >> halvings
        windows = cartoon.plan_windows(height, width, look, area)
        at_once = 1 if halvings else _at_once(chunk, batch, height, width, area)
        working = BYTES_PER_PX * at_once * min(area, height * width)
        _host.load({networks.whole, networks.head}, working)
        try:
            _draw_all(networks.style, image_bchw, faces, look, mask, windows, at_once, drawn)
        except Exception as error:
            if halvings == _HALVINGS or not _host.is_out_of_memory(error):
                raise
        else:
            return drawn, len(windows)
        # Here, not in the handler: there the failed run's tensors are still alive.
        _host.give_memory_back()
    raise AssertionError("the last round returns or raises")


def _draw_all(
    style: cartoon.Style,
    image_bchw: Tensor,
    faces: Sequence[Sequence[Face]],
    look: cartoon.Look,
    mask: Tensor | None,
    windows: list[cartoon.Window],
    at_once: int,
    out_bchw: Tensor,
) -> None:
    batch, _, height, width = image_bchw.shape
    rounds = -(-batch // at_once)
    size = (height, width)
    heads = cartoon.count_steps(style, [], size, sum(map(len, faces)))
    progress = _host.Progress(rounds * cartoon.count_steps(style, windows, size, 0) + heads)
    for start in range(0, batch, at_once):
        part = slice(start, min(batch, start + at_once))
        cartoon.draw(
            style.whole,
            image_bchw[part],
            [
                cartoon.draw_heads(style.head, image_bchw[i : i + 1], faces[i], progress.step)
                for i in range(part.start, part.stop)
            ],
            look,
            mask if mask is None or len(mask) == 1 else mask[part],
            windows,
            out_bchw[part],
            progress.step,
        )


def _area(height: int, width: int) -> int:
    """Pixels of a window. Only ever halved: the same picture is cut alike on most days."""
    area = cartoon.max_area(height, width, _host.device().type)
    while area * BYTES_PER_PX > _host.free_bytes() and area > 2 * _LEAST_AREA_PX:
        area //= 2
    return area


def _at_once(chunk: int, batch: int, height: int, width: int, area: int) -> int:
    if chunk:
        return min(chunk, batch)
    if _host.device().type == "cpu":
        return 1
    picture = BYTES_PER_PX * min(area, height * width)
    return max(1, min(batch, _CHUNK_ELSEWHERE, int(_host.free_bytes() * 0.7) // picture))
