"""The fast generator against a plain one, batches against single faces, and what it promises."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import gpen_plain
import gpen_weights
import pytest
import torch
from gpen_plain import plain
from gpen_weights import SMALL, TINY
from realtoon.engine import convolution, gpen
from realtoon.engine.gpen import GPEN, working_bytes
from realtoon.weights_loader.gpen import GPENConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TINY_512 = GPENConfig(512, (16, 16, 16, 16, 8, 8, 8, 4))
HALVES = [torch.float16, torch.bfloat16]
each_half = pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: str(dtype)[6:])
each_size = pytest.mark.parametrize("config", [TINY, TINY_512], ids=lambda config: config.size)


class StopError(Exception):
    """What an interrupt raises."""


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.inference_mode():
        yield


@cache
def weights(config: GPENConfig = TINY, seed: int = 0) -> Mapping[str, Tensor]:
    return MappingProxyType(gpen_weights.state(config, seed))


@cache
def network(config: GPENConfig = TINY, seed: int = 0, dtype: torch.dtype = torch.float32) -> GPEN:
    return GPEN.with_weights(config, weights(config, seed), dtype)


def faces(size: int, batch: int = 1, seed: int = 0) -> Tensor:
    """(B,3,S,S) in [-1,1]: blocks that reach the deepest level, and grain. No two alike."""
    draw = torch.Generator().manual_seed(seed)
    blocks = torch.rand(batch, 3, 16, 16, generator=draw)
    for axis in (2, 3):
        blocks = blocks.repeat_interleave(size // 16, axis)
    grain = torch.rand(batch, 3, size, size, generator=draw)
    return (0.7 * blocks + 0.3 * grain) * 2 - 1


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def psnr(got: Tensor, expected: Tensor) -> float:
    """Decibels, over the range of what was expected."""
    peak = float(expected.max() - expected.min())
    error = (got.double() - expected.double()).square().mean()
    return float(10 * torch.log10(peak**2 / error))


# --- the same numbers -----------------------------------------------------------------------------


@each_size
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_plain_network(config: GPENConfig, batch: int) -> None:
    tensors, given = weights(config, seed=1), faces(config.size, batch)
    expected = plain(tensors, given)
    assert expected.std() > 0.1, "a flat picture would prove nothing"
    got = GPEN.with_weights(config, tensors)(given)
    assert got.shape == given.shape and got.dtype == torch.float32
    assert largest(got - expected) <= 1e-4 / 4  # rounding is near 1e-6


def test_equals_the_plain_network_in_double_precision() -> None:
    """So what differs in single precision is rounding, and nothing else."""
    tensors, given = weights(seed=2), faces(256, batch=2, seed=2)
    exact = plain({name: value.double() for name, value in tensors.items()}, given.double())
    fast, slow = (largest(call - exact) for call in (network(seed=2)(given), plain(tensors, given)))
    assert fast <= 4 * slow


@pytest.mark.parametrize("place", list(gpen_plain.PADS))
def test_a_blur_off_by_a_pixel_shows(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above would be empty if it did not."""
    tensors, given = weights(), faces(256)
    before, behind = gpen_plain.PADS[place]
    got = network()(given)
    monkeypatch.setitem(gpen_plain.PADS, place, (before - 1, behind + 1))
    assert largest(got - plain(tensors, given)) > 0.01


@pytest.mark.parametrize(
    "kind",
    ["noise.weight", "activate.bias", "modulation.bias", "to_rgbs.3.bias", "style.8.bias"],
)
def test_every_kind_of_tensor_arrives(kind: str) -> None:
    """Small numbers that a wrong name or a forgotten factor would lose unseen."""
    tensors, given = weights(), faces(256)
    changed = {
        name: value + 0.5 if name.endswith(kind) else value for name, value in tensors.items()
    }
    moved = plain(changed, given)
    assert largest(moved - plain(tensors, given)) > 1e-3
    assert largest(GPEN.with_weights(TINY, changed)(given) - moved) <= 5e-5


@each_size
def test_a_faces_result_does_not_depend_on_its_batch(config: GPENConfig) -> None:
    net, given = network(config), faces(config.size, batch=3)
    together = net(given)
    assert largest(together[0] - together[1]) > 0.1
    for index, face in enumerate(given):
        assert largest(net(face[None])[0] - together[index]) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("batch", [1, 2])
