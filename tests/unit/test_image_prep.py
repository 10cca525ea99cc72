"""Sizes, the Lanczos filter against Pillow's, padding and its undoing."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from realtoon.engine import image_prep
from realtoon.engine.image_prep import (
    Filters,
    Framing,
    FramingError,
    count_bands,
    describe_framing,
    frame_rows,
    plan_framing,
    resize,
    restore_framing,
)
from realtoon.engine.row_filters import RowFilter
from torch.nn import functional

SIDES = st.integers(1, 9000)
SMALL_SIDES = st.integers(1, 90)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def photo() -> torch.Tensor:
    """(1,3,512,512): a photograph, edges and all."""
    data = pytest.importorskip("skimage.data", reason="scikit-image brings the test photo")
    return torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255


def pillow_float(image_bchw: torch.Tensor, out_hw: tuple[int, int]) -> torch.Tensor:
    planes = [
        Image.fromarray(plane.numpy()).resize(out_hw[::-1], Image.Resampling.LANCZOS)
        for plane in image_bchw.flatten(0, 1)
    ]
    made = torch.stack([torch.from_numpy(np.asarray(plane).copy()) for plane in planes])
    return made.reshape(*image_bchw.shape[:2], *out_hw)


def frame(image_bchw: torch.Tensor, framing: Framing, **kwargs: object) -> torch.Tensor:
    out = torch.full((*image_bchw.shape[:2], *framing.padded_hw), math.nan, dtype=image_bchw.dtype)
    for picture, target in zip(image_bchw, out, strict=True):
        frame_rows(lambda a, b, rows=picture: rows[:, a:b].float(), framing, target, **kwargs)
    return out


class TestPlan:
    @given(SIDES, SIDES, st.integers(1, 4096), st.sampled_from(image_prep.MULTIPLES))
    def test_sizes(self, height: int, width: int, max_side: int, multiple: int) -> None:
        framing = plan_framing((height, width), max_side, multiple)
        longest = max(height, width)
        factor = min(1.0, max_side / longest)
        assert max(framing.scaled_hw) == min(longest, max_side)
        for before, after in zip((height, width), framing.scaled_hw, strict=True):
            assert after == max(1, after)
            assert abs(after - before * factor) <= 0.5 or after == 1 > before * factor
        for side, padded, offset in zip(
            framing.scaled_hw, framing.padded_hw, framing.offset_yx, strict=True
        ):
            assert padded % multiple == 0
            assert side <= padded < side + multiple
            assert 0 <= (padded - side) - 2 * offset <= 1

    @given(SIDES, SIDES, st.sampled_from(image_prep.MULTIPLES))
    def test_zero_keeps_and_nothing_grows(self, height: int, width: int, multiple: int) -> None:
        kept = plan_framing((height, width), 0, multiple)
        assert kept.scaled_hw == (height, width)
        assert plan_framing((height, width), max(height, width), multiple) == kept
        assert plan_framing((height, width), 16384, multiple) == kept

    @pytest.mark.parametrize(
        ("hw", "max_side", "scaled"),
        [
            ((1, 1), 1024, (1, 1)),
            ((17, 4001), 1024, (4, 1024)),
            ((4001, 1), 1024, (1024, 1)),
            ((6000, 8000), 1024, (768, 1024)),
            ((1024, 1536), 1024, (683, 1024)),
            ((3, 3), 1, (1, 1)),
        ],
    )
    def test_known_sizes(self, hw: tuple[int, int], max_side: int, scaled: tuple[int, int]) -> None:
        assert plan_framing(hw, max_side, 1).scaled_hw == scaled

    @pytest.mark.parametrize(
        ("hw", "max_side", "multiple", "name"),
        [
            ((0, 5), 0, 1, "picture"),
            ((5, 5), -1, 1, "max_side"),
            ((5, 5), 0, 0, "multiple_of"),
        ],
    )
    def test_nonsense_is_refused_by_name(
        self, hw: tuple[int, int], max_side: int, multiple: int, name: str
    ) -> None:
        with pytest.raises(ValueError, match=name):
            plan_framing(hw, max_side, multiple)


class TestReport:
    @pytest.mark.parametrize(
        ("hw", "max_side", "multiple", "text"),
        [
            ((1024, 1536), 1024, 1, "scaled to 1024×683, 66.7 %"),
            ((480, 640), 1024, 1, "kept at 640×480"),
            ((1024, 1536), 1024, 16, "scaled to 1024×683, 66.7 %; padded to 1024×688"),
            ((481, 640), 0, 8, "kept at 640×481; padded to 640×488"),
            ((6000, 8000), 1000, 1, "scaled to 1000×750, 12.5 %"),
        ],
    )
    def test_wording(self, hw: tuple[int, int], max_side: int, multiple: int, text: str) -> None:
        assert describe_framing(plan_framing(hw, max_side, multiple)) == text


class TestLanczos:
    @settings(deadline=None, max_examples=60)
    @given(SMALL_SIDES, SMALL_SIDES, SMALL_SIDES, SMALL_SIDES)
    def test_is_pillows_filter(self, in_h: int, in_w: int, out_h: int, out_w: int) -> None:
        # The middle of the range, so that what overshoots is seen before it is clamped.
        image = 0.3 + 0.4 * noise(1, 1, in_h, in_w, seed=in_h * 97 + in_w)
        expected = pillow_float(image, (out_h, out_w)).clamp(0, 1)
        assert (resize(image, (out_h, out_w)) - expected).abs().max() <= 1e-5

    @pytest.mark.parametrize(
        ("in_hw", "out_hw"),
        [((17, 4001), (4, 1024)), ((1200, 901), (640, 481)), ((2000, 30), (1000, 15))],
    )
    def test_is_pillows_filter_across_bands(
        self, in_hw: tuple[int, int], out_hw: tuple[int, int]
    ) -> None:
        image = 0.3 + 0.4 * noise(1, 2, *in_hw)
        assert (resize(image, out_hw) - pillow_float(image, out_hw)).abs().max() <= 1e-5

    @pytest.mark.parametrize("side", [64, 341, 450, 700])
    def test_photo_as_pillow_saves_it(self, side: int) -> None:
        image = photo()
        eight_bit = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
        theirs = np.asarray(eight_bit.resize((side, side), Image.Resampling.LANCZOS))
        ours = resize(image, (side, side))[0].permute(1, 2, 0).mul(255).round().numpy()
        difference = np.abs(ours - theirs.astype(np.float32))
        # Pillow rounds between its two passes, which moves a fifth of the values by one.
        assert difference.max() <= 1
        assert difference.mean() < 0.25

    def test_flat_stays_flat(self) -> None:
        for value in (0.0, 0.2, 1.0):
            made = resize(torch.full((1, 3, 301, 203), value), (77, 51))
            assert (made - value).abs().max() <= 1e-6

    def test_more_than_eight_bits_survive(self) -> None:
        ramp = torch.linspace(0.5, 0.501, 3000)[None, None, None].expand(1, 3, 40, -1)
        made = resize(ramp, (20, 1500))
        assert made.unique().numel() > 1000
        assert (made[..., 3:-3].diff(dim=-1) >= 0).float().mean() > 0.98

    def test_stays_in_range(self) -> None:
        checks = (torch.arange(101)[:, None] // 7 + torch.arange(90)[None] // 7) % 2
        made = resize(checks[None, None].float(), (59, 61))
        assert made.min() >= 0
        assert made.max() <= 1
        assert made.max() == 1

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_any_float_type(self, dtype: torch.dtype) -> None:
        image = noise(1, 3, 64, 48).to(dtype)
        made = resize(image, (31, 20))
        assert made.dtype == dtype
        expected = resize(image.float(), (31, 20))
        assert (made.float() - expected).abs().max() <= torch.finfo(dtype).eps + 1e-6

    def test_layout_in_memory_changes_nothing(self) -> None:
        image = noise(2, 3, 120, 90)
        last = image.contiguous(memory_format=torch.channels_last)
        assert torch.allclose(resize(image, (50, 40)), resize(last, (50, 40)), atol=1e-6)

    def test_bands_and_their_memory_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        image = noise(1, 3, 400, 300)
        whole = resize(image, (133, 100))
        monkeypatch.setattr(image_prep, "BAND_BYTES", 300 * 3 * 4 * 30)
        assert (resize(image, (133, 100)) - whole).abs().max() <= 1e-6


class TestFrame:
    @settings(deadline=None, max_examples=60)
    @given(SMALL_SIDES, SMALL_SIDES, st.sampled_from(image_prep.MULTIPLES), st.integers(0, 60))
    def test_padding_is_undone_exactly(
        self, height: int, width: int, multiple: int, max_side: int
    ) -> None:
        image = noise(2, 3, height, width)
        framing = plan_framing((height, width), max_side, multiple)
        framed = frame(image, framing)
        assert framed.shape[-2:] == framing.padded_hw
        assert not framed.isnan().any()
        back = restore_framing(framed, framing)
        assert torch.equal(back, resize(image, framing.scaled_hw) if framing.is_scaled else image)

    def test_border_repeats_the_edge(self) -> None:
        image = noise(1, 3, 5, 6)
        framing = plan_framing((5, 6), 0, 16)
        top, left = framing.offset_yx
        rows = (torch.arange(16) - top).clamp(0, 4)
        columns = (torch.arange(16) - left).clamp(0, 5)
        assert torch.equal(frame(image, framing), image[..., rows, :][..., columns])

    def test_kept_picture_is_bit_equal(self) -> None:
        image = noise(1, 3, 33, 47)
        assert torch.equal(frame(image, plan_framing((33, 47), 1024, 1)), image)

    def test_a_picture_does_not_depend_on_its_batch(self) -> None:
        batch = noise(5, 3, 211, 160)
        framing = plan_framing((211, 160), 100, 16)
        together = frame(batch, framing)
        for index in range(5):
            assert torch.equal(frame(batch[index : index + 1], framing)[0], together[index])

    def test_check_stops_the_work_and_counts_the_bands(self) -> None:
        framing = plan_framing((900, 700), 450, 1)
        calls = []
        frame(noise(1, 3, 900, 700), framing, check=lambda: calls.append(None))
        assert len(calls) == count_bands(framing) > 1

        class StopError(Exception):
            pass

        def stop() -> None:
            raise StopError

        with pytest.raises(StopError):
            frame(noise(1, 3, 900, 700), framing, check=stop)

    def test_memory_grows_with_a_band_not_the_picture(self) -> None:
        framing = plan_framing((6000, 8000), 1024, 1)
        asked = []

        def read(first: int, end: int) -> torch.Tensor:
            asked.append((first, end))
            return torch.zeros(3, end - first, 8000)

        frame_rows(read, framing, torch.empty(3, 768, 1024))
        reach = 3 * 6000 / 768
        largest = max(end - first for first, end in asked)
        assert (largest - reach - 1) * 8000 * 3 * 4 <= image_prep.BAND_BYTES
        assert asked[0][0] == 0
        assert asked[-1][1] == 6000
        assert [first for first, _ in asked[1:]] == [end for _, end in asked[:-1]]

    @example(66, 66, 65)
    @given(SMALL_SIDES, SMALL_SIDES, st.integers(1, 90))
    @settings(deadline=None, max_examples=60)
    def test_every_row_is_asked_for_once(self, height: int, width: int, max_side: int) -> None:
        framing = plan_framing((height, width), max_side, 1)
        asked = []

        def read(first: int, end: int) -> torch.Tensor:
            asked.extend(range(first, end))
            assert end > first
            return torch.zeros(3, end - first, width)

        frame_rows(read, framing, torch.empty(3, *framing.padded_hw))
        assert asked == list(range(height))

    def test_restoring_another_size_is_refused(self) -> None:
        framing = plan_framing((30, 30), 0, 16)
        with pytest.raises(FramingError, match="64×48: expected 32×32"):
            restore_framing(noise(1, 3, 48, 64), framing)


class TestCrop:
    @given(SIDES, SIDES, st.integers(0, 4096), st.sampled_from(image_prep.MULTIPLES))
    def test_sizes(self, height: int, width: int, max_side: int, multiple: int) -> None:
        framing = plan_framing((height, width), max_side, multiple, "crop")
        padded = plan_framing((height, width), max_side, multiple)
        assert framing.scaled_hw == padded.scaled_hw
        sides = zip(framing.scaled_hw, framing.padded_hw, padded.padded_hw, strict=True)
        for axis, (side, out, up) in enumerate(sides):
            if side < multiple:
                assert (out, framing.offset_yx[axis]) == (up, padded.offset_yx[axis])
                continue
            assert out == side - side % multiple > 0
            assert framing.shown_hw[axis] == out
            before = framing.shown_yx[axis]
            assert 0 <= side - out - 2 * before <= 1

    def test_takes_the_middle(self) -> None:
        image = noise(1, 3, 37, 50)
        framing = plan_framing((37, 50), 0, 16, "crop")
        assert torch.equal(frame(image, framing), image[..., 2:34, 1:49])
        assert describe_framing(framing) == "kept at 50×37; cut to 48×32"

    def test_a_side_below_one_multiple_is_padded(self) -> None:
        image = noise(1, 3, 5, 50)
        framing = plan_framing((5, 50), 0, 16, "crop")
        assert framing.padded_hw == (16, 48)
        made = frame(image, framing)
        assert torch.equal(made[..., 5:10, :], image[..., 1:49])
        assert torch.equal(made[..., 0, :], made[..., 5, :])
        assert torch.equal(restore_framing(made, framing), image[..., 1:49])
        assert describe_framing(framing) == "kept at 50×5; cut to 48×5; padded to 48×16"

    @settings(deadline=None, max_examples=40)
    @given(SMALL_SIDES, SMALL_SIDES, st.sampled_from(image_prep.MULTIPLES), st.integers(0, 60))
    def test_is_the_middle_of_the_scaled_picture(
        self, height: int, width: int, multiple: int, max_side: int
    ) -> None:
        image = noise(1, 3, height, width)
        framing = plan_framing((height, width), max_side, multiple, "crop")
        scaled = resize(image, framing.scaled_hw) if framing.is_scaled else image
        (top, left), (rows, columns) = framing.shown_yx, framing.shown_hw
        back = restore_framing(frame(image, framing), framing)
        assert torch.equal(back, scaled[..., top : top + rows, left : left + columns])

    def test_nonsense_is_refused_by_name(self) -> None:
        with pytest.raises(ValueError, match="fit is 'squash'"):
            plan_framing((5, 5), 0, 8, "squash")


class TestRestoreScaled:
    """A picture that another node scaled before its padding is cut off."""

    @settings(deadline=None, max_examples=60)
    @given(SMALL_SIDES, SMALL_SIDES, st.integers(1, 5), st.sampled_from(image_prep.FITS))
    def test_a_whole_factor_is_exact(self, height: int, width: int, factor: int, fit: str) -> None:
        framing = plan_framing((height, width), 0, 16, fit)
        framed = frame(noise(1, 3, height, width), framing)
        larger = framed.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        expected = restore_framing(framed, framing)
        expected = expected.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        assert torch.equal(restore_framing(larger, framing), expected)

    @settings(deadline=None)
    @given(
        st.integers(1, 2000),
        st.integers(1, 2000),
        st.floats(0.3, 4.0),
        st.sampled_from([math.floor, math.ceil, round]),
    )
    def test_any_factor_is_cut_in_proportion(
        self, height: int, width: int, factor: float, rounding: Callable[[float], int]
    ) -> None:
        framing = plan_framing((height, width), 0, 16)
        scaled = [rounding(side * factor) for side in framing.padded_hw]
        back = restore_framing(torch.empty(1, 1, *scaled, device="meta"), framing)
        for side, shown in zip(back.shape[-2:], framing.shown_hw, strict=True):
            # Both ends are rounded, and the picture's own side was.
            assert abs(side - shown * factor) <= 2
            assert side >= 1

    @pytest.mark.parametrize("hw", [(16, 17), (17, 16), (32, 48), (16, 24), (1, 16)])
    def test_other_proportions_are_refused(self, hw: tuple[int, int]) -> None:
        framing = plan_framing((10, 12), 0, 16)
        with pytest.raises(FramingError, match="Next step"):
            restore_framing(noise(1, 3, *hw), framing)

    @pytest.mark.parametrize(
        ("hw", "max_side", "fit", "expected"),
        [
            ((1024, 1536), 1024, "pad", (1024, 1536)),
            ((481, 640), 0, "pad", (481, 640)),
            ((481, 640), 0, "crop", (480, 640)),
            ((1024, 1536), 1024, "crop", (1008, 1536)),
            ((4001, 3), 100, "pad", (4001, 3)),
        ],
    )
    def test_original_size(
        self, hw: tuple[int, int], max_side: int, fit: str, expected: tuple[int, int]
    ) -> None:
        assert plan_framing(hw, max_side, 16, fit).original_hw == expected


def smallest_of_nine() -> RowFilter:
    """Looks one pixel around; exact, so that every difference is a wrong neighbour."""
    return RowFilter(
        2, 8, lambda tile: -functional.max_pool2d(-tile[None, :, 1:-1, 1:-1], 3, 1)[0], 2
    )


class TestFilters:
    @settings(deadline=None, max_examples=60)
    @given(SMALL_SIDES, SMALL_SIDES, st.integers(0, 60), st.sampled_from(image_prep.FITS))
    def test_stand_before_and_after_scaling(
        self, height: int, width: int, max_side: int, fit: str
    ) -> None:
        image = noise(2, 3, height, width)

        def filtered(image_bchw: torch.Tensor) -> torch.Tensor:
            ringed = functional.pad(image_bchw, (1, 1, 1, 1), mode="replicate")
            return -functional.max_pool2d(-ringed, 3, 1)

        framing = plan_framing((height, width), max_side, 16, fit)
        made = frame(image, framing, filters=Filters((smallest_of_nine(),), (smallest_of_nine(),)))
        scaled = filtered(image)
        scaled = filtered(resize(scaled, framing.scaled_hw) if framing.is_scaled else scaled)
        expected = frame(scaled, framing_of_scaled(framing))
        assert (made - expected).abs().max() <= 1e-6

    def test_rows_are_still_asked_for_once(self) -> None:
        framing, asked = plan_framing((300, 40), 120, 1), []

        def read(first: int, end: int) -> torch.Tensor:
            asked.extend(range(first, end))
            return torch.zeros(3, end - first, 40)

        both = Filters((smallest_of_nine(),), (smallest_of_nine(),))
        frame_rows(read, framing, torch.empty(3, *framing.padded_hw), filters=both)
        assert asked == list(range(300))

    def test_their_check_stops_the_work_and_adds_up(self) -> None:
        shares: list[float] = []
        both = Filters((smallest_of_nine(),), (smallest_of_nine(),))
        framing = plan_framing((90, 70), 45, 16)
        frame(noise(1, 3, 90, 70), framing, filters=both, filter_check=shares.append)
        assert len(shares) > 20
        assert sum(shares) == pytest.approx(2)

        class StopError(Exception):
            pass

        def stop(_share: float) -> None:
            raise StopError

        with pytest.raises(StopError):
            frame(noise(1, 3, 90, 70), framing, filters=both, filter_check=stop)


def framing_of_scaled(framing: Framing) -> Framing:
    return Framing(framing.scaled_hw, framing.scaled_hw, framing.padded_hw, framing.offset_yx)
