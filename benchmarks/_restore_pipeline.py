"""Figures of GPENRestore around the generator, taken on the node itself, as ComfyUI runs it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _comfy
from _child import measured
from _detector import detector_path
from _measure import ratio
from _pictures import SOLVAY_FACES
from _table import Row, missing

ONE_BATCH = 4
MEMORY_BOUND = 1.2
LARGE_BOUND = 1.5


def _lacking(settings: SimpleNamespace) -> str:
    """What a run of the node needs and is not here, or nothing."""
    if _comfy.folder() is None:
        return _comfy.NO_COMFY
    if detector_path(settings.faces) is None:
        return "run `python run.py weights faces`"
    return ""


def _on_node(settings: SimpleNamespace, task: str, **more: object) -> dict[str, Any]:
    given = {
        "comfy": str(_comfy.folder()),
        "detector": str(detector_path(settings.faces)),
        "size": 256 if settings.quick else 512,
        "threads": settings.threads,
        "task": task,
        **more,
    }
    return measured("_restore_node.py", [json.dumps(given)])


def solvay(settings: SimpleNamespace) -> Iterator[Row]:
    """The 29 faces of Solvay 1927: all restored in one batch's memory, nothing else touched."""
    what = "29-face photo"
    lacking = _lacking(settings) or ("" if settings.photo else "give the photo with --photo")
    if lacking:
        yield missing(what, lacking, f"{SOLVAY_FACES} restored")
        return
    photo = str(Path(settings.photo).resolve())
    batch = _on_node(settings, "photo", photo=photo, max_faces=ONE_BATCH)
    whole = _on_node(settings, "photo", photo=photo, max_faces=0)
    yield Row(
        f"{what}, max_faces 0",
        f"{whole['restored']} restored, {whole['seconds']:.0f} s",
        bound=f"{SOLVAY_FACES} restored",
        met=whole["restored"] == whole["squares"] == SOLVAY_FACES,
    )
    grown = [result["growth_bytes"] / 1e6 for result in (whole, batch)]
    yield Row(
        f"{what}, memory",
        f"{grown[0]:.0f} MB",
        f"one batch of {batch['restored']} {grown[1]:.0f} MB",
        f"{grown[0] / grown[1]:.2f} ×",
        f"≤ {MEMORY_BOUND} ×",
        met=grown[0] <= MEMORY_BOUND * grown[1] and batch["restored"] == ONE_BATCH,
    )
    yield _equal_row(f"{what}, strength 0", whole["off_equal"], "the input")
    share = f"the input on the {whole['outside_share']:.0%} outside".replace("%", " %")
    equal = whole["outside_equal"] and whole["changed"] and 0 < whole["outside_share"] < 1
    yield _equal_row(f"{what}, outside the masks", equal, share)
    yield Row(
        f"{what}, strength, skin_smooth and mask changed",
        f"{whole['slider_passes']} faces through the network",
        bound="0",
        met=whole["slider_passes"] == 0 and whole["sliders_work"],
    )


def _equal_row(what: str, equal: bool, name: str) -> Row:
    told = f"{'bit-equal to' if equal else 'differs from'} {name}"
    return Row(what, told, bound="bit-equal", met=equal)


def large(settings: SimpleNamespace) -> Iterator[Row]:
    """One face in a picture of 24 megapixels against the same face in one."""
    width, height = (3000, 2000) if settings.quick else (6000, 4000)
    what, bound = f"one face in {width}×{height}, detection aside", f"≤ {LARGE_BOUND} ×"
    lacking = _lacking(settings)
    if lacking:
        yield missing(what, lacking, bound)
        return
    result = _on_node(settings, "large", hw=(height, width), rounds=min(settings.rounds, 5))
    seconds = result["seconds"]
    against = ratio(seconds["large"], seconds["small"])
    yield Row(
        what,
        f"{statistics.median(seconds['large']):.2f} s",
        f"in 1024² {statistics.median(seconds['small']):.2f} s",
        f"{against:.2f} ×",
        bound,
        met=against <= LARGE_BOUND and set(result["restored"]) == {1},
    )
