"""Reading a picture at smaller sizes: exact means over areas, whichever way they are reached."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine.faces import pyramid as under_test
from realtoon.engine.faces.pyramid import Pyramid
from torch import Tensor


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def made(image: Tensor) -> Pyramid:
    return Pyramid(image, torch.device("cpu"), lambda: None)


def area_matrix(length: int, first: float, last: float, size: int) -> Tensor:
    """(size,length): mean over the area of each target pixel; bilinear where it enlarges."""
    ratio = (last - first) / size
    half = max(1.0, ratio) / 2
    rows = torch.zeros(size, length, dtype=torch.float64)
    for i in range(size):
        centre = first + (i + 0.5) * ratio
        for j in range(length):
            rows[i, j] = max(0.0, min(centre + half, j + 1) - max(centre - half, j)) / (2 * half)
    return rows


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0.05, 1.0), st.integers(0, 9))
def test_a_level_is_the_mean_over_areas(height: int, width: int, scale: float, seed: int) -> None:
    image = picture(height, width, seed)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    tile = made(image).tile(size, slice(0, size[0]), slice(0, size[1]))
    y, x = area_matrix(height, 0, height, size[0]), area_matrix(width, 0, width, size[1])
    expected = torch.einsum("iy,yxc,jx->cij", y, image.double(), x)
    torch.testing.assert_close(tile, expected.float(), rtol=0, atol=2e-6)


def test_tiles_join_to_the_whole() -> None:
    reader = made(picture(301, 417))
    whole = reader.tile((140, 190), slice(0, 140), slice(0, 190))
    part = reader.tile((140, 190), slice(33, 101), slice(60, 190))
    assert torch.equal(part, whole[:, 33:101, 60:190])


def test_kept_copies_change_levels_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halved copies are a shortcut: where sizes divide evenly the mean is the same."""
    image = picture(768, 1024)
    with_copies = made(image).tile((96, 128), slice(0, 96), slice(0, 128))
    expected = image.permute(2, 0, 1).reshape(3, 96, 8, 128, 8).mean((2, 4))
    torch.testing.assert_close(with_copies, expected, rtol=0, atol=1e-6)
    monkeypatch.setattr(under_test, "_SMALLEST_COPY_PX", 10**9)
    without = made(image).tile((96, 128), slice(0, 96), slice(0, 128))
    torch.testing.assert_close(without, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("box", [(3.3, 5.1, 33.3, 35.1), (-8.0, 20.5, 30.0, 58.5), (5, 5, 9, 9)])
def test_a_crop_is_the_mean_over_areas_with_black_around(box: tuple[float, ...]) -> None:
    image = picture(50, 40)
    crop = made(image).crops(torch.tensor([box], dtype=torch.float64), 12)[0]
    x = area_matrix(40, box[0], box[2], 12)
    y = area_matrix(50, box[1], box[3], 12)
    expected = torch.einsum("iy,yxc,jx->cij", y, image.double(), x)
    torch.testing.assert_close(crop, expected.float(), rtol=0, atol=2e-6)


def test_large_crops_come_from_small_copies_and_agree_with_the_source() -> None:
    image = picture(1200, 1600)
    boxes = torch.tensor([[96.0, 160.0, 864.0, 928.0], [1000.0, 700.0, 1048.0, 748.0]]).double()
    crops = made(image).crops(boxes, 24)
    block = image[160:928, 96:864].permute(2, 0, 1).reshape(3, 24, 32, 24, 32).mean((2, 4))
    torch.testing.assert_close(crops[0], block, rtol=0, atol=1e-6)
    block = image[700:748, 1000:1048].permute(2, 0, 1).reshape(3, 24, 2, 24, 2).mean((2, 4))
    torch.testing.assert_close(crops[1], block, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_read(dtype: torch.dtype) -> None:
    image = picture(64, 64).to(dtype)
    tile = made(image).tile((32, 32), slice(0, 32), slice(0, 32))
    same = made(image.float()).tile((32, 32), slice(0, 32), slice(0, 32))
    assert tile.dtype == torch.float32
    assert torch.equal(tile, same)


def test_what_is_no_colour_becomes_one() -> None:
    image = torch.full((30, 30, 3), 0.5)
    image[0, 0], image[1, 1], image[2, 2] = float("nan"), float("inf"), -3.0
    before = image.clone()
    tile = made(image).tile((30, 30), slice(0, 30), slice(0, 30))
    assert tile[:, 0, 0].tolist() == [0, 0, 0]
    assert tile[:, 1, 1].tolist() == [1, 1, 1]
    assert tile[:, 2, 2].tolist() == [0, 0, 0]
    torch.testing.assert_close(image, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (17, 4001)])
def test_odd_shapes_have_all_their_copies(height: int, width: int) -> None:
    reader = made(picture(height, width))
    tile = reader.tile((1, 1), slice(0, 1), slice(0, 1))
    assert tile.shape == (3, 1, 1)
    assert 0.3 < float(tile.mean()) < 0.7 or height * width == 1
