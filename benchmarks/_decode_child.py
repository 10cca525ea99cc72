"""The VAE nodes' machinery beside its peers, in a process of its own on a ComfyUI.

Argument: JSON with comfy (ComfyUI's folder), task, threads and what the task reads. The last line
on stdout is JSON. The VAE has the real widths and weights made from a seed.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _pack  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from torch import Tensor  # noqa: E402

DIM = 96
SHAPE = {"z_dim": 16, "temperal_downsample": [False, True, True]}
META = torch.device("meta")


class Bench:
    """The host with a seeded VAE in it, and the pack."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        sys.path.insert(0, settings["comfy"])
        arguments = importlib.import_module("comfy.cli_args").args
        arguments.cpu = True
        # The host's leanest attention, for its memory as for its time.
        arguments.use_pytorch_cross_attention = True
        _pack.load()
        self.host = importlib.import_module("comfy.ldm.wan.vae")
        self.fill = importlib.import_module("wan_vae_plain").fill
        self.wan_vae = importlib.import_module("realtoon.engine.wan_vae")
        self.streaming = importlib.import_module("realtoon.nodes._streaming")

    def vae(self) -> Any:  # noqa: ANN401
        """The host's own object, in fp32."""
        model = self.host.WanVAE(dim=DIM, **SHAPE)
        self.fill(model, 0)
        made = importlib.import_module("comfy.sd").VAE(sd=model.state_dict(), dtype=torch.float32)
        made.throw_exception_if_invalid()
        return made

    def network(self, way: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
        """(the host's network, ours read from it) on meta."""
        with META:
            model = self.host.WanVAE(dim=DIM, **SHAPE).to(dtype)
        read = self.wan_vae.read_decoder if way == "decode" else self.wan_vae.read_encoder
        return model, read(model, dtype, META)


def latent(height: int, width: int) -> Tensor:
    return torch.randn(1, 16, 1, height, width, generator=torch.Generator().manual_seed(1))


def picture(height: int, width: int) -> Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(2))


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.reshape(-1) - other.reshape(-1)).abs().max())


def speed(bench: Bench) -> dict[str, Any]:
    """Decodes of one latent by everybody, in turn; how far tiled ones are from their own full."""
    side = bench.settings["side"] // 8
    vae = bench.vae()
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda z: bench.streaming.decode(vae, z, "fp32", 0)[0],
        "host full": vae.decode,
        # As the host's VAEDecodeTiled asks by default.
        "host tiled": lambda z: vae.decode_tiled(
            z, tile_x=64, tile_y=64, overlap=8, tile_t=16, overlap_t=2
        ),
        **diffusers(bench),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    drawn: dict[str, Tensor] = {}
    for call in calls.values():
        call(latent(16, 16))
    given, names = latent(side, side), list(calls)
    for turn in range(bench.settings["rounds"]):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(0.2)
            started = time.perf_counter()
            drawn[name] = calls[name](given)
            seconds[name].append(time.perf_counter() - started)
    errors = {"ours": apart(drawn["ours"], drawn["host full"])}
    for name in ("host", "diffusers"):
        if f"{name} tiled" in drawn:
            full, tiled = drawn[f"{name} full"], drawn[f"{name} tiled"]
            mean = float((tiled - full).abs().mean() / full.std())
            errors[f"{name} tiled"], errors[f"{name} tiled, mean"] = apart(tiled, full), mean
    return {"seconds": seconds, "errors": errors}


def diffusers(bench: Bench) -> dict[str, Callable[[Tensor], Tensor]]:
    """diffusers' own class at the same widths; nothing where it is not installed."""
    try:
        from diffusers import AutoencoderKLQwenImage
    except ImportError:
        return {}
    made = AutoencoderKLQwenImage().eval()
    bench.fill(made, 0)

    def run(z: Tensor, tiled: bool) -> Tensor:
        (made.enable_tiling if tiled else made.disable_tiling)()
        image = made.decode(z, return_dict=False)[0][:, :, 0]
        return image.add(1).div(2).clamp(0, 1).permute(0, 2, 3, 1)

    return {
        "diffusers full": lambda z: run(z, False),
        "diffusers tiled": lambda z: run(z, True),
    }


