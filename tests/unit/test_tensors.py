"""What ComfyUI's wires may carry and what becomes of it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine.image_prep import frame_rows, plan_framing, resize

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def load_tensors() -> ModuleType:
    """nodes/_tensors.py by itself: the package around it can only be imported inside ComfyUI."""
    path = Path(__file__).resolve().parents[2] / "nodes" / "_tensors.py"
    spec = importlib.util.spec_from_file_location("realtoon_tensors_alone", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tensors = load_tensors()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class TestPictures:
    @settings(deadline=None, max_examples=80)
    @given(
        st.integers(1, 3),
        st.integers(1, 20),
        st.integers(1, 20),
        st.integers(1, 4),
        st.sampled_from(FLOATS),
        st.sampled_from(sorted(tensors.BACKGROUNDS)),
    )
    def test_anything_becomes_clean_rgb(
        self, batch: int, height: int, width: int, channels: int, dtype: torch.dtype, colour: str
    ) -> None:
        image = (noise(batch, height, width, channels, seed=channels) * 3 - 1).to(dtype)
        image[0, 0, 0, 0] = torch.nan
        made = tensors.to_bchw(image, background=colour)
        assert made.shape == (batch, 3, height, width)
        assert made.dtype == torch.float32
        assert made.min() >= 0
        assert made.max() <= 1
        assert (made[0, :, 0, 0] == tensors.BACKGROUNDS[colour]).all()

    def test_clean_rgb_is_not_copied(self) -> None:
        image = noise(2, 7, 5, 3)
        made = tensors.to_bchw(image)
        assert made.data_ptr() == image.data_ptr()
        assert torch.equal(made, image.permute(0, 3, 1, 2))

    def test_the_input_is_never_written_to(self) -> None:
        image = noise(2, 7, 5, 3) * 2
        image[1, 2, 3, 0] = torch.nan
        before = image.clone()
        tensors.to_bchw(image)
        assert torch.equal(image.nan_to_num(9), before.nan_to_num(9))

    def test_a_late_dirty_picture_keeps_the_clean_ones(self) -> None:
        image = noise(3, 7, 5, 3)
        image[2, 6, 4, 1] = 1.5
        made = tensors.to_bchw(image)
        assert torch.equal(made, image.clamp(0, 1).permute(0, 3, 1, 2))

    @pytest.mark.parametrize("channels", [1, 2])
    def test_grey_becomes_rgb(self, channels: int) -> None:
        image = noise(1, 4, 6, channels)
        if channels == 2:
            image[..., 1] = 1
        made = tensors.to_bchw(image)
        assert torch.equal(made, image[..., :1].permute(0, 3, 1, 2).expand(-1, 3, -1, -1))

    def test_one_picture_without_a_batch(self) -> None:
        assert tensors.to_bchw(noise(4, 6, 3)).shape == (1, 3, 4, 6)

    @pytest.mark.parametrize(("colour", "value"), [("white", 1.0), ("black", 0.0), ("grey", 0.5)])
    def test_alpha_meets_the_background(self, colour: str, value: float) -> None:
        image = torch.zeros(1, 1, 3, 4)
        image[..., :3] = 0.2
        image[0, 0, :, 3] = torch.tensor([0.0, 0.25, 1.0])
        made = tensors.to_bchw(image, background=colour)[0, 0, 0]
        expected = torch.tensor([value, 0.25 * 0.2 + 0.75 * value, 0.2])
        assert torch.allclose(made, expected, atol=1e-7)
        assert made[0] == value
        assert made[2] == image[0, 0, 2, 0]

    @pytest.mark.parametrize("hidden", [0.0, 1.0])
    @pytest.mark.parametrize("colour", ["white", "black"])
    def test_no_fringe_from_what_lies_under_transparency(self, hidden: float, colour: str) -> None:
        """Scaling before flattening would mix the hidden colour into the cut-out's edge."""
        height, width = 90, 120
        alpha = torch.zeros(height, width)
        alpha[20:70, 31:83] = 1
        image = torch.full((1, height, width, 4), hidden)
        image[0, 20:70, 31:83, :3] = torch.tensor([0.8, 0.4, 0.2])
        image[..., 3] = alpha
        pictures = tensors.Pictures(image, background=colour)
        framing = plan_framing(pictures.hw, 45, 1)
        out = torch.empty(3, *framing.padded_hw)
        frame_rows(pictures.reader(0), framing, out)
        pure = torch.full((1, 3, height, width), tensors.BACKGROUNDS[colour])
        pure[0, :, 20:70, 31:83] = torch.tensor([0.8, 0.4, 0.2])[:, None, None]
        assert (out - resize(pure, framing.scaled_hw)[0]).abs().max() <= 1e-6

    def test_infinities_are_clamped(self) -> None:
        image = torch.full((1, 1, 2, 3), torch.inf)
        image[0, 0, 1] = -torch.inf
        assert tensors.to_bchw(image)[0, 0, 0].tolist() == [1.0, 0.0]


