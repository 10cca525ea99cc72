"""What lies around GPEN's network: squares, masks, detail, and the way back into the picture."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine import restore
from realtoon.engine.faces import Face
from realtoon.engine.faces.align import gpen_template, invert
from realtoon.engine.restore import Blend, FaceSum, Restored, TileSum
from torch import Tensor

SIZE = 64
few = settings(max_examples=25, deadline=None)


def nothing() -> None:
    pass


def soft(height: int, width: int, seed: int = 0) -> Tensor:
    """A picture of soft areas, so that sampling it twice changes little."""
    draw = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 5, 5, generator=draw)
    return torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)


def face(x: float, y: float, side: float, degrees: float = 0.0) -> Face:
    """A face of about ``side`` px around (x, y), as upright as the template but for a turn."""
    points = gpen_template(1) - gpen_template(1).mean(0)
    turn = math.radians(degrees)
    matrix = torch.tensor(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64
    )
    points = (points @ matrix.T) * 2 * side + torch.tensor([x, y], dtype=torch.float64)
    half = side / 2
    return Face((x - half, y - half, x + half, y + half), 1.0, points.float())


def found(one: Face, image: Tensor, colour: float | None = None, size: int = SIZE) -> Restored:
    """A "restored" face: the picture's own, or of one colour."""
    to_square = restore.face_square(one, size)
    square = restore.cut(image, to_square, size)
    if colour is not None:
        square = torch.full_like(square, colour)
    return Restored(to_square, square, restore.face_mask(size))


def paste(image: Tensor, faces: list[Restored], blend: Blend) -> tuple[Tensor, Tensor]:
    out, mask = image.clone(), torch.zeros(image.shape[2:])
    total = FaceSum(image, blend, out, mask)
    for each in faces:
        total.add(each, restore.finished(each, image, blend.skin_smooth), nothing)
    return out, mask


# --- alignment ------------------------------------------------------------------------------------


def test_the_template_is_the_published_one() -> None:
    expected = torch.tensor(
        [
            [202.041, 242.884],
            [309.430, 242.290],
            [256.077, 303.959],
            [211.960, 366.828],
            [300.891, 366.336],
        ],
        dtype=torch.float64,
    )
    assert (gpen_template(512) - expected).abs().max() < 1e-3
    assert torch.allclose(gpen_template(1024), 2 * gpen_template(512))


@pytest.mark.parametrize("degrees", [0, 31, 90, 180])
def test_a_tilted_face_is_cut_upright(degrees: float) -> None:
    image = soft(200, 240)
    tilted = face(120, 100, 50, degrees)
    to_square = restore.face_square(tilted, SIZE)
    upright = tilted.points.double() @ to_square[:, :2].T + to_square[:, 2]
    assert (upright - gpen_template(SIZE)).abs().max() < 1e-3
    assert restore.cut(image, to_square, SIZE).shape == (1, 3, SIZE, SIZE)


def test_beyond_the_border_the_edge_repeats() -> None:
    image = torch.full((1, 3, 60, 60), 0.7)
    square = restore.cut(image, restore.face_square(face(0, 0, 40), SIZE), SIZE)
    assert (square - 0.7).abs().max() < 1e-6


# --- masks ----------------------------------------------------------------------------------------


def test_the_mask_is_whole_inside_and_nothing_at_the_border() -> None:
    mask = restore.face_mask(512)[0, 0]
    assert mask.shape == (512, 512)
    assert float(mask[256, 256]) == pytest.approx(1.0, abs=1e-6)
    assert float(mask[60:452, 256].min()) > 0.99
    assert float(torch.cat((mask[:10].flatten(), mask[-10:].flatten())).max()) < 1e-2
    # Rounded: a corner shows less than the middle of a side at the same distance from the border.
    assert float(mask[40, 40]) < 0.2 < float(mask[40, 256])
    assert torch.allclose(mask, mask.flip(0)) and torch.allclose(mask, mask.T)


def test_soften_is_the_published_double_blur() -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    import numpy as np

    drawn = np.zeros((512, 512), np.float32)
    drawn[100:400, 120:300] = 1
    drawn[:60, :60] = 1
    expected = drawn.copy()
    expected[:26] = expected[-26:] = 0
    expected[:, :26] = expected[:, -26:] = 0
    for _ in range(2):
        expected = cv2.GaussianBlur(expected, (101, 101), 4)
    got = restore.soften(torch.from_numpy(drawn)[None, None])[0, 0].numpy()
    assert np.abs(got - expected).max() < 4e-3


