"""Figures of the generator: parity with the published code, speed, half precision, memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import SimpleNamespace

import _pack
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from _live import peak_bytes
from _measure import interleaved, ratio
from _pictures import photo
from _table import Row, missing
from torch import Tensor

_pack.load()

import gpen_golden  # noqa: E402
import gpen_published  # noqa: E402
import gpen_weights  # noqa: E402
from gpen_plain import plain  # noqa: E402
from realtoon.engine.gpen import GPEN, gains_by_mixed, mixed_dtype  # noqa: E402
from realtoon.weights_loader.gpen import GPENConfig  # noqa: E402

PARITY_BOUND = 1e-4
SPEED_BOUND = 0.7
BATCH_BOUND = 1.0
BATCH = 4
PSNR_DROP_BOUND_DB = 0.3
RESTORER_DB = 30
"""Better than published restorers come to the undegraded face."""
MEMORY_BOUNDS_GB = {
    (512, "fp32"): 0.9,
    (512, "mixed"): 0.6,
    (1024, "fp32"): 1.9,
    (1024, "mixed"): 1.2,
}
NEEDS_CLONE = "give a clone of yangxy/GPEN with --gpen"
PLAIN = "published formulation"
HALVES = (torch.float16, torch.bfloat16)


def config(size: int) -> GPENConfig:
    """The official generator of a size."""
    return gpen_weights.published(size, *gpen_published.WIDTHS[size])


@lru_cache(maxsize=1)
def tensors(size: int, seed: int = 0) -> dict[str, Tensor]:
    """Seeded weights of the official generator of a size."""
    return gpen_weights.state(config(size), seed)


def network(size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> GPEN:
    """Our generator with seeded weights, ready to run."""
    return GPEN.with_weights(config(size), tensors(size, seed), dtype)


def _published(settings: SimpleNamespace, size: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    kernels = {
        name: gpen_weights.BLUR * float(kind.removeprefix("blur"))
        for name, kind, _ in gpen_weights.layout(config(size))
        if kind.startswith("blur")
    }
    net = gpen_published.generator(settings.gpen, size, tensors(size, seed) | kernels)
    return lambda faces: net(faces)[0]


@torch.inference_mode()
def parity(settings: SimpleNamespace) -> Iterator[Row]:
    """Against the golden arrays always, against a clone's code where one is named."""
    bound = f"≤ {PARITY_BOUND:.0e}"
    for size in gpen_golden.SIZES[:1] if settings.quick else gpen_golden.SIZES:
        for batch in gpen_golden.BATCHES:
            with np.load(gpen_golden.path(size)) as golden:
                seed, source = int(golden["seed"]), str(golden["source"])[:20]
                drawn = network(size, seed)(gpen_golden.faces(size, batch, seed))
                difference = gpen_golden.difference(drawn, golden, f"batch{batch}_")
            yield _parity_row(f"{size}, batch of {batch}, golden", difference, source)
            if settings.gpen is None:
                continue
            faces = gpen_golden.faces(size, batch, 1)
            expected = _published(settings, size, 1)(faces)
            difference = float((network(size, 1)(faces) - expected).abs().max())
            commit = gpen_published.commit(settings.gpen)[:7]
            yield _parity_row(
                f"{size}, batch of {batch}", difference, f"yangxy/GPEN @{commit}, run"
            )
    if settings.gpen is None:
        yield missing("parity with the published code, run", NEEDS_CLONE, bound)


def _parity_row(what: str, difference: float, source: str) -> Row:
    return Row(
        f"parity, {what}",
        f"{difference:.1e}",
        source,
        bound=f"≤ {PARITY_BOUND:.0e}",
        met=difference <= PARITY_BOUND,
    )


@torch.inference_mode()
def speed(settings: SimpleNamespace) -> Iterator[Row]:
    """A face beside the published way to compute the same, and a batch beside single faces."""
    size = 256 if settings.quick else 512
    faces = gpen_golden.faces(size, BATCH)
    net = network(size)
    if settings.gpen is None:
        peer, name = (lambda given: plain(tensors(size), given)), PLAIN
    else:
        peer, name = _published(settings, size), "yangxy/GPEN's own code"
    one = faces[:1]
    difference = float((net(one) - peer(one)).abs().max())
    seconds = interleaved({"ours": lambda: net(one), "peer": lambda: peer(one)}, settings.rounds)
    against = ratio(seconds["ours"], seconds["peer"])
    yield Row(
        f"a face at {size}, {settings.threads} threads",
        f"{statistics.median(seconds['ours']):.2f} s",
        f"{name} {statistics.median(seconds['peer']):.2f} s",
        f"{against:.2f} ×",
        f"≤ {SPEED_BOUND} ×, same picture",
        met=against <= SPEED_BOUND and difference <= PARITY_BOUND,
    )
    seconds = interleaved({"one": lambda: net(one), "four": lambda: net(faces)}, settings.rounds)
    each = [taken / BATCH for taken in seconds["four"]]
    against = ratio(each, seconds["one"])
    yield Row(
        f"a face in a batch of {BATCH} at {size}, {settings.threads} threads",
        f"{statistics.median(each):.2f} s",
        f"alone {statistics.median(seconds['one']):.2f} s",
        f"{against:.2f} ×",
        f"≤ {BATCH_BOUND} ×",
        met=against <= BATCH_BOUND,
    )


