"""Bring a picture to a size that a network takes, and take it back.

The plan (`Framing`) is plain numbers and is made without touching a pixel. `frame_rows` carries it
out one band of rows after another, so that memory grows with a band and never with the picture.
Filters from row_filters.py may stand before and after the scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .row_filters import Band, BandReader, RowFilter, filter_bands, read_bands

MULTIPLES = (1, 8, 16, 32)
FITS = ("pad", "crop")
LANCZOS_LOBES = 3
MAX_BAND_ROWS = 128
BAND_BYTES = 64 << 20
SPAN_OUTPUTS = 64

ReadRows = Callable[[int, int], Tensor]
"""read(first, end) -> (C, end - first, W) float32: the rows of one picture, clean, in [0,1]."""


@dataclass(frozen=True)
class Framing:
    """How a picture was scaled and padded or cut; all sizes are (height, width) in pixels.

    source_hw: the picture that came in.
    scaled_hw: after scaling, before padding.
    padded_hw: what went out; smaller than scaled_hw where the picture was cut.
    offset_yx: where the scaled picture's top left pixel lies in what went out; below 0 where the
        picture was cut.
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
        return self.shown_hw != self.padded_hw

    @property
    def is_cut(self) -> bool:
        """True if the picture lost a border."""
        return self.shown_hw != self.scaled_hw

    @property
    def shown_hw(self) -> tuple[int, int]:
        """Size of the part of the scaled picture that went out."""
        (height, width), (out_h, out_w) = self.scaled_hw, self.padded_hw
        return min(height, out_h), min(width, out_w)

    @property
    def shown_yx(self) -> tuple[int, int]:
        """Where that part begins in the scaled picture."""
        return max(0, -self.offset_yx[0]), max(0, -self.offset_yx[1])

    @property
    def placed_yx(self) -> tuple[int, int]:
        """Where that part begins in what went out."""
        return max(0, self.offset_yx[0]), max(0, self.offset_yx[1])

    @property
    def original_hw(self) -> tuple[int, int]:
        """Size of that part in the picture that came in, to the nearest pixel."""
        sides = zip(self.shown_hw, self.source_hw, self.scaled_hw, strict=True)
        height, width = (max(1, (2 * a * b + c) // (2 * c)) for a, b, c in sides)
        return height, width


@dataclass(frozen=True)
class Filters:
    """What is done to the pixels besides scaling: before it and after it, in this order."""

    before: tuple[RowFilter, ...] = ()
    after: tuple[RowFilter, ...] = ()

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


class FramingError(ValueError):
    """A picture does not have the size that a framing speaks of."""


def plan_framing(
    source_hw: tuple[int, int], max_side_px: int, multiple_of_px: int, fit: str = "pad"
) -> Framing:
    """Work out the sizes: scaled down to max_side_px, then fitted to a multiple, picture centred.

    max_side_px: longest side after scaling; 0 keeps the size. Never scales up.
    multiple_of_px: both sides of the result are multiples of it.
    fit: "pad" adds a border, which may go beyond max_side_px by up to multiple_of_px - 1; "crop"
        cuts as much off either end, and pads only a side that is shorter than one multiple.
    Raises: ValueError for an empty picture, a negative side, a multiple below 1, an unknown fit.
    """
    height, width = source_hw
    if height < 1 or width < 1:
        raise ValueError(f"the picture is {width}×{height}: expected at least 1×1")
    if max_side_px < 0:
        raise ValueError(f"max_side is {max_side_px}: expected 0 (keep the size) or more")
    if multiple_of_px < 1:
        raise ValueError(f"multiple_of is {multiple_of_px}: expected 1 or more")
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}: expected one of {', '.join(FITS)}")
    scaled = _shrunk(height, width, max_side_px)
    out_h, out_w = (_fitted(side, multiple_of_px, fit) for side in scaled)
    offset = (_half(out_h - scaled[0]), _half(out_w - scaled[1]))
    return Framing((height, width), scaled, (out_h, out_w), offset)


def describe_framing(framing: Framing) -> str:
    """Say what a framing does, sizes as width×height.

    For example "scaled to 1024×683, 66.7 %; padded to 1024×688", or "kept at 640×480".
    """
    if framing.is_scaled:
        percent = 100 * max(framing.scaled_hw) / max(framing.source_hw)
        text = f"scaled to {_size(framing.scaled_hw)}, {percent:.1f} %"
    else:
        text = f"kept at {_size(framing.scaled_hw)}"
    if framing.is_cut:
        text += f"; cut to {_size(framing.shown_hw)}"
    if framing.is_padded:
        text += f"; padded to {_size(framing.padded_hw)}"
    return text


def restore_framing(image_bchw: Tensor, framing: Framing) -> Tensor:
    """Cut the padding off again.

    image_bchw: (B,C,*padded_hw), any dtype; or that scaled by any factor, the same for both sides.
    Returns: (B,C,*shown_hw), same dtype and device, a view of image_bchw: exactly the pixels that
        were put in. Of a scaled picture the part in proportion, to the nearest pixel.
    Raises: FramingError if the picture does not have the shape of the framing's padded size.
    """
    got = (image_bchw.shape[-2], image_bchw.shape[-1])
    if not _is_scaled(got, framing.padded_hw):
        raise FramingError(
            f"the picture is {_size(got)}: expected {_size(framing.padded_hw)}, the size that was"
            " handed out with this framing, or that scaled with its proportions. Next step: join"
            " the framing of the Prepare Image that this picture went through, and take out what"
            " cuts or pads it in between"
        )
    (top, bottom), (left, right) = (
        _in_proportion(place, length, of, side)
        for place, length, of, side in zip(
            framing.placed_yx, framing.shown_hw, framing.padded_hw, got, strict=True
        )
    )
    return image_bchw[..., top:bottom, left:right]


def frame_rows(
    read_rows: ReadRows,
    framing: Framing,
    out_chw: Tensor,
    check: Callable[[], None] | None = None,
    filters: Filters | None = None,
    filter_check: Callable[[float], None] | None = None,
) -> None:
    """Scale and fit one picture into out_chw, a band of rows at a time.

    read_rows: hands out rows of the picture (framing.source_hw); every row is asked for once, from
        top to bottom.
    out_chw: (C,*framing.padded_hw) float of any layout; written in full, in [0,1].
    check: called before each band; what it raises goes through.
    filters: run over the whole picture before and after scaling, before anything is cut or padded.
    filter_check: called before each tile of each filter with the tile's share of the picture.
    The border repeats the picture's edge: a flat colour would be one more edge for a network to
    draw. The result depends on this picture alone, so it is the same in any batch.
    """
    (top, left), (height, width) = framing.placed_yx, framing.shown_hw
    inner = out_chw[:, top : top + height, left : left + width]
    cut_top, cut_left = framing.shown_yx
    for first, end, band in _filtered_bands(read_rows, framing, filters, check, filter_check):
        low, high = max(first, cut_top), min(end, cut_top + height)
        if low < high:
            shown = band[:, low - first : high - first, cut_left : cut_left + width]
            inner[:, low - cut_top : high - cut_top] = shown
    _repeat_edges(out_chw, framing)


def count_bands(framing: Framing) -> int:
    """How often frame_rows calls its check for one picture: the length of a progress bar."""
    return -(-framing.scaled_hw[0] // _rows_a_band(framing))


def framing_between(source_hw: tuple[int, int], out_hw: tuple[int, int]) -> Framing:
    """The framing of a picture that is brought to another size and nothing else."""
    return Framing(source_hw, out_hw, out_hw, (0, 0))


def resize(
    image_bchw: Tensor, out_hw: tuple[int, int], check: Callable[[], None] | None = None
) -> Tensor:
    """Resize with an antialiased Lanczos filter of three lobes, up or down.

    image_bchw: (B,C,H,W) float, [0,1].
    out_hw: (height, width), each at least 1.
    check: called before each band of rows; what it raises goes through.
    Returns: (B,C,*out_hw), same dtype and device, in [0,1]; computed in float32.
    Same filter, window, order of passes and clamping as Pillow's LANCZOS: equal to 1e-5 on its
    float pictures, to one step of 255 on its 8-bit ones.
    """
    framing = framing_between((image_bchw.shape[-2], image_bchw.shape[-1]), out_hw)
    out = image_bchw.new_empty((*image_bchw.shape[:2], *out_hw))
    for picture, target in zip(image_bchw, out, strict=True):
        frame_rows(lambda a, b, rows=picture: rows[:, a:b].float(), framing, target, check)
    return out


def _size(hw: tuple[int, int]) -> str:
    return f"{hw[1]}×{hw[0]}"


def _fitted(side: int, step: int, fit: str) -> int:
    if fit == "crop" and side >= step:
        return side // step * step
    return -(-side // step) * step


def _half(spare: int) -> int:
    """Half of it towards zero, so that cutting and padding leave the odd pixel at the same end."""
    return spare // 2 if spare >= 0 else -(-spare // 2)


def _is_scaled(hw: tuple[int, int], of_hw: tuple[int, int]) -> bool:
    """True if hw is of_hw times one factor, both sides rounded the same way: down, up or to the
    nearest pixel."""
    for down, up in ((-1, 1), (0, 2), (-2, 0)):
        # A side of n pixels came from anything between these two, as a factor.
        low = max((2 * side + down) / of for side, of in zip(hw, of_hw, strict=True))
        high = min((2 * side + up) / of for side, of in zip(hw, of_hw, strict=True))
        if low < high:
            return True
    return False


def _in_proportion(place: int, length: int, of: int, side: int) -> tuple[int, int]:
    """Where place to place + length of `of` pixels lie in `side` pixels; at least one pixel."""
    first = min((2 * place * side + of) // (2 * of), side - 1)
    return first, max(first + 1, (2 * (place + length) * side + of) // (2 * of))


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


def _filtered_bands(
    read_rows: ReadRows,
    framing: Framing,
    filters: Filters | None,
    check: Callable[[], None] | None,
    filter_check: Callable[[float], None] | None,
) -> Iterator[Band]:
    """Yield the scaled picture's bands with the filters' work done."""
    filters = filters or Filters()
    if filters.before:
        bands = read_bands(read_rows, framing.source_hw[0], filters.before[0].tile_px)
        for row_filter in filters.before:
            bands = filter_bands(bands, framing.source_hw, row_filter, filter_check)
        read_rows = BandReader(bands)
    bands = _bands(read_rows, framing, check)
    for row_filter in filters.after:
        bands = filter_bands(bands, framing.scaled_hw, row_filter, filter_check)
    yield from bands


def _bands(
    read_rows: ReadRows, framing: Framing, check: Callable[[], None] | None
) -> Iterator[Band]:
    """Yield the bands of the scaled picture."""
    check = check or _nothing
    (in_h, in_w), (out_h, out_w) = framing.source_hw, framing.scaled_hw
    band_rows = _rows_a_band(framing)
    if not framing.is_scaled:
        for first in range(0, out_h, band_rows):
            check()
            end = min(first + band_rows, out_h)
            yield first, end, read_rows(first, end)
        return
    across = _filter_spans(in_w, out_w, SPAN_OUTPUTS)
    lines, lines_to = torch.empty(0), 0
    for span in _filter_spans(in_h, out_h, band_rows):
        check()
        if span.read_to > lines_to:
            fresh = _filter_lines(read_rows(lines_to, span.read_to), across, out_w)
            lines = torch.cat([lines, fresh], dim=1) if lines_to else fresh
            lines_to = span.read_to
        # Neighbouring bands share the rows that the filter reaches: those stay, the rest goes.
        lines = lines[:, lines.shape[1] - (span.read_to - span.read_from) :]
        yield span.first, span.end, (span.matrix.to(lines.device) @ lines).clamp_(0, 1)


def _nothing() -> None:
    """For a caller that asks for no check."""


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
    (top, left), (height, width) = framing.placed_yx, framing.shown_hw
    bottom, right = top + height, left + width
    middle = out_chw[:, top:bottom]
    middle[..., :left] = middle[..., left : left + 1]
    middle[..., right:] = middle[..., right - 1 : right]
    out_chw[:, :top] = out_chw[:, top : top + 1]
    out_chw[:, bottom:] = out_chw[:, bottom - 1 : bottom]
