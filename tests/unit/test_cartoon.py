"""The pipeline around the network: windows, heads, mask, and what must stay untouched."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import network, picture
from realtoon.engine import cartoon
from realtoon.engine.cartoon import HEAD_PX, Look, Style, draw, draw_heads, plan_windows
from realtoon.engine.faces import Face
from realtoon.engine.faces.align import DCTNET_TEMPLATE_288
from realtoon.engine.faces.patch import Patch
from realtoon.engine.tiles import Window
from torch import Tensor


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.inference_mode():
        yield


def face(x: float, y: float, size: float, turn: float = 0.0) -> Face:
    """A face around (x, y). size: px of the side of its head crop; turn: radians."""
    points = (DCTNET_TEMPLATE_288 - 144) * (size / HEAD_PX)
    spin = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    points = points @ spin.double() + torch.tensor([x, y], dtype=torch.float64)
    half = size / 4
    return Face((x - half, y - half, x + half, y + half), 0.99, points.float())


def nothing() -> None:
    """Never interrupted."""


def run(
    image: Tensor,
    faces: Sequence[Sequence[Face]] | None = None,
    look: Look = Look(1.0),  # noqa: B008
    mask: Tensor | None = None,
    area: int = 10**9,
) -> Tensor:
    faces = faces or [[] for _ in image]
    net = network()
    heads = [draw_heads(net, image[i : i + 1], f, nothing) for i, f in enumerate(faces)]
    windows = plan_windows(image.shape[2], image.shape[3], look, area)
    out = torch.full_like(image, float("nan"))
    draw(net, image, heads, look, mask, windows, out, nothing)
    return out


def difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def test_without_a_face_the_network_alone_speaks() -> None:
    image = picture(90, 77)
    assert torch.equal(run(image), network()(image))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (5, 3), (17, 801)])
@pytest.mark.parametrize("look", [Look(1.0), Look(0.6, 1.5)], ids=str)
def test_any_size_comes_back(size: tuple[int, int], look: Look) -> None:
    image = picture(*size)
    faces = [face(size[1] / 2, size[0] / 2, 60.0)]
    out = run(image, [faces], look, torch.full((1, 1, *size), 0.5))
    assert out.shape == image.shape
    assert out.isfinite().all() and out.min() >= 0 and out.max() <= 1


BORDER = 320
"""Where the windows of a 640 px wide picture meet."""


@pytest.mark.parametrize("look", [Look(1.0), Look(0.75, 2.0), Look(0.9, 0.0)], ids=str)
@pytest.mark.parametrize("size", [70.0, 200.0, 330.0])
def test_windows_do_not_show_in_a_face_that_straddles_them(look: Look, size: float) -> None:
    """Small heads are shrunk into the picture: a window must not smooth only what it sees."""
    image = picture(64, 640)
    faces = [[face(BORDER + 7, 32, size, 0.3), face(BORDER - 60, 20, size / 2, -0.8)]]
    mask = torch.linspace(-0.2, 1.2, 640).clamp(0, 1).expand(1, 1, 64, 640)
    windows = plan_windows(64, 640, look, 1)
    assert [w.inner[3] for w in windows] == [BORDER, 640]
    whole, cut = (run(image, faces, look, mask, area) for area in (10**9, 1))
    # A sampling position inside the head is rounded to float32 anew in every window.
    assert difference(whole, cut) < 2e-4
    without = run(image, [[]], look, mask)
    assert difference(whole, without) > 0.01


def test_the_picture_stays_outside_the_heads() -> None:
    """Bit for bit, and without a line where the crop's rectangle ends."""
    image = picture(200, 300)
    faces = [face(150, 100, 120.0, 0.4)]
    mask = torch.zeros(200, 300)
    cartoon.add_face_masks(faces, mask)
    whole, plain = run(image, [faces]), run(image)
    changed = (whole != plain).any(1)[0]
    assert changed.any()
    assert not changed[mask == 0].any()
    assert mask.max() == 1 and mask.min() == 0
    # What the mask calls a face is drawn as one, nearly everywhere.
    assert changed[mask > 0.1].float().mean() > 0.95


def test_a_head_comes_back_where_it_was() -> None:
    """A head model that changes nothing must give the picture back, in place and upright."""
    image = torch.nn.functional.avg_pool2d(picture(260, 260), 9, 1)
    for size, turn in ((288.0, 0.0), (180.0, 0.5), (330.0, -2.5)):
        heads = draw_heads(_Same(), image, [face(126, 126, size, turn)], nothing)
        pasted = image.clone()
        h, w = image.shape[2:]
        cartoon._paste(heads[0], pasted, Window((0, h, 0, w), (0, h, 0, w)))
        # Upstream's white border mixes into the outermost pixels where a head reaches out.
        inside = (..., slice(3, -3), slice(3, -3))
        assert difference(pasted[inside], image[inside]) < (0.02 if turn else 1e-4)


class _Same(torch.nn.Module):
    def forward(self, image: Tensor, check=None) -> Tensor:
        return image