@torch.inference_mode()
def mixed(settings: SimpleNamespace) -> Iterator[Row]:
    """Half precision: what it costs in time and quality, and whether extremes survive it."""
    size = 256 if settings.quick else 512
    clean, blurred = _portrait(size)
    full = network(size)
    expected = full(blurred)
    cpu = torch.device("cpu")
    chosen = "chosen" if gains_by_mixed(cpu) else "not chosen"
    for dtype in HALVES:
        half = network(size, dtype=dtype)
        what = f"mixed precision, {str(dtype)[6:]}, {size}"
        drawn = half(blurred)
        drop = _psnr(expected, clean) - _psnr(drawn, clean)
        yield Row(
            f"{what}: PSNR against the undegraded face",
            f"{_psnr(drawn, clean):.2f} dB",
            f"fp32 {_psnr(expected, clean):.2f} dB",
            bound=f"at most {PSNR_DROP_BOUND_DB} dB less",
            met=drop <= PSNR_DROP_BOUND_DB,
        )
        apart = _psnr(drawn, expected)
        drop = _drop(RESTORER_DB, apart)
        yield Row(
            f"{what}: PSNR against fp32",
            f"{apart:.0f} dB",
            f"costs a restorer at {RESTORER_DB} dB {drop:.3f} dB",
            bound=f"costs at most {PSNR_DROP_BOUND_DB} dB",
            met=drop <= PSNR_DROP_BOUND_DB,
        )
        bad = [name for name, face in _extremes(size).items() if not half(face).isfinite().all()]
        yield Row(
            f"{what}: all black, all white, noise × 10",
            f"not finite for {', '.join(bad)}" if bad else "finite",
            bound="finite",
            met=not bad,
        )
        if dtype == mixed_dtype(cpu):
            calls = {"half": lambda half=half: half(blurred), "full": lambda: full(blurred)}
            seconds = interleaved(calls, settings.rounds)
            yield Row(
                f"{what}: time on this processor, where auto has it {chosen}",
                f"{statistics.median(seconds['half']):.2f} s",
                f"fp32 {statistics.median(seconds['full']):.2f} s",
                f"{ratio(seconds['half'], seconds['full']):.2f} ×",
            )


def _portrait(size: int) -> tuple[Tensor, Tensor]:
    """A face in [-1,1], and the same one small, noisy and enlarged again."""
    top, left, side = 0, 128, 192
    clean = photo(512, 512)[..., top : top + side, left : left + side]
    clean = F.interpolate(clean, size=(size, size), mode="bicubic").clamp(0, 1)
    small = F.interpolate(clean, size=(size // 8, size // 8), mode="area")
    small += 0.03 * torch.randn(small.shape, generator=torch.Generator().manual_seed(0))
    blurred = F.interpolate(small, size=(size, size), mode="bilinear").clamp(0, 1)
    return clean * 2 - 1, blurred * 2 - 1


def _extremes(size: int) -> dict[str, Tensor]:
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    black = torch.full((1, 3, size, size), -1.0)
    return {"all black": black, "all white": -black, "noise × 10": 10 * noise}


def _psnr(drawn: Tensor, expected: Tensor) -> float:
    """Of pictures as they are shown, clamped to [-1,1]."""
    error = (drawn.clamp(-1, 1) - expected.clamp(-1, 1)).square().mean()
    return float(10 * torch.log10(4 / error))


def _drop(restorer_db: float, apart_db: float) -> float:
    """What a restorer loses by errors of its own that lie so far below its picture."""
    return float(10 * np.log10(1 + 10 ** ((restorer_db - apart_db) / 10)))


def memory(settings: SimpleNamespace) -> Iterator[Row]:
    """Simulated at the real size: weights, faces and all that a pass holds, at its peak."""
    for size in (512, 1024, 2048):
        for name, dtype in (("fp32", torch.float32), ("mixed", torch.float16)):
            for batch in (1, BATCH) if size == 512 else (1,):
                peak_gb = simulated_peak(size, batch, dtype) / 1e9
                bound_gb = MEMORY_BOUNDS_GB.get((size, name)) if batch == 1 else None
                yield Row(
                    f"simulated peak with weights, {size}, {name}, batch of {batch}",
                    f"{peak_gb:.2f} GB",
                    bound="" if bound_gb is None else f"≤ {bound_gb} GB",
                    met=None if bound_gb is None else peak_gb <= bound_gb,
                )


def simulated_peak(size: int, batch: int, dtype: torch.dtype) -> int:
    """Bytes of a pass over so many faces, without computing it."""
    with torch.device("meta"):
        state = {
            name: torch.empty(shape)
            for name, kind, shape in gpen_weights.layout(config(size))
            if not kind.startswith("blur")
        }
        net = GPEN.with_weights(config(size), state, dtype)
        return peak_bytes(net, torch.empty(batch, 3, size, size))
