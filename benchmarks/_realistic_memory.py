"""Figures of the realistic pipeline's memory at the official model's real size, all simulated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import _comfy
import _pack
from _simulate import Question, simulate
from _table import Row, missing

_pack.load()

from realtoon.engine import vram_plan  # noqa: E402
from realtoon.engine.vram_activations import TEMPLATE_TOKENS, picture_tokens  # noqa: E402
from realtoon.engine.vram_plan import (  # noqa: E402
    DECODE,
    DIT,
    ENCODE,
    GB,
    TEXT,
    Job,
    Loaded,
    TextShape,
)

RESIDENT_BOUNDS_GB = {"fp8": 13.7, "bf16": 27.4}
PEAK_BOUND_GB = 23.9
DIT_BOUND_GB = 15.5
PUBLISHED_GB = {
    768: "18.1 GB",
    1024: "22.4 GB",
    1280: "24.9 GB, 18 % fail",
    1536: "26.2+ GB, 67 % fail",
}
STEPS = 30
ROW_BYTES = 60 * 6 * 3072 * 2
"""One row of the table in one of its two streams: 60 blocks, 6 vectors of bf16."""
TABLE_BYTES = (2 * STEPS + 1) * ROW_BYTES
WHOLE_DIT_BYTES = {"fp8": 20_430_401_088, "bf16": 40_860_802_176}
FP8, BF16, ALL_FP8 = "fp8", "bf16", "all fp8"
"""Text encoders: the published qwen_2.5_vl_7b_fp8_scaled, whose table of tokens is bf16; all in
bf16; and one whose table of tokens is fp8 as well."""
TEXT_TOKENS, VISION = 300, (384, 384)
"""Of the conditioning, and the copy that the text encoder sees."""
Key = tuple[int, int]
"""A side in pixels, and the rows of decoding's strips."""

_DTYPES = {"fp8": "float8_e4m3fn", "bf16": "bfloat16"}
_answered: dict[str, dict[str, int]] = {}


def question(size: tuple[int, int], references: int = 1, **more: object) -> Question:
    """A forward pass of the DiT with references of the same size. Of its 60 blocks two: each takes
    the same, and gives it back."""
    width, height = size
    standard = {"rows": 1, "text_tokens": TEXT_TOKENS, "dtype": "fp8", "table": True, "blocks": 2}
    return {"what": "dit", "width": width, "height": height} | {
        "references": [size] * references, **standard, **more
    }  # fmt: skip


@lru_cache(maxsize=1)
def weights(comfy: Path) -> dict[tuple[str, str], int]:
    """(part, dtype) -> bytes of the host's own modules at the real size."""
    asked: dict[tuple[str, str], Question] = {("vae", "bf16"): {"what": "vae_weights"}}
    for dtype in _DTYPES:
        asked["dit", dtype] = question((256, 256), 0, blocks=60, dtype=dtype)
        asked["text", dtype] = {"what": "text_weights"}
    asked = {key: {"dtype": key[1]} | each for key, each in asked.items()}
    found = {}
    for (part, dtype), answer in zip(asked, simulate(comfy, list(asked.values())), strict=True):
        found[part, dtype] = answer["weights"]
        if "tokens" in answer:
            found["tokens", dtype] = answer["tokens"]
    return found


def loaded(comfy: Path, dtype: str, text: str = FP8) -> Loaded:
    """What QwenEditLoader loads, with a table of 30 steps. text: FP8, BF16 or ALL_FP8."""
    real = weights(comfy)
    narrow = {_DTYPES["fp8"]: real["text", "fp8"]}
    mixed = {
        _DTYPES["fp8"]: real["text", "fp8"] - real["tokens", "fp8"],
        _DTYPES["bf16"]: real["tokens", "bf16"],
    }
    kinds = {FP8: mixed, BF16: {_DTYPES["bf16"]: real["text", "bf16"]}, ALL_FP8: narrow}
    return Loaded(
        dit={_DTYPES[dtype]: real["dit", dtype]},
        text_encoder=kinds[text],
        vae={_DTYPES["bf16"]: real["vae", "bf16"]},
        table=TABLE_BYTES,
        text_shape=TextShape(narrow_embedding=text == ALL_FP8),
    )


