"""Figures of the plan: predictions beside simulations, and how long a plan takes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import _comfy
import _pack
from _realistic_memory import WHOLE_DIT_BYTES, loaded, prompt, question
from _simulate import Question, simulate
from _table import Row, missing
from _vram_ladder import simulated

_pack.load()

from realtoon.engine import vram_activations, vram_plan  # noqa: E402
from realtoon.engine.vram_plan import (  # noqa: E402
    DECODE,
    DIT,
    ENCODE,
    GB,
    TEXT,
    Job,
    Loaded,
    Plan,
    TextShape,
)

CONFIGURATIONS = 40
SEED = 7
OFF_BOUND, BELOW_BOUND = 0.10, 0.05
BOUND = "-5 % to +10 %"
LADDER = (768, 1024, 1280, 1536, 2048)
PLANNING_BOUND_MS = 50
SIDES = range(512, 2049, 64)
SEEN = range(112, 1025, 8)
"""Sides of the copies that the text encoder sees."""
_NAMES = {"fp8": "float8_e4m3fn", "bf16": "bfloat16", "fp32": "float32"}
Way = tuple[Loaded, Job, str, Question]
"""What is loaded, what is asked for, its phase, and how that is asked of the simulation."""


def prediction(settings: SimpleNamespace) -> Iterator[Row]:
    """Random configurations, simulated on the host's own networks: activations of both, and the
    peaks of whole runs with their weights."""
    comfy = _comfy.folder()
    if comfy is None:
        yield missing("prediction against simulation", _comfy.NO_COMFY, BOUND)
        return
    dice = random.Random(SEED)
    count = 8 if settings.quick else CONFIGURATIONS
    made = [_configuration(dice) for _ in range(count)]
    yield _phases(comfy, f"{count} random DiT configurations", made)
    made = [_strips(dice) for _ in range(count // 4)]
    yield _phases(comfy, f"{count // 4} of them through the VAE in strips", made)
    made = [_prompt(dice) for _ in range(count)]
    yield _phases(comfy, f"{count} random prompts through the text encoder", made)
    yield _tower(comfy, dice, count // 4)
    yield _runs(comfy, dice, count // 8)


def _phases(comfy: Path, told: str, made: Sequence[Way]) -> Row:
    answers = simulate(comfy, [asked for *_, asked in made])
    predicted = [vram_plan.activations(held, job, phase) for held, job, phase, _ in made]
    return _errors(told, predicted, [answer["beside"] for answer in answers])


def _tower(comfy: Path, dice: random.Random, count: int) -> Row:
    """The vision part alone: in a whole prompt the language part takes more."""
    sizes = [(dice.choice(SEEN), dice.choice(SEEN)) for _ in range(count)]
    dtypes = [dice.choice(("fp8", "bf16")) for _ in sizes]
    asked = [
        {"what": "vision", "width": wide, "height": high, "dtype": dtype}
        for (wide, high), dtype in zip(sizes, dtypes, strict=True)
    ]
    held = [Loaded(text_encoder={_NAMES[dtype]: GB}) for dtype in dtypes]
    predicted = list(map(vram_activations.vision, held, sizes))
    told = f"{count} pictures through its vision part"
    return _errors(told, predicted, [answer["beside"] for answer in simulate(comfy, asked)])


def _runs(comfy: Path, dice: random.Random, count: int) -> Row:
    """Peaks of all tensors, weights among them, as planned for a card of a random size."""
    made = [_run(comfy, dice) for _ in range(count)]
    answers = iter(simulate(comfy, [each for _, asked in made for each in asked.values()]))
    predicted, found = [], []
    for plan, asked in made:
        found.append(simulated(plan, {phase: next(answers)["beside"] for phase in asked}))
        predicted.append(max(plan.prediction.phase(name).simulated for name in asked))
    return _errors(f"{count} whole runs with their weights", predicted, found)


def _run(comfy: Path, dice: random.Random) -> tuple[Plan, dict[str, Question]]:
    """A random run, planned, and phase -> how it is asked of the simulation."""
    _, vae, _, way = _strips(dice)
    _, text, _, words = _prompt(dice)
    size, dtype, table = (vae.width, vae.height), dice.choice(("fp8", "bf16")), dice.random() < 0.5
    job = replace(
        vae,
        references=(size,) * dice.choice((1, 1, 2, 3)),
        vision=text.vision,
        text_tokens=text.text_tokens,
        batch=dice.choice((1, 1, 2, 4)),
    )
    held = loaded(comfy, dtype)
    if not table:
        held = replace(held, dit={_NAMES[dtype]: WHOLE_DIT_BYTES[dtype]}, table=0)
    plan = vram_plan.plan(held, job, dice.choice((12, 16, 24)) * GB)
    way |= {"strip_rows": plan.job.strip_rows}
    more = {"dtype": dtype, "table": table, "rows": job.batch, "text_tokens": job.text_tokens}
    return plan, {
        TEXT: words | {"dtype": "fp8", "table": "bf16"},
        DIT: question(size, len(job.references), **more),
        ENCODE: way | {"direction": "encode"},
        DECODE: way | {"direction": "decode"},
    }


def _errors(told: str, predicted: Sequence[int], found: Sequence[int]) -> Row:
    errors = [ours / real - 1 for ours, real in zip(predicted, found, strict=True)]
    low, high = min(errors), max(errors)
    return Row(
        f"prediction against simulation, {told} (simulated)",
        f"{100 * low:+.1f} % to {100 * high:+.1f} %",
        bound=BOUND,
        met=low >= -BELOW_BOUND and high <= OFF_BOUND,
    )


def _prompt(dice: random.Random) -> Way:
    """A prompt about up to three pictures."""
    pictures = tuple(
        (dice.choice(SEEN), dice.choice(SEEN)) for _ in range(dice.choice((0, 1, 1, 2, 3)))
    )
    dtype, table = dice.choice((("fp8", "bf16"), ("fp8", "fp8"), ("bf16",) * 2, ("fp32",) * 2))
    tokens = dice.randint(10, 1500) + sum(map(vram_activations.picture_tokens, pictures))
    held = Loaded(
        text_encoder={_NAMES[dtype]: GB}, text_shape=TextShape(narrow_embedding=table == "fp8")
    )
    job = Job(vision=pictures, text_tokens=tokens)
    return held, job, TEXT, prompt(tokens, pictures, dtype, table)


def _strips(dice: random.Random) -> Way:
    """A picture's way through the VAE."""
    direction, phase = dice.choice((("decode", DECODE), ("encode", ENCODE)))
    size = (dice.choice(SIDES), dice.choice(range(512, 1025, 64)))
    job = Job(
        *size,
        references=(size,),
        precision=dice.choice(("fp32", "bf16")),
        strip_rows=dice.choice(vram_plan.STRIPS[:-1]),
    )
    asked = {"what": "vae", "direction": direction, "width": size[0], "height": size[1]}
    asked |= {"dtype": job.precision, "strip_rows": job.strip_rows}
    return Loaded(), job, phase, asked


