"""Windows cover the picture once, with all the surroundings that the network needs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from realtoon.engine.tiles import Window, plan

sides = st.integers(1, 4500)
halos = st.sampled_from([64, 68, 80])


@given(height=sides, width=sides, area=st.integers(1, 3_000_000), halo=halos)
def test_a_plan_covers_the_picture_once(height: int, width: int, area: int, halo: int) -> None:
    windows = plan(height, width, max_area=area, halo=halo)
    rows = sorted({window.inner[:2] for window in windows})
    columns = sorted({window.inner[2:] for window in windows})
    # A grid: every row of windows with every column, each once.
    assert len(windows) == len(rows) * len(columns) == len({w.inner for w in windows})
    for spans, length in ((rows, height), (columns, width)):
        assert spans[0][0] == 0 and spans[-1][1] == length
        for (_, stop), (start, _) in zip(spans, spans[1:], strict=False):
            assert stop == start
        assert all(a < b for a, b in spans)


@given(height=st.integers(1, 90), width=st.integers(1, 90), area=st.integers(1, 4000))
def test_every_pixel_is_kept_once(height: int, width: int, area: int) -> None:
    """The same, counted pixel by pixel."""
    seen = np.zeros((height, width), int)
    for window in plan(height, width, max_area=area, halo=4):
        y0, y1, x0, x1 = window.inner
        seen[y0:y1, x0:x1] += 1
    assert (seen == 1).all()


@given(height=sides, width=sides, area=st.integers(1, 3_000_000), halo=halos)
def test_a_window_holds_its_halo(height: int, width: int, area: int, halo: int) -> None:
    for window in plan(height, width, max_area=area, halo=halo):
        for inner, outer, length in (
            (window.inner[:2], window.outer[:2], height),
            (window.inner[2:], window.outer[2:], width),
        ):
            assert outer == (max(0, inner[0] - halo), min(length, inner[1] + halo))
            # The network's levels are at half and quarter size: all windows share their phase.
            assert inner[0] % 4 == 0 and (inner[1] % 4 == 0 or inner[1] == length)
            assert outer[0] % 4 == 0 and (outer[1] % 4 == 0 or outer[1] == length)


@given(height=sides, width=sides, area=st.integers(1, 3_000_000))
def test_the_area_is_kept_where_it_can_be(height: int, width: int, area: int) -> None:
    halo = 68
    windows = plan(height, width, max_area=area, halo=halo)
    largest = max(h * w for h, w in (window.outer_hw for window in windows))
    # The least useful window keeps four halos and up to as much again where the sides do not
    # divide, and computes a halo on each side.
    floor = min(height, 10 * halo + 4) * min(width, 10 * halo + 4)
    assert largest <= max(area, floor)


@given(height=sides, width=sides)
def test_one_window_where_it_fits(height: int, width: int) -> None:
    whole = (0, height, 0, width)
    assert plan(height, width, max_area=height * width, halo=68) == [Window(whole, whole)]


@pytest.mark.parametrize(("height", "width"), [(6000, 8000), (1024, 1024), (2048, 2048)])
def test_what_is_computed_twice_stays_small(height: int, width: int) -> None:
    windows = plan(height, width, max_area=1_150_000, halo=68)
    computed = sum(h * w for h, w in (window.outer_hw for window in windows))
    assert computed <= 1.35 * height * width


def test_what_is_kept_lies_inside_what_is_computed() -> None:
    window = Window((100, 300, 40, 90), (32, 368, 0, 158))
    assert window.kept == (slice(68, 268), slice(40, 90))
    assert window.outer_hw == (336, 158)