def beside(comfy: Path, jobs: Mapping[Key, Job], dtype: str = FP8) -> dict[Key, dict[str, int]]:
    """key -> phase -> simulated bytes beside the weights. jobs: what is asked for. dtype: of the
    DiT's weights and the text encoder's, whose table of tokens is bf16."""
    asked = [prompt(TEXT_TOKENS, (VISION,), dtype)]
    for job in jobs.values():
        size = (job.width, job.height)
        way = {"width": size[0], "height": size[1], "strip_rows": job.strip_rows}
        vae = {"what": "vae", "dtype": job.precision, **way}
        asked += [question(size, dtype=dtype)]
        asked += [vae | {"direction": way} for way in ("decode", "encode")]
    answers = [answer["beside"] for answer in remembered(comfy, asked)]
    found = {}
    for index, key in enumerate(jobs):
        dit, decode, encode = answers[1 + 3 * index : 4 + 3 * index]
        found[key] = {TEXT: answers[0], ENCODE: encode, DIT: dit, DECODE: decode}
    return found


def prompt(
    text_tokens: int, pictures: Sequence[tuple[int, int]], dtype: str, table: str = BF16
) -> Question:
    """A prompt about pictures on its way through the text encoder. text_tokens: of the
    conditioning, the pictures' among them. pictures: sizes of the copies that are seen. dtype: of
    the weights. table: of the table of tokens."""
    words = text_tokens + TEMPLATE_TOKENS - sum(map(picture_tokens, pictures))
    seen = [list(size) for size in pictures]
    return {"what": "prompt", "words": words, "pictures": seen, "dtype": dtype, "table": table}


def remembered(comfy: Path, questions: Sequence[Question]) -> list[dict[str, int]]:
    """Answers, each simulated once in a run."""
    new = [each for each in questions if json.dumps(each) not in _answered]
    if new:
        answers = simulate(comfy, new)
        _answered.update(zip(map(json.dumps, new), answers, strict=True))
    return [_answered[json.dumps(each)] for each in questions]


def resident(_settings: SimpleNamespace) -> Iterator[Row]:
    """Bytes of the DiT with the modulation table, its rows for 30 steps among them."""
    comfy = _comfy.folder()
    if comfy is None:
        yield missing("resident DiT", _comfy.NO_COMFY)
        return
    for dtype, bound in RESIDENT_BOUNDS_GB.items():
        real, whole = weights(comfy)["dit", dtype], WHOLE_DIT_BYTES[dtype]
        yield Row(
            f"DiT with the modulation table, {dtype}, resident (simulated)",
            f"{real / GB:.2f} GB, and {TABLE_BYTES / GB:.3f} GB of rows at {STEPS} steps",
            f"{whole / GB:.2f} GB with the weights",
            f"{real / whole:.2f} ×",
            f"≤ {bound} GB",
            real <= bound * GB,
        )


def peaks(settings: SimpleNamespace) -> Iterator[Row]:
    """All resident: fp8 DiT and table, fp8 text encoder, VAE; CFG without joined conditionings."""
    comfy = _comfy.folder()
    if comfy is None:
        yield missing("simulated peaks", _comfy.NO_COMFY)
        return
    sides = (1024,) if settings.quick else tuple(PUBLISHED_GB)
    jobs = {(side, 8): Job().scaled(side, side) for side in sides}
    found = beside(comfy, jobs)
    held = loaded(comfy, "fp8")
    for side in sides:
        yield _peak(held, jobs[side, 8], found[side, 8], "", PUBLISHED_GB[side])
    widened = remembered(comfy, [prompt(TEXT_TOKENS, (VISION,), FP8, FP8)])[0]["beside"]
    narrow = found[1024, 8] | {TEXT: widened}
    told = ", table of tokens in fp8 too"
    yield _peak(loaded(comfy, "fp8", ALL_FP8), jobs[1024, 8], narrow, told)
    alone = held.bytes["dit"] + held.table + found[1024, 8][DIT]
    yield Row(
        "1024², DiT phase alone (simulated)",
        f"{alone / GB:.2f} GB",
        bound=f"≤ {DIT_BOUND_GB} GB",
        met=alone <= DIT_BOUND_GB * GB,
    )


def _peak(
    held: Loaded, job: Job, found: Mapping[str, int], told: str, published: str = ""
) -> Row:  # fmt: skip
    name, most = max(found.items(), key=lambda each: each[1])
    peak = sum(held.bytes.values()) + most
    bounded = job.width == 1024 and not told
    return Row(
        f"{job.width}², one reference, all resident{told}, peak (simulated)",
        f"{peak / GB:.2f} GB, in {name} ({held.bytes['text_encoder'] / GB:.2f} GB of it the text"
        f" encoder); with margins {vram_plan.predict(held, job).peak / GB:.2f} GB",
        published,
        bound=f"≤ {PEAK_BOUND_GB} GB" if bounded else "",
        met=peak <= PEAK_BOUND_GB * GB if bounded else None,
    )
