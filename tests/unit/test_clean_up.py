"""Denoising and smoothing: what they gain, and what they leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine import clean_up, depth
from realtoon.engine.row_filters import RowFilter, filter_bands, read_bands
from torch.nn import functional

FILTERS = {
    "denoise": lambda amount: clean_up.denoise(amount, (0.05, 0.04, 0.04)),
    "smooth": clean_up.smooth,
    "depth": depth.compensate,
}


def photo(side: int = 256) -> torch.Tensor:
    """(3,side,side): part of a photograph, face and all."""
    data = pytest.importorskip("skimage.data", reason="scikit-image brings the test photo")
    whole = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1).float() / 255
    return whole[:, :side, 100 : 100 + side]


def grain(image: torch.Tensor, sigma: float, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (image + sigma * drawn).clamp(0, 1)


def run(image: torch.Tensor, row_filter: RowFilter, rows: int = 128) -> torch.Tensor:
    hw = (image.shape[1], image.shape[2])
    bands = read_bands(lambda a, b: image[:, a:b], hw[0], rows)
    return torch.cat([band for _, _, band in filter_bands(bands, hw, row_filter)], dim=1)


def noise_of(image: torch.Tensor, rows: int = 128) -> tuple[float, float, float]:
    hw = (image.shape[1], image.shape[2])
    return clean_up.measure_noise(lambda a, b: image[:, a:b], hw, rows)


def psnr(image: torch.Tensor, reference: torch.Tensor) -> float:
    return -10 * math.log10(float((image - reference).square().mean()) + 1e-12)


def soft(image: torch.Tensor, sigma: float) -> torch.Tensor:
    place = torch.arange(-12, 13).float()
    taps = torch.exp(-0.5 * (place / sigma) ** 2)
    taps = taps / taps.sum()
    ringed = functional.pad(image[None], (12, 12, 12, 12), mode="reflect")[0][:, None]
    tall = functional.conv2d(ringed, taps.view(1, 1, -1, 1))
    return functional.conv2d(tall, taps.view(1, 1, 1, -1))[:, 0]


@pytest.mark.parametrize("name", FILTERS)
class TestEveryFilter:
    @settings(deadline=None, max_examples=12)
    @given(st.integers(1, 60), st.integers(1, 60))
    def test_any_size_keeps_size_and_range(self, name: str, height: int, width: int) -> None:
        image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(width))
        made = run(image, FILTERS[name](1.0))
        assert made.shape == image.shape
        assert made.isfinite().all()
        assert 0 <= made.min() <= made.max() <= 1

    @pytest.mark.parametrize("hw", [(1, 1), (17, 4001), (1, 300)])
    def test_odd_shapes(self, name: str, hw: tuple[int, int]) -> None:
        image = torch.rand(3, *hw, generator=torch.Generator().manual_seed(1))
        made = run(image, FILTERS[name](1.0))
        assert made.shape == image.shape
        assert made.isfinite().all()

    def test_bands_change_nothing(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        image = grain(soft(photo(120), 1.5), 0.01)
        row_filter = FILTERS[name](1.0)
        whole = run(image, row_filter, 120)
        assert (run(image, row_filter, 13) - whole).abs().max() <= 1e-5
        small = RowFilter(row_filter.halo_px, 48, row_filter.apply, row_filter.step_px)
        assert (run(image, small, 50) - whole).abs().max() <= 1e-5

    def test_the_slider_moves_the_picture_steadily(self, name: str) -> None:
        image = grain(soft(photo(128), 1.5), 0.02)
        moved = [
            float((run(image, FILTERS[name](amount)) - image).abs().mean())
            for amount in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]
        assert moved[0] <= 1e-6
        assert all(
            after > before * 1.1 for before, after in zip(moved[1:], moved[2:], strict=False)
        )

    def test_grey_stays_grey(self, name: str) -> None:
        image = grain(soft(photo(96), 1.5), 0.02)[:1].expand(3, -1, -1)
        made = run(image, FILTERS[name](1.0))
        assert (made - made[:1]).abs().max() <= 1e-6

    @pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
    def test_flat_stays_flat(self, name: str, value: float) -> None:
        image = torch.full((3, 40, 50), value)
        assert (run(image, FILTERS[name](1.0)) - value).abs().max() <= 1e-5


class TestNoise:
    @pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
    def test_is_measured(self, sigma: float) -> None:
        flat = grain(torch.full((3, 300, 300), 0.5), sigma)
        for found in noise_of(flat):
            assert found == pytest.approx(sigma, rel=0.03)

    def test_of_a_photo_is_near_what_was_added(self) -> None:
        for found in noise_of(grain(photo(), 0.05)):
            assert 0.04 < found < 0.06

    def test_bands_change_nothing(self) -> None:
        image = grain(photo(), 0.03)
        assert len({noise_of(image, rows) for rows in (1, 17, 100, 256)}) == 1

    def test_white_background_hides_nothing(self) -> None:
        image = torch.ones(3, 200, 600)
        image[:, :, :200] = grain(torch.full((3, 200, 200), 0.5), 0.05)
        for found in noise_of(image):
            assert found == pytest.approx(0.05, rel=0.05)

    @pytest.mark.parametrize("hw", [(1, 1), (1, 50), (50, 1), (40, 40)])
    def test_where_nothing_can_be_told_it_is_none(self, hw: tuple[int, int]) -> None:
        assert noise_of(torch.full((3, *hw), 0.4)) == (0.0, 0.0, 0.0)

    def test_flat_drawings_have_none(self) -> None:
        drawing = torch.zeros(3, 200, 200) + 0.7
        drawing[:, 50:150, 60:140] = 0.2
        assert max(noise_of(drawing)) < 1e-6


class TestDenoise:
    @pytest.mark.parametrize(("sigma", "gain_db"), [(0.02, 2.0), (0.05, 4.0), (0.1, 5.0)])
    def test_brings_a_noisy_photo_nearer_to_the_clean_one(
        self, sigma: float, gain_db: float
    ) -> None:
        clean = photo()
        noisy = grain(clean, sigma)
        made = run(noisy, clean_up.denoise(1.0, noise_of(noisy)))
        assert psnr(made, clean) >= psnr(noisy, clean) + gain_db

    def test_more_is_nearer(self) -> None:
        clean = photo(160)
        noisy = grain(clean, 0.05)
        measured = noise_of(noisy)
        found = [
            psnr(run(noisy, clean_up.denoise(amount, measured)), clean)
            for amount in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]
        assert found == sorted(found)

    def test_no_noise_changes_nothing(self) -> None:
        image = photo(96)
        assert (run(image, clean_up.denoise(1.0, (0.0, 0.0, 0.0))) - image).abs().max() <= 1e-5

    def test_a_hard_edge_stays(self) -> None:
        clean = torch.full((3, 80, 80), 0.2)
        clean[:, :, 40:] = 0.8
        noisy = grain(clean, 0.05)
        made = run(noisy, clean_up.denoise(1.0, noise_of(noisy)))
        # No wider and no further than the noise that is left.
        assert (made - clean).abs().mean(dim=(0, 1)).max() < 0.03


class TestSmooth:
    def test_areas_become_even_and_edges_stay(self) -> None:
        clean = torch.full((3, 80, 80), 0.2)
        clean[:, :, 40:] = 0.8
        rough = grain(clean, 0.03)
        made = run(rough, clean_up.smooth(1.0))
        assert made[:, :, :36].std() < 0.35 * rough[:, :, :36].std()
        step = made.mean(dim=(0, 1))
        assert step[39] < 0.22
        assert step[40] > 0.78

    def test_of_a_photo_keeps_the_picture(self) -> None:
        assert psnr(run(photo(), clean_up.smooth(1.0)), photo()) > 30


class TestDepth:
    @staticmethod
    def half_soft(sigma: float) -> torch.Tensor:
        image = photo()
        image = image.clone()
        image[:, :, 128:] = soft(photo(), sigma)[:, :, 128:]
        return image

    @pytest.mark.parametrize(("sigma", "gain_db"), [(1.5, 1.0), (2.0, 1.2), (3.0, 0.8)])
    def test_what_is_soft_comes_nearer_to_the_original(self, sigma: float, gain_db: float) -> None:
        image = self.half_soft(sigma)
        made = run(image, depth.compensate(1.0))
        right = (slice(None), slice(None), slice(136, 256))
        assert psnr(made[right], photo()[right]) >= psnr(image[right], photo()[right]) + gain_db

    def test_more_is_nearer(self) -> None:
        image, right = self.half_soft(2.0)[:, :128], (..., slice(136, 256))
        found = [
            psnr(run(image, depth.compensate(amount))[right], photo()[:, :128][right])
            for amount in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]
        assert found == sorted(found)

    def test_what_is_sharp_stays(self) -> None:
        image = self.half_soft(2.0)
        made = run(image, depth.compensate(1.0))
        left = (slice(None), slice(None), slice(0, 104))
        assert psnr(made[left], image[left]) > 40

    @pytest.mark.parametrize("sigma", [0.005, 0.02, 0.1])
    def test_flat_noise_gains_nothing(self, sigma: float) -> None:
        rough = grain(torch.full((3, 160, 160), 0.5), sigma)
        for image in (rough, (rough * 255).round() / 255):
            made = run(image, depth.compensate(1.0))
            assert made.var() <= image.var() * 1.0001

    def test_a_noisy_flat_patch_beside_a_soft_edge_gains_nothing(self) -> None:
        clean = torch.full((3, 160, 200), 0.3)
        clean[:, :, 100:] = 0.7
        image = grain(soft(clean, 2.0), 0.02)
        made = run(image, depth.compensate(1.0))
        for columns in (slice(0, 60), slice(140, 200)):
            assert made[..., columns].var() <= image[..., columns].var() * 1.001

    @pytest.mark.parametrize("sigma", [0.01, 0.02, 0.05])
    def test_noise_in_a_soft_photo_does_not_turn_the_gain_into_a_loss(self, sigma: float) -> None:
        image, right = grain(self.half_soft(2.0), sigma), (..., slice(136, 256))
        made = run(image, depth.compensate(1.0))
        assert psnr(made[right], photo()[right]) >= psnr(image[right], photo()[right])

    def test_edges_get_no_halo(self) -> None:
        clean = torch.full((3, 60, 120), 0.2)
        clean[:, :, 60:] = 0.8
        made = run(soft(clean, 2.0), depth.compensate(1.0))
        assert made.min() > 0.2 - 0.03
        assert made.max() < 0.8 + 0.03
        step = made.mean(dim=(0, 1))
        assert step[61] - step[58] > 1.2 * (
            soft(clean, 2.0)[0, 30, 61] - soft(clean, 2.0)[0, 30, 58]
        )

    @pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0])
    def test_the_map_knows_an_edges_blur(self, sigma: float) -> None:
        clean = torch.full((3, 140, 140), 0.2)
        clean[:, :, 70:] = 0.8
        width, sure, _ = depth.blur_map(soft(clean, sigma))
        middle = (0, width.shape[1] // 2, width.shape[2] // 2)
        assert sure[middle] == 1
        assert width[middle] == pytest.approx(sigma, rel=0.15)
        sharp, _, _ = depth.blur_map(clean)
        assert sharp[middle] < 0.9
