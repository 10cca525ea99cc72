"""Figures of the frame: what comes out of the realistic pipeline lies on what went in."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import _comfy
from _child import measured
from _table import Row, missing

SHIFT_BOUND_PX = 0.25
MOVED_PX = 2 * SHIFT_BOUND_PX
"""A picture that was moved by a pixel must read as at least this, or the measure says nothing."""
APART_BOUND = 0.05
SIZES = [
    (1023, 611), (997, 1001), (1201, 801), (853, 641), (1536, 1024), (1919, 1079), (777, 1333),
    (1081, 1921), (641, 853), (901, 401), (1000, 333), (1025, 1023), (731, 977), (1411, 997),
    (2001, 667), (611, 1223), (1237, 1753), (883, 587), (639, 639), (1103, 823),
]  # fmt: skip
QUICK_SIZES = SIZES[:4]
PEER = "TextEncodeQwenImageEditPlus"


def _pictures(settings: SimpleNamespace, task: str, **more: object) -> list[dict[str, Any]] | None:
    comfy = _comfy.folder()
    if comfy is None:
        return None
    given = {"comfy": str(comfy), "threads": settings.threads, "task": task, **more}
    return measured("_realistic_framed.py", [json.dumps(given)])["pictures"]


def _worst(shift: list[float]) -> float:
    return max(map(abs, shift))


def framing(settings: SimpleNamespace) -> Iterator[Row]:
    """Odd sizes through the whole pipeline at denoise 0, and where the model sees the reference."""
    sizes = QUICK_SIZES if settings.quick else SIZES
    bound = f"≤ {SHIFT_BOUND_PX} px"
    found = _pictures(settings, "framing", sizes=sizes)
    if found is None:
        yield missing("shift of the result against the picture", _comfy.NO_COMFY, bound)
        return
    worst = max(found, key=lambda each: _worst(each["shift"]))
    seen = min(min(map(abs, each["moved"]), default=0.0) for each in found)
    yield Row(
        f"shift of the result against the picture, {len(found)} odd sizes, worst"
        f" ({'×'.join(map(str, worst['size']))})",
        f"{_worst(worst['shift']):.2f} px",
        f"moved by 1 px on purpose: reads at least {seen:.2f} px",
        bound=bound,
        met=_worst(worst["shift"]) <= SHIFT_BOUND_PX and seen >= MOVED_PX,
    )
    equal = sum(each["size equal"] for each in found)
    yield Row(
        "size of the result exactly the prepared picture's",
        f"{equal} of {len(found)}",
        bound="all",
        met=equal == len(found),
    )
    off, peer = ([each[name] for each in found] for name in ("off", "peer off"))
    yield Row(
        "an edge of the reference from the result's in the model's own grid, long side 1024, worst",
        f"{max(off):.0f} px",
        f"{PEER} {max(peer):.0f} px (median {statistics.median(peer):.0f})",
        bound="0 px",
        met=max(off) == 0,
    )


def inputs(settings: SimpleNamespace) -> Iterator[Row]:
    """Files of every kind, through LoadImage."""
    bound = "runs, size and place kept"
    found = _pictures(settings, "inputs")
    if found is None:
        yield missing("grey, palette, RGBA, 16 bit, 64×64, 6000×200", _comfy.NO_COMFY, bound)
        return
    for each in found:
        height, width = each["result"]
        if each["lost"]:
            lost = "this ComfyUI's LoadImage hands out plain white"
            yield missing(f"{each['name']} file", lost, bound)
            continue
        kept = each["finite"] and each["size equal"] and each["move"] == [0, 0]
        place = "in place" if each["move"] == [0, 0] else f"moved by {each['move']}"
        size = "" if each["size equal"] else ", another size than prepared"
        yield Row(
            f"{each['name']} file, {each['source'][1]}×{each['source'][0]}",
            f"{width}×{height}, {place}{size}",
            bound=bound,
            met=kept and each["apart"] <= APART_BOUND,
        )