class TestNotes:
    def notes(self, image: torch.Tensor, **kwargs: object) -> list[str]:
        pictures = tensors.Pictures(image, **kwargs)
        tensors.clean_bchw(pictures)
        return pictures.notes()

    def test_a_clean_picture_has_none(self) -> None:
        assert self.notes(noise(2, 5, 5, 3)) == []
        assert self.notes(torch.ones(1, 5, 5, 4)) == []
        assert self.notes(noise(1, 5, 5, 3) * 1.0005) == []

    def test_each_mending_is_named(self) -> None:
        image = noise(1, 5, 5, 4)
        image[0, 1, 1, 0] = torch.nan
        image[0, 2, 2, 3] = torch.nan
        image[0, 3, 3, 1] = 1.3
        assert self.notes(image, background="grey") == [
            "alpha onto grey",
            "2 broken pixels (NaN) filled with grey",
            "values outside 0–1 clamped",
        ]

    def test_rows_that_the_filter_shares_are_counted_once(self) -> None:
        image = noise(1, 300, 200, 3)
        image[0, ::10, 7, 0] = torch.nan
        pictures = tensors.Pictures(image)
        framing = plan_framing(pictures.hw, 100, 1)
        frame_rows(pictures.reader(0), framing, torch.empty(3, *framing.padded_hw))
        assert pictures.notes() == ["30 broken pixels (NaN) filled with white"]


