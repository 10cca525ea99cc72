"""The fast network against a plain one, its windows against the whole, and what it promises."""

from __future__ import annotations

from pathlib import Path

import networks
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import OFFICIAL, PORT, VARIANTS, Flags, network, picture, plain
from realtoon.engine import convolution, dctnet
from realtoon.engine.dctnet import HALO_PX, DCTNet
from realtoon.engine.tiles import Window, plan
from realtoon.weights_loader import dctnet as loader

few = settings(max_examples=10, deadline=None)
each_variant = pytest.mark.parametrize("flags", VARIANTS, ids=networks.names)


class StopError(Exception):
    """What an interrupt raises."""


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.inference_mode():
        yield


def assemble(net: DCTNet, image: torch.Tensor, windows: list[Window]) -> torch.Tensor:
    out = torch.full_like(image, float("nan"))
    for window in windows:
        y0, y1, x0, x1 = window.inner
        out[..., y0:y1, x0:x1] = net.window(image, window, lambda: None)
    return out


@each_variant
@pytest.mark.parametrize("size", [(1, 1), (137, 30), (20, 75)])
def test_every_variant_equals_the_plain_network(flags: Flags, size: tuple[int, int]) -> None:
    net, image = network(flags, dtype=torch.float64), picture(*size, batch=2, dtype=torch.float64)
    expected = plain(flags, net.state_dict(), image)
    assert expected.std() > 0.02
    assert (net(image) - expected).abs().max() < 1e-12
    # The same in single precision, where the fused kernels run. The filter divides by a variance
    # that may be as small as its eps of 0.01: rounding grows by a hundred there.
    assert (net.float()(image.float()) - expected).abs().max() < 5e-5


@few
@given(height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 99))
def test_any_size_equals_the_plain_network(height: int, width: int, seed: int) -> None:
    net = network(seed=seed, dtype=torch.float64)
    image = picture(height, width, seed=seed, dtype=torch.float64)
    got = net(image)
    assert got.shape == image.shape
    assert (got - plain(OFFICIAL, net.state_dict(), image)).abs().max() < 1e-12


def test_the_network_sees_a_difference_between_the_variants() -> None:
    """The comparison above would be empty if a flag did nothing."""
    image = picture(40, 52)
    results = [network(flags)(image) for flags in VARIANTS]
    for index, first in enumerate(results):
        for second in results[index + 1 :]:
            assert (first - second).abs().max() > 1e-3


LONG = (17, 599)


@each_variant
def test_windows_equal_the_whole(flags: Flags) -> None:
    image = picture(*LONG, dtype=torch.float64)
    windows = plan(*LONG, max_area=1, halo=HALO_PX)
    assert len(windows) == 2
    net = network(flags, dtype=torch.float64)
    assert (assemble(net, image, windows) - net(image)).abs().max() < 1e-13
    net, image = net.float(), image.float()
    assert (assemble(net, image, windows) - net(image)).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(549, 14), (14, 549), (547, 552)])
def test_any_plan_equals_the_whole(size: tuple[int, int]) -> None:
    """Edges that are no multiple of 4 or 16 at the end, and a corner that four windows share."""
    net, image = network(), picture(*size)
    windows = plan(*size, max_area=1, halo=HALO_PX)
    assert len(windows) == (4 if min(size) > 500 else 2)
    assert (assemble(net, image, windows) - net(image)).abs().max() <= 1e-5


