"""Cutting faces out and finding the way back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from realtoon.engine.faces.align import (
    DCTNET_TEMPLATE_288,
    invert,
    paste_region,
    sample,
    similarity,
    warp,
)
from torch import Tensor

IDENTITY = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)

angles = st.floats(-math.pi, math.pi)
scales = st.floats(0.05, 20.0)
shifts = st.floats(-3000.0, 3000.0)


def transform(angle: float, scale: float, x: float, y: float) -> Tensor:
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[cosine, -sine, x], [sine, cosine, y]], dtype=torch.float64)


def moved(matrix: Tensor, points: Tensor) -> Tensor:
    return points @ matrix[:, :2].T + matrix[:, 2]


@given(angles, scales, shifts, shifts)
def test_similarity_finds_the_transform_and_invert_undoes_it(angle, scale, x, y) -> None:
    true = transform(angle, scale, x, y)
    found = similarity(DCTNET_TEMPLATE_288, moved(true, DCTNET_TEMPLATE_288))
    assert torch.allclose(found, true, rtol=1e-9, atol=1e-6)
    back = moved(invert(found), moved(true, DCTNET_TEMPLATE_288))
    assert torch.allclose(back, DCTNET_TEMPLATE_288, atol=1e-6)


@given(st.lists(st.floats(-50, 50), min_size=10, max_size=10))
def test_no_other_similarity_comes_closer(noise) -> None:
    target = DCTNET_TEMPLATE_288 + torch.tensor(noise, dtype=torch.float64).reshape(5, 2)
    found = similarity(DCTNET_TEMPLATE_288, target)
    least = (moved(found, DCTNET_TEMPLATE_288) - target).square().sum()
    for row, column, step in ((0, 2, 0.1), (1, 2, -0.1)):
        other = found.clone()
        other[row, column] += step
        assert (moved(other, DCTNET_TEMPLATE_288) - target).square().sum() >= least
    for angle, scale in ((1e-3, 1.0), (-1e-3, 1.0), (0.0, 1.001), (0.0, 0.999)):
        turn = transform(angle, scale, 0, 0)[:, :2]
        middle, goal = DCTNET_TEMPLATE_288.mean(0), target.mean(0)
        other = torch.cat((turn @ found[:, :2], torch.zeros(2, 1, dtype=torch.float64)), 1)
        other[:, 2] = goal - other[:, :2] @ middle
        assert (moved(other, DCTNET_TEMPLATE_288) - target).square().sum() >= least - 1e-9


def test_a_mirrored_face_is_not_flipped() -> None:
    mirrored = DCTNET_TEMPLATE_288 * torch.tensor([-1.0, 1.0])
    found = similarity(mirrored, DCTNET_TEMPLATE_288)
    assert torch.linalg.det(found[:, :2]) > 0


def test_points_in_one_place_give_a_shift() -> None:
    found = similarity(torch.full((5, 2), 7.0), DCTNET_TEMPLATE_288)
    assert torch.equal(found[:, :2], torch.eye(2, dtype=torch.float64))
    assert torch.allclose(moved(found, torch.tensor([[7.0, 7.0]]).double()),
                          DCTNET_TEMPLATE_288.mean(0))  # fmt: skip


@given(st.integers(1, 40), st.integers(1, 40), st.integers(-5, 5), st.integers(-5, 5))
def test_whole_pixel_moves_copy_pixels(height, width, x, y) -> None:
    image = torch.rand(1, 2, height, width)
    matrix = IDENTITY.clone()
    matrix[:, 2] = torch.tensor([x, y])
    result = warp(image, matrix, (height, width), border=0.25)
    expected = torch.full_like(image, 0.25)
    rows, columns = range(max(0, -y), min(height, height - y)), range(
        max(0, -x), min(width, width - x)
    )  # fmt: skip
    for row in rows:
        for column in columns:
            expected[..., row, column] = image[..., row + y, column + x]
    assert torch.allclose(result, expected, atol=1e-4)


def test_shrinking_averages_instead_of_skipping() -> None:
    stripes = torch.zeros(1, 1, 256, 256)
    stripes[..., ::2] = 1.0
    small = warp(stripes, transform(0.0, 8.0, 3.5, 3.5), (32, 32))
    assert float((small[..., 1:-1, 1:-1] - 0.5).abs().max()) < 0.02


def test_the_border_mixes_in_over_one_pixel() -> None:
    result = warp(torch.zeros(1, 1, 4, 4), transform(0.0, 1.0, -0.5, 0.0), (4, 6), border=1.0)
    assert torch.allclose(result[0, 0, 1], torch.tensor([0.5, 0.0, 0.0, 0.0, 0.5, 1.0]), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [0.4, 3.0])
def test_every_float_type_is_sampled_where_it_should(dtype, scale) -> None:
    ramp = torch.linspace(0, 1, 257).repeat(200, 1)[None, None].to(dtype)
    matrix = transform(0.4, scale, 30.0, -20.0)
    result = warp(ramp, matrix, (60, 90), border=0.5)
    assert result.dtype == dtype
    same = warp(ramp.float(), matrix, (60, 90), border=0.5)
    assert torch.allclose(result.float(), same, atol=max(2 * torch.finfo(dtype).eps, 1e-5))


def test_far_outside_is_all_border() -> None:
    image = torch.rand(2, 3, 9, 9)
    assert torch.equal(warp(image, transform(0.3, 1.0, 500, 500), (5, 7), border=0.5),
                       torch.full((2, 3, 5, 7), 0.5))  # fmt: skip


@given(angles, st.floats(0.1, 1.0), st.integers(0, 40), st.integers(0, 40))
def test_a_part_is_the_same_as_in_the_whole(angle, scale, top, left) -> None:
    image = torch.rand(1, 3, 30, 30, generator=torch.Generator().manual_seed(5))
    matrix = transform(angle, scale, 4.0, -3.0)
    whole = sample(image, matrix, (80, 80))
    part = matrix.clone()
    part[:, 2] += matrix[:, 0] * left + matrix[:, 1] * top
    seen = sample(image, part, (20, 30))
    assert torch.allclose(seen, whole[..., top : top + 20, left : left + 30], atol=1e-5)


@given(angles, st.floats(0.2, 5.0), st.floats(-400, 400), st.floats(-400, 400))
def test_paste_region_holds_all_that_the_square_reaches(angle, scale, x, y) -> None:
    to_square = transform(angle, scale, x, y)
    y0, y1, x0, x1 = paste_region(to_square, 64, (120, 100))
    seen = sample(torch.ones(1, 1, 64, 64), to_square, (120, 100))[0, 0]
    seen[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = 0
    assert float(seen.max()) <= 1e-6


def test_warp_is_opencvs() -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    image = torch.rand(1, 3, 120, 90, generator=torch.Generator().manual_seed(3))
    matrix = transform(0.3, 0.9, -20.0, 40.0)
    ours = warp(image, matrix, (100, 110), border=1.0)[0].permute(1, 2, 0).numpy()
    theirs = cv2.warpAffine(
        image[0].permute(1, 2, 0).numpy(), matrix.numpy(), (110, 100),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=(1.0, 1.0, 1.0),
    )  # fmt: skip
    # Before 5.0 OpenCV rounds positions to a 32nd of a pixel.
    limit = 1 / 255 if int(cv2.__version__.split(".")[0]) >= 5 else 0.05
    assert float(abs(ours - theirs).max()) < limit
