"""Filters over bands of rows: the neighbours of the whole picture, whatever the cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine.row_filters import BandReader, RowFilter, filter_bands, read_bands

SIDES = st.integers(1, 50)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def window(halo: int, tile: int, step: int = 1) -> RowFilter:
    """Weighs its neighbours unevenly, so that one in a wrong place shows."""
    taps = noise(2 * halo + 1, 2 * halo + 1).double()

    def apply(patch: torch.Tensor) -> torch.Tensor:
        side = 2 * halo + 1
        views = patch.double().unfold(1, side, 1).unfold(2, side, 1)
        return (views * taps).sum(dim=(-1, -2)).float()

    return RowFilter(halo, tile, apply, step)


def mirrored(image: torch.Tensor, halo: int) -> torch.Tensor:
    """By hand: the picture, its mirror image, the picture, …"""
    for dim in (1, 2):
        size = image.shape[dim]
        both = torch.cat([image, image.flip(dim)], dim)
        row = both.repeat_interleave(1, dim)
        while row.shape[dim] < size + 4 * halo + 4 * size:
            row = torch.cat([row, both], dim)
        start = (-halo) % (2 * size)
        image = row.narrow(dim, start, size + 2 * halo)
    return image


def run(image: torch.Tensor, row_filter: RowFilter, rows: int) -> torch.Tensor:
    hw = (image.shape[1], image.shape[2])
    bands = read_bands(lambda a, b: image[:, a:b], hw[0], rows)
    parts, done = [], 0
    for first, end, band in filter_bands(bands, hw, row_filter):
        assert first == done < end
        assert band.shape == (image.shape[0], end - first, hw[1])
        parts.append(band)
        done = end
    assert done == hw[0]
    return torch.cat(parts, dim=1)


@settings(deadline=None, max_examples=80)
@given(SIDES, SIDES, st.integers(1, 60), st.integers(0, 6), st.integers(1, 20))
def test_every_cut_gives_the_whole_pictures_result(
    height: int, width: int, rows: int, halo: int, tile: int
) -> None:
    image = noise(2, height, width)
    row_filter = window(halo, tile)
    whole = row_filter.apply(mirrored(image, halo))
    assert torch.equal(run(image, row_filter, rows), whole)


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.integers(1, 60))
def test_a_grid_lies_where_it_lies_in_the_whole_picture(height: int, width: int, rows: int) -> None:
    def apply(tile: torch.Tensor) -> torch.Tensor:
        kept = tile[:, 4:-4, 4:-4].clone()
        kept[:, ::4] = 0
        kept[:, :, ::4] = 0
        return kept

    image = noise(1, height, width)
    expected = image.clone()
    expected[:, ::4] = 0
    expected[:, :, ::4] = 0
    assert torch.equal(run(image, RowFilter(4, 12, apply, 4), rows), expected)


def test_checks_are_shares_of_the_picture_and_may_stop_it() -> None:
    image, shares = noise(1, 31, 45), []
    bands = read_bands(lambda a, b: image[:, a:b], 31, 7)
    for _ in filter_bands(bands, (31, 45), window(2, 10), shares.append):
        pass
    assert sum(shares) == pytest.approx(1)
    assert len(shares) > 15

    class StopError(Exception):
        pass

    def stop(_share: float) -> None:
        raise StopError

    bands = read_bands(lambda a, b: image[:, a:b], 31, 7)
    with pytest.raises(StopError):
        next(filter_bands(bands, (31, 45), window(2, 10), stop))


def test_memory_grows_with_a_band_not_the_picture() -> None:
    """Beside the band that comes out, only what the halo needs is held."""
    made = []

    def apply(tile: torch.Tensor) -> torch.Tensor:
        made.append(tile.shape)
        return tile[:, 3:-3, 3:-3]

    bands = read_bands(lambda a, b: torch.zeros(1, b - a, 64), 5000, 5000)
    sizes = [
        end - first for first, end, _ in filter_bands(bands, (5000, 64), RowFilter(3, 16, apply))
    ]
    assert sum(sizes) == 5000
    assert max(sizes) <= 2 * 16 + 3
    assert max(shape[1] for shape in made) <= 16 + 6


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 20), st.lists(st.integers(1, 9), min_size=1))
def test_reader_hands_out_what_the_bands_hold(height: int, rows: int, asked: list[int]) -> None:
    image = noise(2, height, 3)
    reader = BandReader(read_bands(lambda a, b: image[:, a:b], height, rows))
    first = 0
    for count in asked:
        end = min(first + count, height)
        if end > first:
            assert torch.equal(reader(first, end), image[:, first:end])
        first = end