@pytest.mark.parametrize("flags", [OFFICIAL, PORT], ids=networks.names)
def test_strips_do_not_show(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    net, image = network(flags, dtype=torch.float64), picture(150, 20, dtype=torch.float64)
    monkeypatch.setattr(dctnet, "_STRIP_BYTES_PER_PX", 0)
    monkeypatch.setitem(dctnet._LEAST_STRIP_BYTES, "cpu", 1 << 30)
    whole = net(image)
    for most in (1, 40 * 32 * 128, 64 * 32 * 128):
        monkeypatch.setitem(dctnet._LEAST_STRIP_BYTES, "cpu", most)
        assert (net(image) - whole).abs().max() < 1e-13


def test_the_overlap_of_strips_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    net, image = network(dtype=torch.float64), picture(150, 20, dtype=torch.float64)
    monkeypatch.setattr(dctnet, "_STRIP_BYTES_PER_PX", 0)
    monkeypatch.setitem(dctnet._LEAST_STRIP_BYTES, "cpu", 40 * 32 * 128)
    whole = net(image)
    monkeypatch.setattr(dctnet, "_OVERLAP", 4)
    assert (net(image) - whole).abs().max() > 1e-9


# --- reach ----------------------------------------------------------------------------------------


def impulse_reach(flags: Flags) -> tuple[int, int]:
    """How far an output pixel sees to the left and to the right, measured.

    All weights positive and all else exactly zero: what an input pixel touches cannot cancel and
    cannot drown in rounding, so the response is its reach, pixel by pixel.
    """
    net = network(flags, dtype=torch.float64)
    for value in net.parameters():
        value.copy_(value.abs() / max(1, value[0].numel()) if value.ndim > 1 else 0.0 * value)
    before = behind = 0
    size = 192
    for place in range(96, 100):
        guide = torch.zeros(1, 3, 16, size, dtype=torch.float64)
        guide[..., 8, place] = 1e-3
        # Not through `window`: half a grey added to it would drown the smallest responses.
        drawn = net._oriented(net._draw(net._oriented(guide), lambda: None))
        touched = (drawn != 0).flatten(0, 2).any(0).nonzero()[:, 0]
        before = max(before, int(touched.max()) - place)
        behind = max(behind, place - int(touched.min()))
    return before, behind


def test_the_reach_is_exact() -> None:
    """58 px before and 64 behind for the official network, and the other way round and less for
    others: the halo covers it, and a halo of one stride less than the reach would not."""
    before, behind = impulse_reach(OFFICIAL)
    assert (before, behind) == (58, 64)
    assert behind <= HALO_PX and HALO_PX % 4 == 0


def test_a_halo_below_the_reach_shows() -> None:
    """The comparison with the whole picture sees a halo that is a stride too small."""
    net, image = network(dtype=torch.float64), picture(16, 640, dtype=torch.float64)
    windows = plan(16, 640, max_area=1, halo=60)
    assert (assemble(net, image, windows) - net(image)).abs().max() > 0


@each_variant
def test_no_variant_sees_further_than_the_halo(flags: Flags) -> None:
    assert max(impulse_reach(flags)) <= HALO_PX


@few
@given(
    place=st.integers(0, 319),
    seed=st.integers(0, 99),
    flags=st.sampled_from([OFFICIAL, PORT]),
    turned=st.booleans(),
)
def test_a_change_beyond_the_halo_never_arrives(
    place: int, seed: int, flags: Flags, turned: bool
) -> None:
    """Bit for bit, on random weights, along both axes."""
    net, image = network(flags, seed), picture(320, 16, seed=seed)
    changed = image.clone()
    changed[:, :, place] = 1 - changed[:, :, place]
    if turned:
        image, changed = image.mT, changed.mT
    difference = (net(changed) != net(image)).any(1).any(1 if turned else 2)[0]
    far = (torch.arange(320) - place).abs() > HALO_PX
    assert difference.any() and not difference[far].any()


# --- the parts ------------------------------------------------------------------------------------


@few
@given(
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    height=st.integers(1, 9),
    groups=st.integers(1, 6),
)
def test_the_grouped_kernel_is_a_plain_convolution(
    inputs: int, outputs: int, height: int, groups: int
) -> None:
    weight = torch.randn(outputs, inputs, 7, 7, dtype=torch.float64)
    x = torch.randn(2, inputs, height, 4 * groups, dtype=torch.float64)
    grouped = x.permute(0, 2, 3, 1).reshape(2, height, groups, 4 * inputs).permute(0, 3, 1, 2)
    y = F.conv2d(grouped, dctnet.group_kernel(weight), padding=(3, 1))
    y = y.permute(0, 2, 3, 1).reshape(2, height, 4 * groups, outputs).permute(0, 3, 1, 2)
    assert (y - F.conv2d(x, weight, padding=3)).abs().max() < 1e-12


@few
@given(height=st.integers(1, 9), width=st.integers(1, 9), channels=st.integers(1, 4))
def test_the_guided_filter_is_the_papers(height: int, width: int, channels: int) -> None:
    """Each pixel's mean over the windows that hold it of the best line from guide to picture."""
    guide = torch.rand(1, channels, height, width, dtype=torch.float64) * 2 - 1
    x = torch.rand(1, channels, height, width, dtype=torch.float64) * 2 - 1
    got = dctnet.guided_filter(guide, x)
    for channel in range(channels):
        expected = _filtered(guide[0, channel], x[0, channel])
        assert (got[0, channel] - expected).abs().max() < 1e-12


def test_the_guided_filter_of_a_tall_picture_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes through in bands of rows."""
    guide, x = (torch.rand(2, 3, 101, 7, dtype=torch.float64) * 2 - 1 for _ in range(2))
    assert dctnet._FILTER_ROWS < 101
    banded = dctnet.guided_filter(guide, x)
    assert (banded - networks.guided(guide, x)).abs().max() < 1e-12


def _filtered(guide: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    height, width = x.shape

    def around(y: int, z: int) -> tuple[slice, slice]:
        return slice(max(0, y - 1), y + 2), slice(max(0, z - 1), z + 2)

    slope, offset = torch.zeros_like(x), torch.zeros_like(x)
    for y in range(height):
        for z in range(width):
            g, v = guide[around(y, z)], x[around(y, z)]
            slope[y, z] = (g * v).mean() - g.mean() * v.mean()
            slope[y, z] /= (g * g).mean() - g.mean() ** 2 + 0.01
            offset[y, z] = v.mean() - slope[y, z] * g.mean()
    out = torch.zeros_like(x)
    for y in range(height):
        for z in range(width):
            out[y, z] = slope[around(y, z)].mean() * guide[y, z] + offset[around(y, z)].mean()
    return out


@each_variant
def test_without_the_fused_kernel_the_result_is_the_same(
    flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, image = network(flags), picture(141, 77)
    fused = net(image)
    monkeypatch.setattr(convolution, "_FUSED", None)
    assert (net(image) - fused).abs().max() <= 1e-5


# --- promises -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(17, 40), (137, 93), (288, 160)])
def test_a_pictures_result_does_not_depend_on_its_batch(size: tuple[int, int]) -> None:
    net, images = network(), picture(*size, batch=3)
    together = net(images)
    for index, image in enumerate(images):
        assert torch.equal(net(image[None])[0], together[index])


@settings(max_examples=6, deadline=None)
@given(height=st.integers(1, 900), width=st.integers(1, 24), area=st.sampled_from([1, 10**9]))
def test_steps_counts_the_checks(height: int, width: int, area: int) -> None:
    net, image = network(), picture(height, width)
    for window in plan(height, width, max_area=area, halo=HALO_PX):
        seen: list[None] = []
        net.window(image, window, lambda: seen.append(None))  # noqa: B023
        assert len(seen) == net.steps(window, (height, width))


def test_steps_counts_a_window_that_ends_inside_the_picture() -> None:
    """Only the picture's end is padded, so a window's own size need not be a multiple of 16."""
    net, image = network(), picture(2090, 966)
    window = Window((348, 696, 644, 966), (280, 764, 576, 966))
    seen: list[None] = []
    net.window(image, window, lambda: seen.append(None))
    assert len(seen) == net.steps(window, (2090, 966))


@pytest.mark.parametrize("size", [(61, 64), (64, 61), (71, 83)])
def test_the_built_in_style_inks_no_rim_where_a_picture_is_padded(size: tuple[int, int]) -> None:
    net = DCTNet.with_weights(
        *loader.read(Path(networks.__file__).parents[2] / "assets" / "styles" / "cel.safetensors")
    )
    grey = torch.full((1, 3, *size), 0.6)
    padded, cut = net(grey), net(torch.full((1, 3, 96, 96), 0.6))
    middle = float(padded[..., size[0] // 2, size[1] // 2].mean())
    allowed = float((cut - cut[..., 48, 48].mean()).abs().max()) + 0.02
    assert float((padded - middle).abs().max()) <= allowed


def test_an_exception_from_check_stops_at_once() -> None:
    net, image = network(), picture(300, 24)
    whole = Window((0, 300, 0, 24), (0, 300, 0, 24))
    for allowed in range(net.steps(whole, (300, 24))):
        left = [None] * allowed
        after: list[None] = []

        def check() -> None:
            if not left:  # noqa: B023
                after.append(None)  # noqa: B023
                raise StopError
            left.pop()  # noqa: B023

        with pytest.raises(StopError):
            net(image, check)
        assert len(after) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_input_stays_as_it_is(dtype: torch.dtype) -> None:
    net, image = network(dtype=dtype), picture(33, 50, dtype=dtype)
    for kept in (image, image.contiguous(memory_format=torch.channels_last)):
        before = kept.clone()
        out = net(kept)
        assert torch.equal(kept, before)
        assert out.data_ptr() != kept.data_ptr()
        assert out.min() >= 0 and out.max() <= 1


def test_any_layout_of_the_input_gives_the_same() -> None:
    """ComfyUI's wires are BHWC: the engine sees them through a permuted view."""
    net, image = network(), picture(60, 44)
    wire = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(net(wire), net(image))


def test_the_state_has_the_canonical_names() -> None:
    state = network().state_dict()
    convs = [f"convs.{i}" for i in range(10)]
    blocks = [f"blocks.{i}.conv{j}" for i in range(4) for j in (1, 2)]
    assert set(state) == {
        f"{name}.{part}" for name in convs + blocks for part in ("weight", "bias")
    }
    assert sum(value.numel() for value in state.values()) == 1_467_075


@each_variant
@pytest.mark.parametrize("size", [(21, 33), (140, 16)])
def test_training_gets_the_same_picture_and_the_plain_networks_gradients(
    flags: Flags, size: tuple[int, int]
) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        net = network(flags, dtype=torch.float64).requires_grad_(True)
        image = picture(*size, dtype=torch.float64)
        weights = picture(*size, seed=5, dtype=torch.float64)
        drawn = net(image)
        (drawn * weights).sum().backward()
        state = {k: v.detach().clone().requires_grad_(True) for k, v in net.named_parameters()}
        (plain(flags, state, image) * weights).sum().backward()
        with torch.no_grad():
            quick = net(image)
    assert (drawn.detach() - quick).abs().max() < 1e-12
    for name, value in net.named_parameters():
        expected = state[name].grad
        assert expected is not None and value.grad is not None
        assert (value.grad - expected).abs().max() <= 1e-9 * expected.abs().max(), name
