"""Bring a picture to a size that a network takes, and take it back.

The plan (`Framing`) is plain numbers and is made without touching a pixel. `frame_rows` carries it
out one band of rows after another, so that memory grows with a band and never with the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MULTIPLES = (1, 8, 16, 32)
LANCZOS_LOBES = 3
MAX_BAND_ROWS = 128
BAND_BYTES = 64 << 20
SPAN_OUTPUTS = 64

ReadRows = Callable[[int, int], Tensor]
"""read(first, end) -> (C, end - first, W) float32: the rows of one picture, clean, in [0,1]."""


@dataclass(frozen=True)
class Framing:
    """How a picture was scaled and padded; all sizes are (height, width) in pixels.

    source_hw: the picture that came in.
    scaled_hw: after scaling, before padding.
    padded_hw: what went out.
    offset_yx: where the scaled picture's top left pixel lies in what went out.
    """

    source_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    offset_yx: tuple[int, int]

    @property
    def is_scaled(self) -> bool:
        """True if the picture lost pixels."""
        return self.scaled_hw != self.source_hw

    @property
    def is_padded(self) -> bool:
        """True if the picture gained a border."""
        return self.padded_hw != self.scaled_hw


class FramingError(ValueError):
    """A picture does not have the size that a framing speaks of."""


def plan_framing(source_hw: tuple[int, int], max_side_px: int, multiple_of_px: int) -> Framing:
    """Work out the sizes: scaled down to max_side_px, then padded to a multiple, picture centred.

    max_side_px: longest side after scaling; 0 keeps the size. Never scales up.
    multiple_of_px: both sides of the result are multiples of it; the border that this takes may
        go beyond max_side_px by up to multiple_of_px - 1.
    Raises: ValueError for an empty picture, a negative side or a multiple below 1.
    """
    height, width = source_hw
    if height < 1 or width < 1:
        raise ValueError(f"the picture is {width}×{height}: expected at least 1×1")
    if max_side_px < 0:
        raise ValueError(f"max_side is {max_side_px}: expected 0 (keep the size) or more")
    if multiple_of_px < 1:
        raise ValueError(f"multiple_of is {multiple_of_px}: expected 1 or more")
    scaled = _shrunk(height, width, max_side_px)
    padded = (_round_up(scaled[0], multiple_of_px), _round_up(scaled[1], multiple_of_px))
    offset = ((padded[0] - scaled[0]) // 2, (padded[1] - scaled[1]) // 2)
    return Framing((height, width), scaled, padded, offset)


def describe_framing(framing: Framing) -> str:
    """Say what a framing does, sizes as width×height.

    For example "scaled to 1024×683, 66.7 %; padded to 1024×688", or "kept at 640×480".
    """
    if framing.is_scaled:
        percent = 100 * max(framing.scaled_hw) / max(framing.source_hw)
        text = f"scaled to {_size(framing.scaled_hw)}, {percent:.1f} %"
    else:
        text = f"kept at {_size(framing.scaled_hw)}"
    if framing.is_padded:
        text += f"; padded to {_size(framing.padded_hw)}"
    return text


def restore_framing(image_bchw: Tensor, framing: Framing) -> Tensor:
    """Cut the padding off again, exactly: every pixel that comes back is one that was put in.

    image_bchw: (B,C,*padded_hw), any dtype.
    Returns: (B,C,*scaled_hw), same dtype and device, a view of image_bchw.
    Raises: FramingError if the picture does not have the framing's padded size.
    """
    got = (image_bchw.shape[-2], image_bchw.shape[-1])
    if got != framing.padded_hw:
        raise FramingError(
            f"the picture is {_size(got)}: expected {_size(framing.padded_hw)}, the size that was"
            " handed out with this framing. Next step: join the framing to a picture whose size"
            " was not changed in between"
        )
    (top, left), (height, width) = framing.offset_yx, framing.scaled_hw
    return image_bchw[..., top : top + height, left : left + width]


def frame_rows(
    read_rows: ReadRows,
    framing: Framing,
    out_chw: Tensor,
    check: Callable[[], None] | None = None,
) -> None:
    """Scale and pad one picture into out_chw, a band of rows at a time.

    read_rows: hands out rows of the picture (framing.source_hw); every row is asked for once, from
        top to bottom.
    out_chw: (C,*framing.padded_hw) float of any layout; written in full, in [0,1].
    check: called before each band; what it raises goes through.
    The border repeats the picture's edge: a flat colour would be one more edge for a network to
    draw. The result depends on this picture alone, so it is the same in any batch.
    """
    (top, left), (height, width) = framing.offset_yx, framing.scaled_hw
    inner = out_chw[:, top : top + height, left : left + width]
    for first, end, band in _bands(read_rows, framing):
        if check is not None:
            check()
        inner[:, first:end] = band
    _repeat_edges(out_chw, framing)


def count_bands(framing: Framing) -> int:
    """How often frame_rows calls its check for one picture: the length of a progress bar."""
    return -(-framing.scaled_hw[0] // _rows_a_band(framing))


def resize(image_bchw: Tensor, out_hw: tuple[int, int]) -> Tensor:
    """Resize with an antialiased Lanczos filter of three lobes, up or down.

    image_bchw: (B,C,H,W) float, [0,1].
    out_hw: (height, width), each at least 1.
    Returns: (B,C,*out_hw), same dtype and device, in [0,1]; computed in float32.
    Same filter, window, order of passes and clamping as Pillow's LANCZOS: equal to 1e-5 on its
    float pictures, to one step of 255 on its 8-bit ones.
    """
    in_hw = (image_bchw.shape[-2], image_bchw.shape[-1])
    framing = Framing(in_hw, (out_hw[0], out_hw[1]), (out_hw[0], out_hw[1]), (0, 0))
    out = image_bchw.new_empty((*image_bchw.shape[:2], *out_hw))
    for picture, target in zip(image_bchw, out, strict=True):
        frame_rows(lambda a, b, rows=picture: rows[:, a:b].float(), framing, target)
    return out


def _size(hw: tuple[int, int]) -> str:
    return f"{hw[1]}×{hw[0]}"


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _shrunk(height: int, width: int, max_side: int) -> tuple[int, int]:
    longest = max(height, width)
    if max_side == 0 or longest <= max_side:
        return height, width
    return _rounded(height, max_side, longest), _rounded(width, max_side, longest)


def _rounded(side: int, max_side: int, longest: int) -> int:
    """side * max_side / longest in whole numbers: a float product is off by one at some sizes."""
    return max(1, (2 * side * max_side + longest) // (2 * longest))


def _rows_a_band(framing: Framing) -> int:
    """How many rows of the scaled picture are made at once, from the memory that they read."""
    (in_h, in_w), out_h = framing.source_hw, framing.scaled_hw[0]
    rows_to_fit = max(1, BAND_BYTES // (in_w * 3 * 4))
    if not framing.is_scaled:
        return min(rows_to_fit, out_h)
    return min(max(1, int(rows_to_fit * out_h / in_h)), MAX_BAND_ROWS, out_h)


def _bands(read_rows: ReadRows, framing: Framing) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (first row, end row, (C,rows,W) float32) of the scaled picture, top to bottom."""
    (in_h, in_w), (out_h, out_w) = framing.source_hw, framing.scaled_hw
    band_rows = _rows_a_band(framing)
    if not framing.is_scaled:
        for first in range(0, out_h, band_rows):
            end = min(first + band_rows, out_h)
            yield first, end, read_rows(first, end)
        return
    across = _filter_spans(in_w, out_w, SPAN_OUTPUTS)
    lines, lines_to = torch.empty(0), 0
    for span in _filter_spans(in_h, out_h, band_rows):
        if span.read_to > lines_to:
            fresh = _filter_lines(read_rows(lines_to, span.read_to), across, out_w)
            lines = torch.cat([lines, fresh], dim=1) if lines_to else fresh
            lines_to = span.read_to
        # Neighbouring bands share the rows that the filter reaches: those stay, the rest goes.
        lines = lines[:, lines.shape[1] - (span.read_to - span.read_from) :]
        yield span.first, span.end, (span.matrix.to(lines.device) @ lines).clamp_(0, 1)


