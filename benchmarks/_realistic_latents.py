"""Latents of tiny models: with the modulation table and without, from either layout, and from
diffusers' own pipeline."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from types import SimpleNamespace

import _comfy
from _child import measured
from _table import Row, missing

TABLE_BOUND = "bit-equal"
PARITY_BOUND = 1e-4


def table(settings: SimpleNamespace) -> Iterator[Row]:
    """The modulation answered from a table against the layers themselves."""
    comfy = _comfy.folder()
    if comfy is None:
        yield missing("modulation table", _comfy.NO_COMFY, TABLE_BOUND)
        return
    found = _comfy.cases("modulation_cases.py", comfy)
    told = {
        "samplers": "euler, dpmpp_2m, dpmpp_sde, uni_pc, CFG 1 and 4",
        "references": "reference tokens, index and index_timestep_zero, CFG 1 and 4",
        "loras": "a LoRA on modulation layers, four strengths, two at once",
    }
    for case, what in told.items():
        differences = found[case]["differences"]
        worst = max(differences.values())
        yield Row(
            f"table against weights, fp32 and bf16: {what}",
            "bit-equal" if worst == 0 else f"{worst:.1e}",
            f"the weights themselves, {len(differences)} comparisons",
            bound=TABLE_BOUND,
            met=worst == 0,
        )
    control = min(found["control"].values())
    yield Row("one number of one modulation weight changed", f"{control:.1e} seen")


def layouts(settings: SimpleNamespace) -> Iterator[Row]:
    """The official folder against a repacked file of the same weights."""
    comfy = _comfy.folder()
    what = "official folder against repacked file: latents, conditioning, pictures"
    if comfy is None:
        yield missing(what, _comfy.NO_COMFY, "bit-equal")
        return
    differences = _comfy.cases("qwen_loader_cases.py", comfy)["layouts"]["differences"]
    worst = max(differences)
    found = "bit-equal" if worst == 0 else f"{worst:.1e}"
    yield Row(what, found, f"{len(differences)} comparisons", bound="bit-equal", met=worst == 0)


def diffusers(settings: SimpleNamespace) -> Iterator[Row]:
    """The same tiny weights, noise, sigmas and picture through our nodes and through diffusers."""
    bound = f"≤ {PARITY_BOUND:.0e}"
    comfy = _comfy.folder()
    lacking = _comfy.NO_COMFY if comfy is None else ""
    for name in ("diffusers", "transformers"):
        if importlib.util.find_spec(name) is None:
            lacking = f"pip install {name}"
    if lacking:
        yield missing("our nodes against QwenImageEditPlusPipeline", lacking, bound)
        return
    given = {"comfy": str(comfy), "threads": settings.threads}
    found = measured("_realistic_twins.py", [json.dumps(given)])
    for what, difference in found["differences"].items():
        yield Row(
            f"Qwen-Image-Edit-{found['edition']}, fp32, {what}",
            f"{difference:.1e} apart",
            f"QwenImageEditPlusPipeline of diffusers {found['diffusers']}",
            bound=bound,
            met=difference <= PARITY_BOUND,
        )
