"""Filters that see a neighbourhood, run over a picture that comes in bands of rows.

A filter says how far it looks (`halo_px`). Every pixel gets exactly the neighbours that it would
have in the whole picture, so where the bands and tiles are cut changes nothing but rounding, and
memory grows with a band and never with the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Band = tuple[int, int, Tensor]
"""(first row, end row, (C,rows,W) float32); bands follow one another from top to bottom."""


@dataclass(frozen=True)
class RowFilter:
    """A filter on tiles.

    halo_px: how many pixels it looks to each side; a multiple of step_px.
    tile_px: side of what it makes at once, chosen for its memory; a multiple of step_px.
    apply: (C,h + 2 halo_px,w + 2 halo_px) float32 -> (C,h,w).
    step_px: tiles begin at multiples of it, for filters that work on a grid.
    """

    halo_px: int
    tile_px: int
    apply: Callable[[Tensor], Tensor]
    step_px: int = 1


def read_bands(
    read_rows: Callable[[int, int], Tensor], height: int, band_rows: int
) -> Iterator[Band]:
    """The rows that a function (first, end) -> (C,rows,W) hands out, as bands."""
    for first in range(0, height, band_rows):
        end = min(first + band_rows, height)
        yield first, end, read_rows(first, end)


def filter_bands(
    bands: Iterable[Band],
    hw: tuple[int, int],
    row_filter: RowFilter,
    check: Callable[[float], None] | None = None,
) -> Iterator[Band]:
    """Run a filter over a picture's bands; what comes out are bands again, cut elsewhere.

    hw: (height, width) of the picture. Beyond its border lies its mirror image.
    check: called before each tile with the tile's share of the picture (the shares add up to 1);
        what it raises goes through.
    """
    height, halo = hw[0], row_filter.halo_px
    held, held_from, done = torch.empty(0), 0, 0
    for first, end, band in _split(bands, row_filter.tile_px):
        held = torch.cat([held, band], dim=1) if first > held_from else band
        ready = end - halo
        ready = height if end == height else ready - ready % row_filter.step_px
        if ready <= done:
            continue
        yield done, ready, _filtered(held, held_from, (done, ready), hw, row_filter, check)
        done = ready
        keep_from = max(held_from, done - halo)
        # A copy, so that the rows that nobody needs any more can go.
        held, held_from = held[:, keep_from - held_from :].clone(), keep_from


class BandReader:
    """Hands out rows of bands as a function (first, end) -> (C,rows,W), each row once, in order."""

    def __init__(self, bands: Iterable[Band]) -> None:
        self._bands = iter(bands)
        self._held: Tensor | None = None
        self._to = 0

    def __call__(self, first: int, end: int) -> Tensor:
        parts = [] if self._held is None else [self._held]
        while self._to < end:
            _, self._to, band = next(self._bands)
            parts.append(band)
        rows = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        self._held = rows[:, end - first :].clone() if self._to > end else None
        return rows[:, : end - first]


def _split(bands: Iterable[Band], rows: int) -> Iterator[Band]:
    for first, end, band in bands:
        for top in range(first, end, rows):
            bottom = min(top + rows, end)
            yield top, bottom, band[:, top - first : bottom - first]


def _filtered(
    held: Tensor,
    held_from: int,
    rows: tuple[int, int],
    hw: tuple[int, int],
    row_filter: RowFilter,
    check: Callable[[float], None] | None,
) -> Tensor:
    (height, width), halo, step = hw, row_filter.halo_px, row_filter.tile_px
    out = held.new_empty((held.shape[0], rows[1] - rows[0], width))
    for top in range(rows[0], rows[1], step):
        bottom = min(top + step, rows[1])
        tall = held[:, _mirrored(top - halo, bottom + halo, height, held.device) - held_from]
        for left in range(0, width, step):
            right = min(left + step, width)
            if check is not None:
                check((bottom - top) * (right - left) / (height * width))
            tile = tall[:, :, _mirrored(left - halo, right + halo, width, held.device)]
            out[:, top - rows[0] : bottom - rows[0], left:right] = row_filter.apply(tile)
    return out


def _mirrored(first: int, end: int, size: int, device: torch.device) -> Tensor:
    """Positions first..end inside 0..size, mirrored at both ends as often as it takes."""
    position = torch.arange(first, end, device=device).remainder(2 * size)
    return torch.minimum(position, 2 * size - 1 - position)