@dataclass(frozen=True)
class _Span:
    """Outputs first..end, and the matrix that makes them of inputs read_from..read_to."""

    first: int
    end: int
    read_from: int
    read_to: int
    matrix: Tensor


def _filter_spans(in_size: int, out_size: int, span_outputs: int) -> list[_Span]:
    """The Lanczos filter as a band matrix, cut into dense blocks that a matrix product likes."""
    scale = in_size / out_size
    width = max(1.0, scale)
    support = LANCZOS_LOBES * width
    centre = (torch.arange(out_size, dtype=torch.float64) + 0.5) * scale
    low = (centre - support + 0.5).long().clamp(min=0)
    high = (centre + support + 0.5).long().clamp(max=in_size)
    spans = []
    for first in range(0, out_size, span_outputs):
        end = min(first + span_outputs, out_size)
        read_from, read_to = int(low[first]), int(high[end - 1])
        position = torch.arange(read_from, read_to)
        distance = (position[None] + 0.5 - centre[first:end, None]) / width
        weights = torch.sinc(distance) * torch.sinc(distance / LANCZOS_LOBES)
        inside = (position >= low[first:end, None]) & (position < high[first:end, None])
        weights = weights * (inside & (distance.abs() < LANCZOS_LOBES))
        weights = weights / weights.sum(dim=1, keepdim=True)
        spans.append(_Span(first, end, read_from, read_to, weights.float()))
    return spans


def _filter_lines(rows_chw: Tensor, spans: list[_Span], out_w: int) -> Tensor:
    """(C,rows,W) -> (C,rows,out_w), clamped to [0,1] between the passes as Pillow does."""
    channels, rows, width = rows_chw.shape
    lines = rows_chw.reshape(channels * rows, width).contiguous()
    out = lines.new_empty((channels * rows, out_w))
    for span in spans:
        read = lines[:, span.read_from : span.read_to]
        torch.mm(read, span.matrix.to(read.device).T, out=out[:, span.first : span.end])
    return out.clamp_(0, 1).reshape(channels, rows, out_w)


def _repeat_edges(out_chw: Tensor, framing: Framing) -> None:
    (top, left), (height, width) = framing.offset_yx, framing.scaled_hw
    bottom, right = top + height, left + width
    middle = out_chw[:, top:bottom]
    middle[..., :left] = middle[..., left : left + 1]
    middle[..., right:] = middle[..., right - 1 : right]
    out_chw[:, :top] = out_chw[:, top : top + 1]
    out_chw[:, bottom:] = out_chw[:, bottom - 1 : bottom]