# --- detail ---------------------------------------------------------------------------------------


def pores(seed: int = 0) -> Tensor:
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(seed))
    return (soft(256, 256) * 0.5 + 0.25 + 0.03 * noise).clamp(0, 1)


def fine(x: Tensor) -> Tensor:
    return x - restore._blur(x, 1.5)


def test_skin_smooth_1_is_the_networks_own_skin() -> None:
    square, source = soft(256, 256), pores()
    assert restore.with_detail(square, source, 1.0) is square


def test_lost_detail_comes_back_in_proportion() -> None:
    source = pores()
    square = restore._blur(source, 3.0)
    all_of_it = restore.with_detail(square, source, 0.0)
    half = restore.with_detail(square, source, 0.5)
    energy = [float(fine(x).square().mean()) for x in (square, half, all_of_it, source)]
    assert energy[0] < energy[1] < energy[2] <= energy[3] * 1.05
    assert energy[2] > 0.5 * energy[3]
    # And it is the source's own, not noise of the same strength.
    match = float((fine(all_of_it) * fine(source)).mean()) / math.sqrt(energy[2] * energy[3])
    assert match > 0.9


def test_detail_that_is_there_is_not_added_twice() -> None:
    source = pores()
    assert (restore.with_detail(source, source, 0.0) - source).abs().max() < 5e-3


def test_a_blurred_source_takes_nothing_away() -> None:
    square = pores()
    blurred = restore._blur(square, 4.0)
    assert (restore.with_detail(square, blurred, 0.0) - square).abs().max() < 5e-3


# --- paste ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [(120, 90), (4, 6), (236, 150), (380, 90)])
@pytest.mark.parametrize("degrees", [0, 25])
def test_a_face_that_is_not_changed_leaves_the_picture(
    where: tuple[int, int], degrees: int
) -> None:
    image = soft(180, 240)
    one = found(face(*where, 60, degrees), image, size=256)
    out, mask = paste(image, [one], Blend())
    assert (out - image).abs().max() < 0.02
    assert bool((mask > 0).any()) == (where != (380, 90))


@pytest.mark.parametrize("side", [14, 60, 150])
def test_outside_the_mask_every_bit_stays(side: int) -> None:
    image = torch.rand(1, 3, 180, 240)
    out, mask = paste(image, [found(face(120, 90, side), image, 0.5)], Blend(skin_smooth=0.3))
    outside = mask == 0
    assert torch.equal(out[..., outside], image[..., outside])
    assert not torch.equal(out[..., ~outside], image[..., ~outside])
    assert float(mask[90, 120]) > 0.99


def test_strength_is_a_share() -> None:
    image = torch.zeros(1, 3, 120, 120)
    for strength in (0.25, 1.0):
        out, mask = paste(image, [found(face(60, 60, 60), image, 1.0)], Blend(strength))
        assert torch.allclose(out[0, 0], mask * strength, atol=1e-4)


def test_where_the_mask_says_so_texture_stays_bit_for_bit() -> None:
    image = torch.rand(1, 3, 120, 120)
    keep = torch.zeros(1, 1, 120, 120)
    keep[..., :60] = 1
    out, mask = paste(image, [found(face(60, 60, 60), image, 0.5)], Blend(keep=keep))
    assert torch.equal(out[..., :60], image[..., :60])
    assert not torch.equal(out[..., 60:], image[..., 60:])
    assert bool((mask[:, :60] > 0).any())


def test_where_faces_overlap_the_larger_mask_wins_in_any_order() -> None:
    image = torch.rand(1, 3, 160, 200)
    faces = [
        found(face(80, 80, 60), image, 0.1),
        found(face(110, 84, 50, 20), image, 0.9),
        found(face(95, 60, 30), image, 0.5),
    ]
    first, mask = paste(image, faces, Blend())
    again, same = paste(image, faces[::-1], Blend())
    # A pixel at the same distance from two middles, to the last bit, is the first one's.
    assert int(((first - again).abs() > 1e-6).any(1).sum()) <= 3
    assert torch.equal(mask, same)
    masks = []
    for each in faces:
        masks.append(paste(image, [each], Blend())[1])
    assert torch.equal(mask, torch.stack(masks).amax(0))
    # One composite: in the middle of a face no other one shines through.
    assert float((first[0, :, 80, 80] - 0.1).abs().max()) < 1e-5


