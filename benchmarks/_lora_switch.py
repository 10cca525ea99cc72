"""Changing a LoRA beside the weights: seconds, exactness and what stays of a thousand changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import _comfy
from _child import measured
from _table import Row, missing

RANK = 32
READY_S, COPIES, KEPT_S = 0.3, 1.3, 0.05
SWITCH_TIMES, STEP_TIMES = 200, 1.05
FP32, FP8, RESIDENT = 1e-5, 0.01, 0.01


def ready(settings: SimpleNamespace) -> Iterator[Row]:
    """From the choice of a file to the first step, on the real model's 60 blocks."""
    found = _child("ready", settings)
    if found is None:
        yield missing("60 blocks, choose a file", _comfy.NO_COMFY, f"≤ {READY_S} s")
        return
    what = f"60 blocks, {found['layers']} layers, {found['bytes'] / 1e6:.0f} MB of rank {RANK}"
    seconds, copy = found["seconds"], found["copy"]
    yield Row(
        f"{what}, choose → ready for the first step",
        f"{seconds:.3f} s",
        bound=f"≤ {READY_S} s",
        met=seconds <= READY_S,
    )
    yield Row(
        "the same beside a bare copy of the bytes",
        f"{seconds:.3f} s",
        f"{copy:.3f} s",
        f"{seconds / copy:.2f} ×",
        f"≤ {COPIES} ×",
        seconds <= COPIES * copy,
    )
    kept = found["kept"]
    yield Row("back to a kept version", f"{kept:.3f} s", bound=f"≤ {KEPT_S} s", met=kept <= KEPT_S)


def against(settings: SimpleNamespace) -> Iterator[Row]:
    """The switch and the step beside the host's loader and its bypass, on two full-width blocks."""
    found = _child("against", settings)
    if found is None:
        yield missing("switch beside LoraLoaderModelOnly", _comfy.NO_COMFY, f"{SWITCH_TIMES} ×")
        return
    ours, host = found["switch"]["ours"], found["switch"]["host"]
    yield Row(
        f"two blocks, {found['parameters'] / 1e9:.2f} B parameters, switch beside the host's fold",
        f"{ours:.4f} s",
        f"{host:.2f} s",
        f"{host / ours:.0f} × faster",
        f"≥ {SWITCH_TIMES} ×",
        host >= SWITCH_TIMES * ours,
    )
    step, tokens = found["step"], found["tokens"]
    what = f"a step of {tokens:,} tokens, rank {RANK}"
    without = step["ours"] * (1 - found["beside"])
    low, middle, high = found["of plain"]
    yield Row(
        f"{what}, beside the same step without what its LoRA takes",
        f"{step['ours']:.2f} s",
        f"{without:.2f} s",
        f"{step['ours'] / without:.3f} ×",
        f"≤ {STEP_TIMES} ×",
        step["ours"] <= STEP_TIMES * without,
    )
    yield Row(
        f"{what}, beside a whole one without LoRA; half of all pairs lie within",
        f"{step['ours']:.2f} s",
        f"{step['plain']:.2f} s",
        f"{middle:.3f} ×; {low:.2f}–{high:.2f} ×",
    )
    if "bypass" not in step:
        yield missing(f"{what}, beside the host's bypass", "ComfyUI 0.11 or newer", "faster")
        return
    yield Row(
        f"{what}, beside the host's bypass",
        f"{step['ours']:.2f} s",
        f"{step['bypass']:.2f} s",
        f"{found['of bypass']:.3f} ×",
        "< 1 ×",
        found["of bypass"] < 1,
    )


def exact(_settings: SimpleNamespace) -> Iterator[Row]:
    """What comes out, beside the LoRA folded into the weights."""
    comfy = _comfy.folder()
    if comfy is None:
        yield missing("beside against folded", _comfy.NO_COMFY, f"≤ {FP32:g}")
        return
    found = _comfy.cases("lora_cases.py", comfy)
    kinds = {name: each[0] for name, each in found["kinds"].items() if isinstance(each, list)}
    worst = max(kinds, key=lambda name: kinds[name])
    yield Row(
        f"fp32, 3 steps of a tiny DiT, beside against folded, the worst of {len(kinds)} ({worst})",
        f"{kinds[worst]:.1e}",
        bound=f"≤ {FP32:g}",
        met=kinds[worst] <= FP32,
    )
    fp8 = found["fp8"]
    yield Row(
        "fp8 base, error of the change against the exact one, beside the host's fold",
        f"{fp8['beside']:.2%}",
        f"{fp8['folded']:.0%}",
        bound=f"≤ {FP8:.0%}",
        met=fp8["beside"] <= FP8,
    )


def thousand(settings: SimpleNamespace) -> Iterator[Row]:
    """Many changes among versions, strengths and none."""
    found = _child("thousand", settings)
    if found is None:
        yield missing("1,000 switches", _comfy.NO_COMFY, "base bit-equal")
        return
    what = f"{found['switches']:,} switches among 5 versions, strengths and none"
    for name, met in (
        ("base bit-equal", found["base"]),
        ("A → B → A bit-equal", found["again"]),
    ):
        yield Row(f"{what}: {name}", "yes" if met else "no", bound="yes", met=met)
    grown = found["resident"]
    yield Row(
        f"{what}: resident memory",
        f"{grown:+.2%}",
        bound=f"≤ {RESIDENT:.0%}",
        met=grown <= RESIDENT,
    )


def _child(what: str, settings: SimpleNamespace) -> dict[str, Any] | None:
    comfy = _comfy.folder()
    if comfy is None:
        return None
    given = {
        "what": what,
        "comfy": str(comfy),
        "threads": settings.threads,
        "rounds": settings.rounds,
        "quick": settings.quick,
    }
    return measured("_lora_host.py", [json.dumps(given)])
