"""Sizes of what Qwen-Image-Edit is shown."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from realtoon.engine import edit_reference as er
from realtoon.engine.image_prep import frame_rows

sides = st.integers(1, 4096)


def processor_size(height: int, width: int) -> tuple[int, int]:
    """What the vision tower's processor makes of a copy: whole tokens, within its limits."""
    rounded = [round(side / 28) * 28 for side in (height, width)]
    if math.prod(rounded) < 3136:
        beta = math.sqrt(3136 / (height * width))
        rounded = [math.ceil(side * beta / 28) * 28 for side in (height, width)]
    return rounded[0], rounded[1]


@pytest.mark.parametrize(
    ("hw", "expected"),
    [
        ((1024, 1024), (392, 392)),
        ((688, 1024), (308, 476)),
        ((1024, 688), (476, 308)),
        ((64, 64), (392, 392)),
        ((48, 1024), (84, 1764)),
        ((16, 16384), (28, 5264)),
    ],
)
def test_vision_sizes(hw, expected) -> None:
    assert er.vision_size(hw) == expected


@given(sides, sides, st.integers(112, 1024))
@example(16, 4096, 384)
def test_the_processor_has_nothing_left_to_resize(height: int, width: int, side_px: int) -> None:
    size = er.vision_size((height, width), side_px)
    assert all(side % 28 == 0 and side >= 28 for side in size)
    assert processor_size(*size) == size


@given(st.integers(64, 4096), st.integers(64, 4096))
def test_it_is_the_size_that_the_processor_makes_of_the_hosts_copy(height: int, width: int) -> None:
    scale = math.sqrt(384 * 384 / (height * width))
    copy = round(height * scale), round(width * scale)
    if min(copy) >= 28:
        assert er.vision_size((height, width)) == processor_size(*copy)


@given(sides, sides)
def test_the_area_is_kept(height: int, width: int) -> None:
    size = er.vision_size((height, width))
    scale = 384 / math.sqrt(height * width)
    # A side is at most half a token and half a pixel over the exact one; a strip is one token thin.
    exact = (max(28, side * scale + 14.5) for side in (height, width))
    assert math.prod(size) <= math.prod(exact) + 28 * 28
    assert er.vision_tokens(size) == math.prod(size) // 784


@given(sides, sides, st.integers(256, 2048 * 2048))
@example(5, 5, 256)
@example(2000, 2000, 1024 * 1024)
@example(200, 6000, 1024 * 1024)
@example(1, 4096, 256)
def test_references_are_whole_tokens_and_keep_proportions(
    height: int, width: int, area: int
) -> None:
    plan = er.plan_reference((height, width), area)
    out_h, out_w = plan.padded_hw
    assert er.is_aligned(plan.padded_hw)
    assert not plan.is_padded
    thin = min(out_h, out_w) == 16
    assert out_h * out_w <= area or thin
    if min(height, width) >= 16:
        assert plan.scaled_hw[0] <= height and plan.scaled_hw[1] <= width
    spare = plan.scaled_hw[0] - out_h, plan.scaled_hw[1] - out_w
    assert min(spare) == 0 and max(spare) <= 16
    factors = plan.scaled_hw[0] / height, plan.scaled_hw[1] / width
    assert abs(factors[0] * width - factors[1] * width) <= max(1, width / height)
    cut = -plan.offset_yx[0], -plan.offset_yx[1]
    assert all(0 <= 2 * c <= s for c, s in zip(cut, spare, strict=True))


def test_a_fitting_picture_is_left_alone() -> None:
    plan = er.plan_reference((688, 1024), 688 * 1024)
    assert not plan.is_scaled and not plan.is_cut
    assert plan.padded_hw == (688, 1024)


def test_what_is_cut_is_cut_evenly() -> None:
    ramp = torch.linspace(0, 1, 40)[None, :, None].expand(3, 40, 32)
    plan = er.plan_reference((40, 32), 40 * 32)
    assert plan.padded_hw == (32, 32) and plan.offset_yx == (-4, 0)
    out = torch.empty(3, 32, 32)
    frame_rows(lambda first, end: ramp[:, first:end], plan, out)
    assert torch.equal(out, ramp[:, 4:36])


def test_tokens() -> None:
    assert er.reference_tokens((1024, 1024)) == 4096
    assert not er.is_aligned((1024, 1000)) and not er.is_aligned((0, 16))
    assert er.TEMPLATE.count("{}") == 1