def parity(bench: Bench) -> dict[str, float]:
    """Strips of several heights against the host's full decode."""
    vae, found = bench.vae(), {}
    for height, width in bench.settings["sizes"]:
        given = latent(height // 8, width // 8)
        whole = vae.decode(given)
        for rows in bench.settings["strips"]:
            image, _ = bench.streaming.decode(vae, given, "fp32", rows)
            found[f"{width}×{height}, strips of {rows}"] = apart(image, whole)
    return found


def memory(bench: Bench) -> dict[str, Any]:
    """Peaks beyond latent, weights and picture: simulated, and really run where asked."""
    peak = importlib.import_module("_decode_peak")
    rows_of, found = {}, {}
    for side in bench.settings["sides"]:
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            _, network = bench.network("decode", dtype)
            hw = (side // 8, side // 8)
            rows = network.best_rows(hw, 1 << 50)
            rows_of[side, name] = rows
            # The taps that are used are ours beside the host's weights.
            taps = sum(weight.nbytes for weight in network.weights)
            found[f"{side}² {name}"] = peak.streamed_peak(network, "decode", hw, rows) + taps
    side = bench.settings["real"]
    network = bench.wan_vae.read_decoder(
        bench.vae().first_stage_model, torch.float32, torch.device("cpu")
    )
    taps = sum(weight.nbytes for weight in network.weights)
    hw, rows = (side // 8, side // 8), rows_of[side, "fp32"]
    real = peak.streamed_peak(network, "decode", hw, rows) + taps
    return {"simulated": found, "real": real, "host": host_peak(bench, "decode", side)}


def host_peak(bench: Bench, way: str, side: int) -> int:
    """The host's full run, simulated."""
    peak, live = (importlib.import_module(name) for name in ("_decode_peak", "_live"))
    model, _ = bench.network(way)
    shape = (1, 16, 1, side // 8, side // 8) if way == "decode" else (1, 3, 1, side, side)
    given = torch.empty(shape, device=META)
    with peak.followed("meta"), live.LiveBytes([given, *model.parameters()]) as alive:
        before = alive.now
        out = getattr(model, way)(given)
    return alive.peak - before - out.nbytes


def encode(bench: Bench) -> dict[str, Any]:
    """Difference, peak and time beside the host's full encode."""
    peak = importlib.import_module("_decode_peak")
    vae, side = bench.vae(), bench.settings["side"]
    given = picture(side, side)
    calls = {
        "ours": lambda x: bench.streaming.encode(vae, x, "fp32", 0)[0],
        "host": vae.encode,
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    drawn = {}
    for call in calls.values():
        call(picture(64, 64))
    for _ in range(bench.settings["rounds"]):
        for name, call in calls.items():
            started = time.perf_counter()
            drawn[name] = call(given)
            seconds[name].append(time.perf_counter() - started)
    _, network = bench.network("encode")
    large = bench.settings["peak_side"]
    hw = (large // 8, large // 8)
    taps = sum(weight.nbytes for weight in network.weights)
    ours = peak.streamed_peak(network, "encode", hw, network.best_rows(hw, 1 << 50)) + taps
    return {
        "seconds": seconds,
        "difference": apart(drawn["ours"], drawn["host"]),
        "peaks": [ours, host_peak(bench, "encode", large)],
    }


def large(bench: Bench) -> dict[str, Any]:
    """A decode that is really run, with the process's own high-water mark."""
    watched = importlib.import_module("_measure").PeakMemory()
    vae, side = bench.vae(), bench.settings["side"]
    given = latent(side // 8, side // 8)
    bench.streaming.decode(vae, latent(8, 8), "fp32", 0)
    started = time.perf_counter()
    with watched.watch():
        image, _ = bench.streaming.decode(vae, given, "fp32", 0)
    return {
        "seconds": time.perf_counter() - started,
        "growth": watched.growth - image.nbytes,
        "shape": list(image.shape),
        "finite": bool(image.isfinite().all()),
    }


def oom(bench: Bench) -> dict[str, Any]:
    """Memory runs out once in each strip in turn."""
    side = bench.settings["side"] // 8
    vae, given = bench.vae(), latent(side, side)
    rows = importlib.import_module("realtoon.engine.row_network").Strips
    expected, _ = bench.streaming.decode(vae, given, "fp32", 4)
    real, count, fails_at = rows._succeeds, 0, 0

    def succeeds(strips: Any, work: Callable[..., None], first: int, end: int) -> bool:  # noqa: ANN401
        nonlocal count
        count += 1

        def failing(first: int, end: int) -> None:
            with short_of_memory():
                work(first, end)
            raise torch.cuda.OutOfMemoryError("as if there were none")

        return real(strips, failing if count == fails_at else work, first, end)

    rows._succeeds = succeeds
    bench.streaming.decode(vae, given, "fp32", 4)
    strips, differences = count, []
    for number in range(1, strips + 1):
        count, fails_at = 0, number
        image, report = bench.streaming.decode(vae, given, "fp32", 4)
        assert "memory ran out" in report
        differences.append(apart(image, expected))
    return {"strips": strips, "difference": max(differences)}


@contextmanager
def short_of_memory() -> Iterator[None]:
    """The second layer that computes finds no memory: the first one has moved on by then."""
    names = ("conv2d", "linear", "scaled_dot_product_attention")
    before, calls = {name: getattr(F, name) for name in names}, 0

    def counted(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: object, **named: object) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise torch.cuda.OutOfMemoryError("as if there were none")
            return call(*arguments, **named)

        return run

    for name, call in before.items():
        setattr(F, name, counted(call))
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(F, name, call)


TASKS = {task.__name__: task for task in (speed, parity, memory, encode, large, oom)}


def main(argv: list[str]) -> int:
    """Measure and write one line."""
    settings = json.loads(argv[0])
    torch.set_num_threads(settings["threads"])
    sys.argv = sys.argv[:1]
    with redirect_stdout(sys.stderr):
        bench = Bench(settings)
        with torch.inference_mode(settings["task"] != "memory"):
            result = TASKS[settings["task"]](bench)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
