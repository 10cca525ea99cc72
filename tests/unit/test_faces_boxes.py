"""Thinning of boxes against the rule written plainly, and the small arithmetic around it."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine.faces.boxes import non_maximum_suppression, plausible, refine, square
from torch import Tensor


def plain_rule(boxes: list[list[float]], scores: list[float], limit: float, by: str) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(_overlap(boxes[i], boxes[j], by) <= limit for j in kept):
            kept.append(i)
    return kept


def _overlap(a: list[float], b: list[float], by: str) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    tall = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return wide * tall / (min(areas) if by == "smaller" else sum(areas) - wide * tall)


def random_boxes(count: int, seed: int, field: float = 100.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=draw, dtype=torch.float64) * field
    size = torch.rand(count, 2, generator=draw, dtype=torch.float64) * 40 + 1
    # Few distinct scores, so that ties are met.
    scores = torch.randint(0, 20, (count,), generator=draw) / 20
    return torch.cat([corner, corner + size], 1), scores


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 120),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.3, 0.5, 0.7]),
    st.sampled_from(["union", "smaller"]),
)
def test_thinning_follows_the_rule(count: int, seed: int, limit: float, by: str) -> None:
    boxes, scores = random_boxes(count, seed)
    kept = non_maximum_suppression(boxes, scores, limit, by)  # type: ignore[arg-type]
    assert kept.tolist() == plain_rule(boxes.tolist(), scores.tolist(), limit, by)


def test_a_chain_is_thinned_from_the_best_on() -> None:
    """Each box covers the next; every second one stays, which no single round can tell."""
    left = torch.arange(50, dtype=torch.float64) * 3
    boxes = torch.stack([left, left * 0, left + 10, left * 0 + 10], 1)
    kept = non_maximum_suppression(boxes, torch.linspace(1, 0.5, 50), 0.5)
    assert kept.tolist() == list(range(0, 50, 2))


def test_many_boxes_take_little_time() -> None:
    boxes, scores = random_boxes(20_000, 0, field=6000.0)
    start = time.process_time()
    kept = non_maximum_suppression(boxes, scores, 0.5)
    assert time.process_time() - start < 20  # all pairs would take minutes
    assert len(kept) > 10_000


def test_edges_move_by_fractions_of_the_box() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]], dtype=torch.float64)
    offsets = torch.tensor([[0.1, -0.5, 0.0, 0.25]], dtype=torch.float64)
    assert refine(boxes, offsets).tolist() == [[12.0, 0.0, 30.0, 70.0]]


def test_a_square_keeps_the_centre_and_the_longer_side() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 30.0], [0.0, 0.0, 8.0, 2.0]], dtype=torch.float64)
    assert square(boxes).tolist() == [[-10.0, 0.0, 20.0, 30.0], [0.0, -3.0, 8.0, 5.0]]


@pytest.mark.parametrize(
    ("box", "good"),
    [
        ([0, 0, 10, 10], True),
        ([-5, -5, 5, 5], True),
        ([-9, 0, 0, 9], False),  # beside the picture
        ([100, 0, 110, 10], False),
        ([0, 0, 10, 0.5], False),
        ([10, 0, 0, 10], False),  # wrong way round
        ([-150, -150, 151, 151], False),  # far larger than the picture
        ([float("nan"), 0, 10, 10], False),
        ([0, 0, float("inf"), 10], False),
    ],
)
def test_boxes_that_cannot_be_cropped_are_dropped(box: list[float], good: bool) -> None:
    assert plausible(torch.tensor([box], dtype=torch.float64), 80, 100).tolist() == [good]