def _configuration(dice: random.Random) -> Way:
    size = (dice.choice(SIDES), dice.choice(SIDES))
    references = tuple(
        (dice.choice(SIDES), dice.choice(SIDES)) for _ in range(dice.choice((0, 1, 1, 2, 3)))
    )
    text, rows = dice.randint(20, 2000), dice.choice((1, 1, 2, 4))
    dtype, table = dice.choice(("fp8", "bf16")), dice.choice((True, False))
    held = Loaded(dit={_NAMES[dtype]: GB})
    job = Job(*size, references=references, text_tokens=text, batch=rows)
    asked = question(size, rows=rows, text_tokens=text, dtype=dtype, table=table) | {
        "references": [list(each) for each in references]
    }
    return held, job, DIT, asked


def planning(settings: SimpleNamespace) -> Iterator[Row]:
    """The slowest of many plans, among them some that do not fit and look for a size that does."""
    held = Loaded(
        dit={"float8_e4m3fn": 13_700_000_000},
        text_encoder={"float8_e4m3fn": 7_800_000_000},
        vae={"bfloat16": 254_000_000},
    )
    slowest = 0.0
    for card_gb in (3, 4, 8, 16, 24):
        for side in LADDER:
            took = []
            for _ in range(settings.rounds):
                started = time.perf_counter()
                vram_plan.plan(held, Job().scaled(side, side), card_gb * GB)
                took.append(time.perf_counter() - started)
            slowest = max(slowest, min(took))
    bound = f"≤ {PLANNING_BOUND_MS} ms"
    yield Row(
        "a plan", f"{1e3 * slowest:.1f} ms", bound=bound, met=1e3 * slowest <= PLANNING_BOUND_MS
    )