def test_without_the_fused_kernel_the_result_is_the_same(
    dtype: torch.dtype, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, given = network(dtype=dtype), faces(256, batch)
    fused = net(given)
    monkeypatch.setattr(convolution, "_FUSED", None)
    if dtype == torch.float32:
        assert largest(net(given) - fused) <= 1e-5
    else:
        assert psnr(net(given), fused) >= 40


def test_strips_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    net, given = network(), faces(256, batch=2)
    whole = net(given)
    monkeypatch.setattr(gpen, "_ROWS_BYTES", 1)
    assert largest(net(given) - whole) <= 1e-5


def test_any_layout_of_the_input_gives_the_same() -> None:
    net, given = network(), faces(256, batch=2)
    kept = given.clone()
    expected = net(given)
    assert torch.equal(net(given.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(net(given.double()), expected)
    assert torch.equal(given, kept)


def test_gradients_being_on_changes_nothing() -> None:
    net, given = network(), faces(256).clone()
    quick = net(given)
    with torch.inference_mode(False), torch.enable_grad():
        assert largest(network()(faces(256)) - quick) <= 1e-5


# --- half precision -------------------------------------------------------------------------------


class Types(TorchDispatchMode):
    """Notes the number types of what makes or breaks half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            name = func.overloadpacket.__name__
            self.seen.setdefault(name, set()).add(result.dtype)
            if result.ndim == 4 and result.shape[1] == 3 and "conv" in name:
                self.seen.setdefault("picture", set()).add(result.dtype)
        return result


@each_half
def test_half_precision_keeps_what_is_delicate(dtype: torch.dtype) -> None:
    net, noted = network(dtype=dtype), Types()
    own = {name: value.dtype for name, value in (*net.named_parameters(), *net.named_buffers())}
    for name, kept in own.items():
        large = name.startswith("encoder.") or name.endswith("kernel.weight")
        assert kept == (dtype if large else torch.float32), name
    with torch.inference_mode(False), torch.no_grad(), noted:
        drawn = network(dtype=dtype)(faces(256, batch=2).clone())
    assert drawn.dtype == torch.float32
    # The style path, the demodulation and PixelNorm, the coloured pictures and their sum.
    for name in ("addmm", "rsqrt", "picture", "add_"):
        assert noted.seen[name] == {torch.float32}, name
    assert dtype in noted.seen["convolution"] | noted.seen.get("_convolution_pointwise", set())


@each_half
@pytest.mark.parametrize("config", [TINY, TINY_512, SMALL], ids=["tiny", "tiny-512", "small"])
def test_half_precision_is_close(config: GPENConfig, dtype: torch.dtype) -> None:
    given = faces(config.size, seed=3)
    assert psnr(network(config, dtype=dtype)(given), network(config)(given)) >= 40


@each_half
@pytest.mark.parametrize("kind", ["black", "white", "noise"])
def test_extremes_stay_finite(kind: str, dtype: torch.dtype) -> None:
    given = {"black": -torch.ones(2, 3, 256, 256), "white": torch.ones(2, 3, 256, 256)}.get(
        kind, 10 * torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    )
    for batch in (1, 2):  # the two ways to apply a style
        drawn = network(dtype=dtype)(given[:batch])
        assert bool(drawn.isfinite().all())
        assert psnr(drawn, network()(given[:batch])) >= 30


def test_a_strong_style_does_not_overflow_half_precision() -> None:
    """Modulation in the hundreds, which demodulation cancels: the products alone would not fit."""
    tensors = dict(weights())
    for name in tensors:
        if name.startswith("generator.conv") and "modulation" in name:
            tensors[name] = 3e4 * tensors[name]
    given = faces(256, batch=2)
    expected = plain(tensors, given)
    for dtype in HALVES:
        for batch in (1, 2):
            drawn = GPEN.with_weights(TINY, tensors, dtype)(given[:batch])
            assert psnr(drawn, expected[:batch]) >= 40


# --- promises -------------------------------------------------------------------------------------


@each_size
@pytest.mark.parametrize("batch", [1, 3])
def test_steps_counts_the_checks(config: GPENConfig, batch: int) -> None:
    net, seen = network(config), list[None]()
    net(faces(config.size, batch), lambda: seen.append(None))
    assert len(seen) == net.steps + (batch - 1) * net.face_steps


def test_an_exception_from_check_stops_at_once() -> None:
    net, given = network(), faces(256, batch=2)
    for allowed in range(net.steps + net.face_steps):
        seen: list[None] = []

        def check() -> None:
            seen.append(None)  # noqa: B023
            if len(seen) > allowed:  # noqa: B023
                raise StopError

        with pytest.raises(StopError):
            net(given, check)
        assert len(seen) == allowed + 1
    assert net(given).isfinite().all(), "a stopped run leaves nothing behind"


@pytest.mark.parametrize(
    "shape", [(1, 3, 512, 512), (1, 3, 256, 255), (1, 4, 256, 256), (3, 256, 256)]
)
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B,3,256,256\), got") as refused:
        network()(torch.zeros(shape))
    assert str(shape) in str(refused.value)


def _without(tensors: dict[str, Tensor]) -> None:
    del tensors["ecd3.0.2.bias"]


def _with(tensors: dict[str, Tensor]) -> None:
    tensors["generator.convs.99.conv.weight"] = torch.zeros(1)


def _with_a_kernel(tensors: dict[str, Tensor]) -> None:
    tensors["ecd1.0.0.kernel"] = torch.zeros(4, 4)


def _wider(tensors: dict[str, Tensor]) -> None:
    tensors["generator.conv1.conv.weight"] = torch.zeros(1, 17, 16, 3, 3)


def _grouped(tensors: dict[str, Tensor]) -> None:
    tensors["generator.conv1.conv.weight"] = torch.zeros(2, 16, 16, 3, 3)


@pytest.mark.parametrize("spoil", [_without, _with, _with_a_kernel, _wider, _grouped])
def test_tensors_that_do_not_fit_are_refused(spoil) -> None:
    tensors = dict(weights())
    spoil(tensors)
    with pytest.raises(RuntimeError):
        GPEN.with_weights(TINY, tensors)


def test_another_sizes_tensors_are_refused() -> None:
    with pytest.raises(RuntimeError, match="rgbs"):
        GPEN.with_weights(TINY, weights(TINY_512))


def test_the_tensors_stay_as_they_are() -> None:
    tensors = dict(weights())
    kept = {name: value.clone() for name, value in tensors.items()}
    for dtype in (torch.float32, torch.float16):
        net = GPEN.with_weights(TINY, tensors, dtype)
        for value in net.parameters():
            value.zero_()
    assert all(torch.equal(tensors[name], kept[name]) for name in tensors)


# --- memory, simulated ----------------------------------------------------------------------------


def without_numbers(size: int, dtype: torch.dtype) -> tuple[GPENConfig, GPEN]:
    config = gpen_weights.published(size, *((1, 0.5) if size == 256 else (2, 1)))
    with torch.device("meta"):
        tensors = {
            name: torch.empty(shape)
            for name, kind, shape in gpen_weights.layout(config)
            if not kind.startswith("blur")
        }
        return config, GPEN.with_weights(config, tensors, dtype)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch):
    """(network, faces) -> bytes of a pass at its peak, and of the weights in them."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    from _live import peak_bytes

    def measure(net: GPEN, faces: int) -> tuple[int, int]:
        given = torch.empty(faces, 3, net.size, net.size, device="meta")
        weights = sum(value.nbytes for value in (*net.parameters(), *net.buffers()))
        with torch.inference_mode(False):
            return peak_bytes(net, given), weights

    return measure


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "mixed"])
@pytest.mark.parametrize("size", [256, 512, 1024, 2048])
def test_every_published_size_runs_without_numbers(size: int, dtype: torch.dtype) -> None:
    net = without_numbers(size, dtype)[1]
    drawn = net(torch.empty(2, 3, size, size, device="meta"))
    assert drawn.device.type == "meta" and drawn.dtype == torch.float32
    assert drawn.shape == (2, 3, size, size)
    assert net.dtype == dtype and net.size == size


@pytest.mark.parametrize(
    ("size", "dtype", "most_gb"),
    [
        (512, torch.float32, 0.9),
        (512, torch.float16, 0.6),
        (1024, torch.float32, 1.9),
        (1024, torch.float16, 1.2),
    ],
)
def test_memory_stays_within_its_bound(size, dtype, most_gb, simulated) -> None:
    assert simulated(without_numbers(size, dtype)[1], 1)[0] <= most_gb * 1e9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "mixed"])
@pytest.mark.parametrize(
    ("size", "batch"), [(256, 1), (256, 4), (512, 1), (512, 4), (1024, 1), (2048, 1), (2048, 2)]
)
def test_the_memory_that_a_pass_asks_for_is_enough(size, dtype, batch, simulated) -> None:
    config, net = without_numbers(size, dtype)
    peak, weights = simulated(net, batch)
    asked = working_bytes(config, batch, dtype)
    assert peak - weights <= asked <= 1.35 * (peak - weights)