def test_a_large_face_goes_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    from realtoon.engine.faces import patch

    image = soft(150, 170)
    one = found(face(80, 80, 90), image, 0.3)
    whole, _ = paste(image, [one], Blend())
    monkeypatch.setattr(patch, "_BAND_PX", 700)
    seen: list[None] = []
    out, mask = image.clone(), torch.zeros(150, 170)
    FaceSum(image, Blend(), out, mask).add(one, one.square, lambda: seen.append(None))
    assert len(seen) > 10
    assert torch.equal(out, whole)


# --- tiles ----------------------------------------------------------------------------------------


def tiled(image: Tensor, size: int, tile: int, overlap: int, blend: Blend | None = None) -> Tensor:
    hw = (image.shape[2], image.shape[3])
    total = TileSum(hw)
    for to_square in restore.tile_squares(*hw, size, tile, overlap):
        square = restore.cut(image, to_square, size)
        shown = restore.tile_mask(to_square, size, hw, overlap)
        total.add(Restored(to_square, square, shown), square, nothing)
    out = torch.full_like(image, math.nan)
    total.paste(image, blend or Blend(), out)
    return out


@few
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([32, 64, 100]),
    st.integers(0, 31),
)
def test_tiles_that_are_not_changed_are_the_picture(
    height: int, width: int, tile: int, overlap: int
) -> None:
    image = torch.rand(1, 3, height, width)
    out = tiled(image, tile, tile, overlap)
    assert (out - image).abs().max() < 1e-3


@pytest.mark.parametrize(("size", "tile"), [(64, 32), (64, 128)])
def test_tiles_of_another_size_than_the_network(size: int, tile: int) -> None:
    image = soft(150, 230)
    assert (tiled(image, size, tile, 16) - image).abs().max() < 0.02


@few
@given(st.integers(1, 5000), st.integers(16, 600), st.data())
def test_tiles_cover_all_and_overlap_enough(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1 if length < 2000 else tile // 2))
    squares = restore.tile_squares(length, 1, 64, tile, overlap)
    tops = [float(invert(each)[1, 2]) + 0.5 - 0.5 * tile / 64 for each in squares]
    assert tops[0] <= 1e-6
    assert tops[-1] + tile >= length - 1e-6
    for a, b in zip(tops, tops[1:], strict=False):
        assert a < b <= a + tile - overlap + 0.5 + 1e-6
    if length > tile:
        assert abs(tops[-1] + tile - length) < 1e-6


def test_an_overlap_that_leaves_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap_px: expected 0 to 63, got 64"):
        restore.tile_squares(100, 100, 64, 64, 64)


def test_one_tile_fades_into_the_next() -> None:
    """Tiles of different colours: no step anywhere is larger than the ramp's."""
    hw = (64, 112)
    total = TileSum(hw)
    for colour, to_square in enumerate(restore.tile_squares(*hw, 64, 64, 16)):
        square = torch.full((1, 3, 64, 64), float(colour))
        total.add(
            Restored(to_square, square, restore.tile_mask(to_square, 64, hw, 16)), square, nothing
        )
    out = torch.zeros(1, 3, *hw)
    total.paste(out.clone(), Blend(), out)
    steps = out[0, 0].diff(dim=1).abs()
    assert float(steps.max()) < 0.1
    assert (out[0, 0, :, :40] == 0).all()
    assert (out[0, 0, :, 72:] - 1).abs().max() < 1e-6


def test_a_network_sees_and_gives_its_own_range() -> None:
    seen: list[Tensor] = []

    def network(squares: Tensor) -> Tensor:
        seen.append(squares.clone())
        return squares * 3

    squares = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    out = restore.run(network, squares.clone())
    assert seen[0].flatten().tolist() == [-1.0, 0.0, 1.0]
    assert out.flatten().tolist() == [0.0, 0.5, 1.0]
