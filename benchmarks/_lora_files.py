"""Figures of LoRA files: every layout matched, headers in milliseconds, hostile files refused."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import _pack
from _measure import interleaved
from _table import Row

_pack.load()

import lora_files  # noqa: E402
import lora_hostile_cases as hostile_cases  # noqa: E402
from realtoon.weights_loader import lora, lora_families, lora_layouts  # noqa: E402
from realtoon.weights_loader.errors import WeightsError  # noqa: E402

HEADER_BOUND_MS = 20
HOSTILE_BOUND_S = 1.0
HOSTILE_KINDS = 40
RANK_1_GB = 52


def _named(layout: str, modules: lora_files.Modules) -> lora_files.Modules:
    """Attention processors of old diffusers name attention alone."""
    if layout != "attention processors":
        return modules
    return {name: size for name, size in modules.items() if ".attn." in name}


def layouts(settings: SimpleNamespace) -> Iterator[Row]:
    """All layouts on the 846 real names of Qwen-Image, and on every other family's."""
    modules = lora_files.qwen_modules(width=8, joint=8, inside=8)
    matched = wanted = dropped = 0
    with tempfile.TemporaryDirectory() as folder:
        for layout in lora_files.LAYOUTS:
            named = _named(layout, modules)
            tensors = lora_files.lora(named, layout, rank=1)
            c = lora.read(lora_files.write(Path(folder) / "a", tensors), modules).coverage
            matched, wanted = matched + len(c.matched), wanted + len(named)
            told = c.used_keys + c.unfit_keys + len(c.unmatched) + len(c.text_encoder)
            dropped += len(tensors) - told
    yield Row(
        f"Qwen-Image, {len(lora_files.LAYOUTS)} layouts: modules matched, keys dropped unsaid",
        f"{matched:,} of {wanted:,}, {dropped}",
        bound="all, 0",
        met=matched == wanted and not dropped,
    )
    total = right = 0
    for family, variants in lora_files.FAMILIES.items():
        for modules in variants.values():
            index = lora_layouts.Index(modules)
            for layout, (name, _, _) in lora_files.LAYOUTS.items():
                if layout == "attention processors":
                    continue
                told = lora_families.of_modules({name(n): s for n, s in modules.items()})
                found = sum(index.find(name(module)) == module for module in modules)
                total, right = total + 1, right + (told == family and found == len(modules))
    yield Row(
        f"{len(lora_files.FAMILIES)} families × layouts: told and every module matched",
        f"{right} of {total}",
        bound="all",
        met=right == total,
    )


def headers(settings: SimpleNamespace) -> Iterator[Row]:
    """What a file of a gigabyte is, from its header (a sparse file with the real names)."""
    with tempfile.TemporaryDirectory() as folder:
        told = {}
        for layout in ("ai-toolkit", "kohya, musubi"):
            shapes = lora_files.lora_shapes(lora_files.qwen_modules(), layout, RANK_1_GB)
            path = lora_files.write_sparse(Path(folder) / str(len(shapes)), shapes)
            size = path.stat().st_size / 1e9
            what = f"header check of {size:.2f} GB, {len(shapes):,} keys ({layout})"
            told[what] = partial(lora.describe, path)
        # With pauses: a slow spell of half a second would be all that calls in a row see.
        for what, seconds in interleaved(told, 3 * settings.rounds).items():
            milliseconds = statistics.median(seconds) * 1e3
            yield Row(
                what,
                f"{milliseconds:.1f} ms",
                bound=f"≤ {HEADER_BOUND_MS} ms",
                met=milliseconds <= HEADER_BOUND_MS,
            )


def hostile(settings: SimpleNamespace) -> Iterator[Row]:
    """Files that no reader may take: refused by name and reason, and how long the slowest took."""
    refused = 0
    slowest = ("", 0.0)
    for name, case in hostile_cases.CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "洛拉.safetensors"
            case.build(path)
            started = time.perf_counter()
            try:
                lora.read(path, hostile_cases.MODULES)
            except WeightsError as error:
                said = str(error)
                refused += said.startswith(path.name) and case.message in said
            slowest = max(slowest, (name, time.perf_counter() - started), key=lambda s: s[1])
    count = len(hostile_cases.CASES)
    yield Row(
        "hostile files refused by name and reason",
        f"{refused} of {count}",
        bound=f"all, ≥ {HOSTILE_KINDS} kinds",
        met=refused == count >= HOSTILE_KINDS,
    )
    yield Row(
        f"the slowest of them ({slowest[0]})",
        f"{slowest[1]:.2f} s",
        bound=f"≤ {HOSTILE_BOUND_S:g} s",
        met=slowest[1] <= HOSTILE_BOUND_S,
    )
