"""Rows about the VAE nodes: exactness, memory and time beside the host and diffusers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import _comfy
from _child import measured
from _measure import ratio
from _table import Row, missing

EXACT = 1e-5
SPEED_BOUND = 0.8
PEAK_BOUNDS_GB = {1024: 0.35, 2048: 0.80}
ENCODE_PEAK_BOUND = 0.25
ENCODE_TIME_BOUND = 1.0
PARITY_SIZES = ((1024, 1024), (680, 1024), (1544, 520), (64, 64))
STRIPS = (1, 3, 8, 64)
GB = 1e9


def _child(settings: SimpleNamespace, task: str, **more: object) -> dict[str, Any] | None:
    folder = _comfy.folder()
    if folder is None:
        return None
    asked = {"comfy": str(folder), "task": task, "threads": settings.threads, **more}
    return measured("_decode_child.py", [json.dumps(asked)])


def speed(settings: SimpleNamespace) -> Iterator[Row]:
    """One latent decoded by everybody, in turn."""
    side = 384 if settings.quick else 768
    bound = f"≤ {SPEED_BOUND} × the fastest peer"
    found = _child(settings, "speed", side=side, rounds=min(settings.rounds, 2))
    if found is None:
        yield missing("time of a decode", _comfy.NO_COMFY, bound)
        return
    seconds, errors = found["seconds"], found["errors"]
    ours = seconds.pop("ours")
    median = {name: statistics.median(each) for name, each in seconds.items()}
    fastest = min(median, key=lambda name: median[name])
    for name, peer in seconds.items():
        against = ratio(ours, peer)
        yield Row(
            f"decode of {side}×{side} in fp32 against {name}, {settings.threads} threads",
            f"{statistics.median(ours):.1f} s",
            f"{median[name]:.1f} s",
            f"{against:.2f} ×",
            bound if name == fastest else "",
            met=against <= SPEED_BOUND if name == fastest else None,
        )
    for name in ("host", "diffusers"):
        if f"{name} tiled" in errors:
            yield Row(
                f"error of {name}'s tiled decode at {side}×{side}: largest; mean of the spread",
                f"{errors['ours']:.1e} (ours, largest)",
                f"{errors[f'{name} tiled']:.2f}; {errors[f'{name} tiled, mean']:.1%}",
            )
    if "diffusers full" not in seconds:
        yield missing("decode beside diffusers", "pip install diffusers")


def parity(settings: SimpleNamespace) -> Iterator[Row]:
    """Strips against the host's full decode."""
    bound = f"≤ {EXACT:.0e}"
    sizes = ((256, 256), (64, 64)) if settings.quick else PARITY_SIZES
    found = _child(settings, "parity", sizes=sizes, strips=STRIPS)
    if found is None:
        yield missing("difference from the full decode", _comfy.NO_COMFY, bound)
        return
    worst: dict[str, float] = {}
    for what, difference in found.items():
        size = what.partition(",")[0]
        worst[size] = max(worst.get(size, 0.0), difference)
    told = ", ".join(map(str, STRIPS))
    for size, difference in worst.items():
        yield Row(
            f"largest difference from the host's full decode, fp32, {size}, strips of {told}",
            f"{difference:.1e}",
            bound=bound,
            met=difference <= EXACT,
        )


def memory(settings: SimpleNamespace) -> Iterator[Row]:
    """Peaks beyond latent, weights and picture."""
    real = 512 if settings.quick else 1024
    found = _child(settings, "memory", sides=[512, 1024, 2048, 4096], real=real)
    if found is None:
        yield missing("peak of a decode", _comfy.NO_COMFY)
        return
    for what, peak in found["simulated"].items():
        side, name = what.split("² ")
        limit = PEAK_BOUNDS_GB.get(int(side)) if name == "fp32" else None
        yield Row(
            f"simulated peak beyond latent, weights and picture, {what}",
            f"{peak / GB:.2f} GB",
            bound="" if limit is None else f"≤ {limit} GB",
            met=None if limit is None else peak / GB <= limit,
        )
    limit = PEAK_BOUNDS_GB.get(real)
    yield Row(
        f"the same at {real}² fp32, really run",
        f"{found['real'] / GB:.2f} GB",
        f"host full, simulated {found['host'] / GB:.2f} GB",
        f"{found['real'] / found['host']:.2f} ×",
        "" if limit is None else f"≤ {limit} GB",
        met=None if limit is None else found["real"] / GB <= limit,
    )


def encode(settings: SimpleNamespace) -> Iterator[Row]:
    """The encoder's difference, peak and time."""
    side = 256 if settings.quick else 768
    asked = {"side": side, "peak_side": 1024, "rounds": min(settings.rounds, 2)}
    found = _child(settings, "encode", **asked)
    if found is None:
        yield missing("encode", _comfy.NO_COMFY)
        return
    difference, (ours, host) = found["difference"], found["peaks"]
    yield Row(
        f"encode of {side}×{side}: largest difference from the host's, fp32",
        f"{difference:.1e}",
        bound=f"≤ {EXACT:.0e}",
        met=difference <= EXACT,
    )
    yield Row(
        "encode of 1024×1024: simulated peak beyond picture, weights and latent",
        f"{ours / GB:.2f} GB",
        f"host {host / GB:.2f} GB",
        f"{ours / host:.2f} ×",
        f"≤ {ENCODE_PEAK_BOUND} ×",
        met=ours <= ENCODE_PEAK_BOUND * host,
    )
    seconds = found["seconds"]
    against = ratio(seconds["ours"], seconds["host"])
    yield Row(
        f"encode of {side}×{side}, {settings.threads} threads",
        f"{statistics.median(seconds['ours']):.1f} s",
        f"host {statistics.median(seconds['host']):.1f} s",
        f"{against:.2f} ×",
        f"≤ {ENCODE_TIME_BOUND} ×",
        met=against <= ENCODE_TIME_BOUND,
    )


def oom(settings: SimpleNamespace) -> Iterator[Row]:
    """Memory that runs out once, in each strip in turn."""
    side = 64 if settings.quick else 128
    found = _child(settings, "oom", side=side)
    if found is None:
        yield missing("memory that runs out", _comfy.NO_COMFY)
        return
    yield Row(
        f"memory runs out in each of {found['strips']} strips in turn, {side}×{side}",
        f"completes, largest difference {found['difference']:.1e}",
        bound=f"completes, ≤ {EXACT:.0e}",
        met=found["difference"] <= EXACT,
    )


def large(settings: SimpleNamespace) -> Iterator[Row]:
    """A decode of 4096×4096 that is really run."""
    side = 1024 if settings.quick else 4096
    found = _child(settings, "large", side=side)
    if found is None:
        yield missing("a large decode", _comfy.NO_COMFY)
        return
    whole = found["shape"] == [1, side, side, 3] and found["finite"]
    yield Row(
        f"decode of {side}×{side} in fp32, really run",
        f"{'completes' if whole else 'broken'}, {found['seconds']:.0f} s,"
        f" process grows by {found['growth'] / GB:.1f} GB beside the picture",
        bound="completes",
        met=whole,
    )
