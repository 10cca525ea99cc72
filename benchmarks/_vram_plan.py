"""Figures of the plan: predictions beside simulations, and how long a plan takes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import _comfy
import _pack
from _realistic_memory import question
from _simulate import Question, simulate
from _table import Row, missing

_pack.load()

from realtoon.engine import vram_plan  # noqa: E402
from realtoon.engine.vram_plan import DECODE, DIT, ENCODE, GB, Job, Loaded  # noqa: E402

CONFIGURATIONS = 40
SEED = 7
OFF_BOUND, BELOW_BOUND = 0.10, 0.05
BOUND = "-5 % to +10 %"
LADDER = (768, 1024, 1280, 1536, 2048)
PLANNING_BOUND_MS = 50
SIDES = range(512, 2049, 64)


def prediction(settings: SimpleNamespace) -> Iterator[Row]:
    """Random configurations, simulated on the host's own networks: activations of both."""
    comfy = _comfy.folder()
    if comfy is None:
        yield missing("prediction against simulation", _comfy.NO_COMFY, BOUND)
        return
    dice = random.Random(SEED)
    count = 8 if settings.quick else CONFIGURATIONS
    made = [_configuration(dice) for _ in range(count)]
    answers = simulate(comfy, [asked for _, _, asked in made])
    yield _errors(f"{count} random DiT configurations", [(h, j, DIT) for h, j, _ in made], answers)
    ways = [_strips(dice) for _ in range(count // 4)]
    answers = simulate(comfy, [asked for _, _, asked in ways])
    pairs = [(Loaded(), job, phase) for job, phase, _ in ways]
    yield _errors(f"{count // 4} of them through the VAE in strips", pairs, answers)


def _errors(
    told: str, made: Sequence[tuple[Loaded, Job, str]], answers: Sequence[dict[str, int]]
) -> Row:
    errors = [
        vram_plan.activations(held, job, phase) / answer["beside"] - 1
        for (held, job, phase), answer in zip(made, answers, strict=True)
    ]
    low, high = min(errors), max(errors)
    return Row(
        f"prediction against simulation, {told} (simulated)",
        f"{100 * low:+.1f} % to {100 * high:+.1f} %",
        bound=BOUND,
        met=low >= -BELOW_BOUND and high <= OFF_BOUND,
    )


def _strips(dice: random.Random) -> tuple[Job, str, Question]:
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
    return job, phase, asked | {"dtype": job.precision, "strip_rows": job.strip_rows}


def _configuration(dice: random.Random) -> tuple[Loaded, Job, Question]:
    size = (dice.choice(SIDES), dice.choice(SIDES))
    references = tuple(
        (dice.choice(SIDES), dice.choice(SIDES)) for _ in range(dice.choice((0, 1, 1, 2, 3)))
    )
    text, rows = dice.randint(20, 2000), dice.choice((1, 1, 2, 4))
    dtype, table = dice.choice(("fp8", "bf16")), dice.choice((True, False))
    held = Loaded(dit={{"fp8": "float8_e4m3fn", "bf16": "bfloat16"}[dtype]: GB})
    job = Job(*size, references=references, text_tokens=text, batch=rows)
    asked = question(size, rows=rows, text_tokens=text, dtype=dtype, table=table) | {
        "references": [list(each) for each in references]
    }
    return held, job, asked


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