class TestMasks:
    def test_load_image_alpha(self) -> None:
        image = torch.full((1, 4, 4, 3), 0.3)
        mask = torch.zeros(1, 4, 4)
        mask[0, 0] = 1
        made = tensors.to_bchw(image, mask)
        assert (made[0, :, 0] == 1).all()
        assert torch.allclose(made[0, :, 1:], torch.tensor(0.3))

    @pytest.mark.parametrize("shape", [(64, 64), (1, 64, 64), (3, 64, 64), (1, 500, 3)])
    def test_all_zero_is_opaque_at_any_size(self, shape: tuple[int, ...]) -> None:
        image = noise(2, 30, 70, 3)
        assert tensors.to_bchw(image, torch.zeros(shape)).data_ptr() == image.data_ptr()

    def test_placeholder(self) -> None:
        assert tensors.is_placeholder(torch.zeros(1, 64, 64))
        assert not tensors.is_placeholder(torch.zeros(1, 64, 65))
        assert not tensors.is_placeholder(torch.eye(64)[None])

    def test_both_alphas_multiply(self) -> None:
        image = torch.zeros(1, 2, 2, 4)
        image[..., 3] = 0.5
        made = tensors.to_bchw(image, torch.full((1, 2, 2), 0.5))
        assert torch.allclose(made, torch.tensor(0.75))

    @pytest.mark.parametrize("shape", [(8, 6), (1, 8, 6), (3, 8, 6), (3, 1, 8, 6), (3, 8, 6, 1)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.bool])
    def test_every_layout(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        mask = (noise(*shape) > 0.5).to(dtype)
        made = tensors.fit_mask(mask, 3, (8, 6))
        assert made.shape == (1 if shape[0] in (1, 8) else 3, 1, 8, 6)
        assert made.dtype == torch.float32
        assert torch.equal(made.flatten(), mask.flatten().float())

    @given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
    @settings(deadline=None, max_examples=40)
    def test_same_picture_at_another_size_fits(self, height: int, width: int, side: int) -> None:
        scaled = plan_framing((height, width), side, 1).scaled_hw
        assert tensors.fit_mask(torch.ones(1, *scaled), 1, (height, width)).min() > 0.999
        assert tensors.fit_mask(torch.ones(1, height, width), 1, scaled).min() > 0.999

    def test_another_aspect_is_refused(self) -> None:
        with pytest.raises(
            tensors.InputError, match=r"mask: expected 100×50 .* got 64×64.*Next step"
        ):
            tensors.to_bchw(noise(1, 50, 100, 3), torch.ones(1, 64, 64))

    def test_number_of_masks_must_fit(self) -> None:
        with pytest.raises(tensors.InputError, match="1 mask or 3, one for each picture, got 2"):
            tensors.fit_mask(torch.ones(2, 5, 5), 3, (5, 5))

    def test_nan_is_transparent(self) -> None:
        mask = torch.zeros(1, 2, 2)
        mask[0, 0, 0] = torch.nan
        made = tensors.to_bchw(torch.zeros(1, 2, 2, 3), mask)
        assert made[0, 0].tolist() == [[1.0, 0.0], [0.0, 0.0]]


class TestRefusals:
    @pytest.mark.parametrize(
        ("image", "got"),
        [
            (torch.zeros(1, 4, 4, 5), r"shape \(1, 4, 4, 5\)"),
            (torch.zeros(4, 4), r"shape \(4, 4\)"),
            (torch.zeros(1, 2, 4, 4, 3), r"shape \(1, 2, 4, 4, 3\)"),
            (torch.zeros(0, 4, 4, 3), r"shape \(0, 4, 4, 3\)"),
            (torch.zeros(1, 0, 4, 3), r"shape \(1, 0, 4, 3\)"),
            (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), "torch.uint8"),
            (torch.zeros(1, 4, 4, 3, dtype=torch.complex64), "torch.complex64"),
            ([1], "list"),
        ],
    )
    def test_what_is_no_picture(self, image: object, got: str) -> None:
        with pytest.raises(
            tensors.InputError, match=rf"image: expected .* got .*{got}.*Next step: "
        ):
            tensors.Pictures(image)

    @pytest.mark.parametrize(
        ("mask", "got"),
        [
            (torch.ones(4, dtype=torch.int64), "torch.int64"),
            (torch.ones(4), r"shape \(4,\)"),
            (torch.ones(2, 4, 4, 3), r"shape \(2, 4, 4, 3\)"),
            (torch.ones(0, 4, 4), r"shape \(0, 4, 4\)"),
            ("x", "str"),
        ],
    )
    def test_what_is_no_mask(self, mask: object, got: str) -> None:
        with pytest.raises(tensors.InputError, match=rf"mask: expected .* got .*{got}"):
            tensors.to_bchw(torch.zeros(1, 4, 4, 3), mask)

    def test_unknown_background(self) -> None:
        with pytest.raises(tensors.InputError, match="white, black, grey, got 'pink'"):
            tensors.Pictures(torch.zeros(1, 4, 4, 3), background="pink")


class TestWayOut:
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_wire_type(self, dtype: torch.dtype) -> None:
        expected = torch.float16 if dtype == torch.float16 else torch.float32
        assert tensors.Pictures(torch.zeros(1, 1, 1, 3, dtype=dtype)).wire_dtype == expected

    def test_room_turns_into_an_image_without_a_copy(self) -> None:
        room = tensors.new_bchw(tensors.Pictures(noise(2, 5, 4, 3).half()), (9, 8))
        wire = tensors.to_bhwc(room)
        assert room.shape == (2, 3, 9, 8)
        assert wire.dtype == torch.float16
        assert wire.is_contiguous()
        assert wire.data_ptr() == room.data_ptr()

    def test_mask_round_trip(self) -> None:
        mask = noise(2, 5, 4)
        assert torch.equal(tensors.mask_to_wire(tensors.fit_mask(mask, 2, (5, 4))), mask)