@settings(max_examples=12, deadline=None)
@given(
    x=st.floats(-400, 600), y=st.floats(-400, 500), size=st.floats(8, 900), turn=st.floats(-4, 4)
)
def test_a_face_anywhere_is_safe(x: float, y: float, size: float, turn: float) -> None:
    """Far outside, tiny, larger than the picture, upside down."""
    image = picture(64, 96)
    heads = draw_heads(_Same(), image, [face(x, y, size, turn)], nothing)
    out = image.clone()
    for window in (Window((0, 64, 0, 40), (0, 64, 0, 96)), Window((0, 64, 40, 96), (0, 64, 0, 96))):
        part = out[..., window.inner[2] : window.inner[3]]
        cartoon._paste(heads[0], part, window)
    assert out.isfinite().all() and out.min() > -1e-5 and out.max() < 1 + 1e-5
    mask = torch.zeros(64, 96)
    cartoon.add_face_masks([face(x, y, size, turn)], mask)
    assert mask.min() >= 0 and mask.max() <= 1 + 1e-6
    unseen = (out == image).all(1)[0] | (mask > 0)
    assert unseen.all()


def test_larger_faces_are_drawn_over_smaller_ones() -> None:
    image = picture(100, 100)
    small, large = face(50, 50, 60.0), face(50, 50, 90.0)
    heads = draw_heads(_Same(), image, [large, small], nothing)
    scales = [torch.linalg.det(head.to_patch[:, :2]) for head in heads]
    spans = [head.drawn.shape[-1] / math.sqrt(scale) for head, scale in zip(heads, scales)]  # noqa: B905
    assert spans == sorted(spans) and spans[0] < spans[1]
    first, second = (run(image, [order]) for order in ([small, large], [large, small]))
    assert torch.equal(first, second)


@pytest.mark.parametrize("look", [Look(0.75), Look(0.75, 1.5)], ids=str)
def test_the_mask_protects_bit_for_bit(look: Look) -> None:
    image = picture(90, 400)
    faces = [[face(200, 45, 80.0)]]
    mask = torch.zeros(1, 1, 90, 400)
    mask[..., 200:] = 1
    out, free = run(image, faces, look, mask), run(image, faces, look)
    assert torch.equal(out[..., :200], image[..., :200])
    assert torch.equal(out[..., 200:], free[..., 200:])


def test_a_batch_equals_one_by_one() -> None:
    images = picture(80, 100, batch=3)
    faces = [[face(40, 40, 70.0)], [], [face(70, 30, 50.0), face(20, 60, 50.0)]]
    masks = torch.rand(3, 1, 80, 100)
    look = Look(0.8, 1.3)
    together = run(images, faces, look, masks)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(run(images[one], faces[one], look, masks[one])[0], together[i])


def test_the_alpha_is_upstreams() -> None:
    """An ellipse of 0.4 by 0.49 of the side, the distance to its outside over 0.15 of the side."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    import numpy as np

    rows, columns = np.mgrid[:HEAD_PX, :HEAD_PX] - HEAD_PX // 2
    inside = (rows / int(0.49 * HEAD_PX)) ** 2 + (columns / int(0.4 * HEAD_PX)) ** 2 <= 1
    distance = ndimage.distance_transform_edt(inside)
    expected = np.minimum(distance / (0.15 * HEAD_PX), 1.0)
    assert np.abs(cartoon.head_alpha()[0, 0].numpy() - expected).max() < 1e-5


def test_the_alpha_fades_out_before_the_crop_ends() -> None:
    alpha = cartoon.head_alpha()[0, 0]
    for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
        assert not edge.any()
    assert alpha[144, 144] == 1


def test_a_head_is_kept_no_larger_than_the_picture_shows_it() -> None:
    for size in (40.0, 100.0, 287.0, 288.0, 900.0):
        [head] = draw_heads(_Same(), picture(40, 40), [face(20, 20, size)], nothing)
        side = head.drawn.shape[-1]
        assert head.drawn.shape == (1, 4, side, side)
        assert abs(side - min(size, HEAD_PX)) <= 1.01
        # Its corners are where the face's are, to half a pixel of the shrunk crop.
        centre = head.to_patch[:, :2] @ torch.tensor([20.0, 20.0]).double() + head.to_patch[:, 2]
        assert (centre - (side / 2 - 0.5)).abs().max() < 0.6


def test_count_steps_is_what_the_bar_gets() -> None:
    net = network()
    image, faces = picture(40, 700), [[face(100, 20, 50.0), face(500, 20, 50.0)]]
    look = Look(0.5, 1.2)
    windows = plan_windows(40, 700, look, 1)
    seen: list[int] = []

    def check() -> None:
        seen.append(1)

    heads: list[list[Patch]] = [draw_heads(net, image, faces[0], check)]
    draw(net, image, heads, look, None, windows, torch.empty_like(image), check)
    assert len(windows) > 1
    assert len(seen) == cartoon.count_steps(Style(net, net), windows, (40, 700), 2)
