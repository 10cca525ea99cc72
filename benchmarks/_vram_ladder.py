"""The ladder of sizes: what a card is to have for each, naively, as published and as planned here,
all but the published figures simulated; and what each lever brings.

    python benchmarks/_vram_ladder.py docs/images/vram_ladder.svg

draws it. It takes COMFYUI_PATH, or the ComfyUI of the cache, as the benchmarks do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _comfy  # noqa: E402
from _realistic_memory import (  # noqa: E402
    BF16,
    PUBLISHED_GB,
    WHOLE_DIT_BYTES,
    Key,
    beside,
    loaded,
    question,
    remembered,
)
from _table import Row, missing  # noqa: E402
from realtoon.engine import vram_plan  # noqa: E402
from realtoon.engine.vram_plan import (  # noqa: E402
    DECODE,
    DIT,
    ENCODE,
    FULL,
    GB,
    Job,
    Loaded,
    Plan,
)

SIDES = (768, 1024, 1280, 1536, 2048)
CARD_GB = 24
SMALLER_GB = (16, 12, 8)
SPARE_GB = 0.5


def ladder(settings: SimpleNamespace) -> Iterator[Row]:
    """Every size at 24 GB, and the plans for smaller cards, each phase of each simulated."""
    comfy = _comfy.folder()
    if comfy is None:
        yield missing("ladder", _comfy.NO_COMFY)
        return
    sides = (1024,) if settings.quick else SIDES
    for dtype in ("fp8", BF16):
        held = loaded(comfy, dtype, dtype)
        cards = [(card, side) for card in (CARD_GB, *SMALLER_GB) for side in sides]
        plans = {each: _planned(held, *each) for each in cards}
        found = beside(comfy, {_key(made): made.job for made in plans.values()}, dtype)
        for (card_gb, side), made in plans.items():
            yield _rung(made, found[_key(made)], f"{side}² in {card_gb} GB, {dtype}", card_gb)


def _planned(held: Loaded, card_gb: int, side: int) -> Plan:
    return vram_plan.plan(held, Job().scaled(side, side), card_gb * GB)


def _key(made: Plan) -> Key:
    return made.job.width, made.job.strip_rows


def simulated(made: Plan, found: Mapping[str, int]) -> int:
    """Bytes of all tensors in a plan's worst phase. found: phase -> simulated ones beside the
    weights."""
    phases = {name: made.prediction.phase(name) for name in found}
    return max(
        sum(phase.resident.values()) + phase.moving + found[name] for name, phase in phases.items()
    )


def _rung(made: Plan, found: Mapping[str, int], told: str, card_gb: int) -> Row:
    peak = simulated(made, found)
    spare = card_gb * GB - peak
    full = card_gb == CARD_GB
    return Row(
        f"{told} (simulated)",
        f"{peak / GB:.2f} GB, {spare / GB:.2f} GB beneath the card; planned with margins"
        f" {made.prediction.peak / GB:.2f} GB; {made.streamed_a_step / GB:.2f} GB streamed a step,"
        f" {made.moved_a_run / GB:.2f} GB moved a run",
        PUBLISHED_GB.get(made.job.width, "") if full else "",
        bound=f"fits, ≥ {SPARE_GB} GB beneath" if full else "",
        met=made.fits and spare >= SPARE_GB * GB if full else None,
    )


def naive(comfy: Path, sides: Sequence[int], dtype: str = BF16) -> dict[int, int]:
    """side -> bytes with every weight on the card, the modulation's too, and the host's own decode
    in bf16; simulated."""
    held = loaded(comfy, dtype, dtype)
    rest = sum(held.bytes.values()) - held.bytes["dit"] - held.table
    jobs = {(side, FULL): _naive_job(side) for side in sides}
    found = beside(comfy, jobs, dtype)
    asked = [question((side, side), dtype=dtype, table=False) for side in sides]
    for side, answer in zip(sides, remembered(comfy, asked), strict=True):
        found[side, FULL][DIT] = answer["beside"]
    return {side: WHOLE_DIT_BYTES[dtype] + rest + max(found[side, FULL].values()) for side in sides}


def _naive_job(side: int) -> Job:
    return replace(Job().scaled(side, side), precision="bf16", strip_rows=FULL)


def levers(_settings: SimpleNamespace) -> Iterator[Row]:
    """What a card is to have at 1024², one lever after the other."""
    comfy = _comfy.folder()
    if comfy is None:
        yield missing("levers", _comfy.NO_COMFY)
        return
    before = 0
    for told, peak in _levers(comfy).items():
        off = f"{(peak - before) / GB:+.2f} GB" if before else ""
        yield Row(f"1024², {told} (simulated)", f"{peak / GB:.2f} GB", ratio=off)
        before = peak


def _levers(comfy: Path) -> dict[str, int]:
    full = naive(comfy, (1024,), "fp8")[1024]
    held = loaded(comfy, "fp8")
    everything = sum(held.bytes.values())
    job = Job()
    in_strips = beside(comfy, {(1024, 8): job})[1024, 8]
    whole = beside(comfy, {(1024, FULL): _naive_job(1024)})[1024, FULL]
    own = held.bytes["dit"] + held.table + in_strips[DIT]
    return {
        "all bf16 on the card, the host's own decode": naive(comfy, (1024,))[1024],
        "fp8 DiT and text encoder": full,
        "a table for the modulation's weights": everything + max(whole.values()),
        "decode and encode in strips, in fp32": everything + max(in_strips.values()),
        "text encoder and VAE leave for the DiT": own,
        "decode alone, the host's own": held.bytes["vae"] + max(whole[DECODE], whole[ENCODE]),
        "decode alone, in strips": held.bytes["vae"] + max(in_strips[DECODE], in_strips[ENCODE]),
    }


def _least(held: Loaded, found: Mapping[str, int]) -> int:
    """Bytes at the peak with nothing on the card but what a phase uses."""
    sizes = held.bytes
    used = {phase: sum(sizes[name] for name in names) for phase, names in vram_plan.USES.items()}
    return max(used[phase] + count for phase, count in found.items())


def _svg(series: Mapping[str, tuple[str, Mapping[int, float]]]) -> str:
    """Groups of bars. series: name -> (colour, side -> GB)."""
    wide, high, left, base, top = 760, 400, 50, 340, 60
    scale = (base - top) / 70
    group, bar = (wide - left - 20) / len(SIDES), 31
    text = '<text x="{:.0f}" y="{:.0f}" font-size="{}" text-anchor="{}" fill="#222">{}</text>'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}"'
        ' font-family="sans-serif">',
        f'<rect width="{wide}" height="{high}" fill="#fff"/>',
        text.format(
            left,
            20,
            15,
            "start",
            "Memory at its peak, GB: one reference, all but the published figures simulated",
        ),
    ]
    for number in range(0, 71, 10):
        y = base - number * scale
        lines.append(f'<path d="M{left} {y:.1f}H{wide - 10}" stroke="#ddd"/>')
        lines.append(text.format(left - 8, y + 4, 12, "end", number))
    for place, side in enumerate(SIDES):
        x = left + group * place + (group - bar * len(series)) / 2
        lines.append(text.format(x + bar * len(series) / 2, base + 18, 13, "middle", f"{side}²"))
        for offset, (colour, values) in enumerate(series.values()):
            if side not in values:
                continue
            tall, at = values[side] * scale, x + offset * bar
            lines.append(
                f'<rect x="{at:.1f}" y="{base - tall:.1f}" width="{bar - 4}" height="{tall:.1f}"'
                f' fill="{colour}"/>'
            )
            label = f"{values[side]:.1f}"
            lines.append(text.format(at + bar / 2 - 2, base - tall + 13, 11, "middle", label))
    y = base - CARD_GB * scale
    lines.append(f'<path d="M{left} {y:.1f}H{wide - 10}" stroke="#c00" stroke-dasharray="6 4"/>')
    for place, (name, (colour, _)) in enumerate(series.items()):
        x = left + 178 * place
        lines.append(f'<rect x="{x}" y="{high - 28}" width="12" height="12" fill="{colour}"/>')
        lines.append(text.format(x + 18, high - 17, 12, "start", name))
    lines.append(text.format(wide - 12, y - 6, 12, "end", f"a card of {CARD_GB} GB"))
    return "\n".join([*lines, "</svg>\n"])


def draw(comfy: Path) -> str:
    """The ladder as an SVG picture."""
    held = loaded(comfy, "fp8")
    plans = {side: _planned(held, CARD_GB, side) for side in SIDES}
    found = beside(comfy, {_key(made): made.job for made in plans.values()})
    ours = {side: simulated(made, found[_key(made)]) / GB for side, made in plans.items()}
    least = {side: _least(held, found[_key(made)]) / GB for side, made in plans.items()}
    all_bf16 = {side: peak / GB for side, peak in naive(comfy, SIDES).items()}
    published = {side: float(told.split()[0].rstrip("+")) for side, told in PUBLISHED_GB.items()}
    return _svg(
        {
            "naive: all bf16, resident": ("#b8b8b8", all_bf16),
            "published (1536²: or more)": ("#f0ac4b", published),
            "ours, planned for 24 GB": ("#6fbf8b", ours),
            "ours, a phase at a time": ("#a8c8f0", least),
        }
    )


def main(argv: Sequence[str]) -> None:
    """Draw into the file that is named."""
    comfy = _comfy.folder()
    if comfy is None:
        raise SystemExit(_comfy.NO_COMFY)
    Path(argv[0]).write_text(draw(comfy), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
