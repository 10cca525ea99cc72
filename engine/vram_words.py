"""A plan of memory in words, for nodes and for the command line."""

from __future__ import annotations

from collections.abc import Mapping

from .vram_plan import DIT, GB, USES, Loaded, Phase, Plan

NAMES = {
    "dit": "DiT",
    "text_encoder": "text encoder",
    "vae": "VAE",
    "lora": "LoRA",
    "table": "modulation table",
    "activations": "activations",
    "moving": "layers on the way",
    "margins": "margins",
}


def size(count: float) -> str:
    """Bytes as GB, or as MB where they are few."""
    return f"{count / GB:.2f} GB" if abs(count) >= GB / 100 else f"{count / 1e6:.2f} MB"


def parts(phase: Phase) -> dict[str, int]:
    """What a phase's bytes are made of, weights first; see NAMES."""
    made = dict(phase.resident) | {"moving": phase.moving, "activations": phase.activations}
    made["margins"] = phase.bytes - phase.simulated
    return {name: bytes_ for name, bytes_ in made.items() if bytes_}


def told(made: Plan, loaded: Loaded) -> list[str]:
    """The plan in lines: whether it fits, each phase with its parts, what leaves, what streams."""
    job, peak = made.job, made.prediction.peak
    lines = [
        f"{job.width}×{job.height}: {size(peak)} at the peak, in {made.prediction.worst.name};"
        f" {size(made.available)} are there: {_verdict(made)}"
    ]
    phases = [phase for phase in made.prediction.phases if phase.activations]
    lines += map(_phase, phases)
    lines += filter(None, (_leaving(made, loaded, phase.name) for phase in phases))
    if made.streamed_a_step:
        lines.append(f"the DiT streams {size(made.streamed_a_step)} a step from main memory")
    if made.moved_a_run:
        lines.append(f"moved between phases: {size(made.moved_a_run)} a run with a new prompt")
    return lines


def _verdict(made: Plan) -> str:
    if made.fits:
        return "fits"
    if made.largest is None:
        return f"{size(made.short)} short, at every size"
    return f"{size(made.short)} short; the largest that fits is {made.largest[0]}×{made.largest[1]}"


def _phase(phase: Phase) -> str:
    inside = ", ".join(f"{NAMES[name]} {size(count)}" for name, count in parts(phase).items())
    return f"{phase.name}: {size(phase.bytes)} ({inside})"


def _leaving(made: Plan, loaded: Loaded, phase: str) -> str:
    """Who is not on the card as a whole in a phase, in the order in which they leave."""
    here: Mapping[str, int] = made.resident[phase]
    gone = {name: loaded.bytes[name] - here.get(name, 0) for name in made.leaving[phase]}
    named = [
        f"{size(count)} of the {NAMES[name]}"
        for name, count in gone.items()
        if count and not (phase == DIT and name in USES[DIT])
    ]
    return f"leaves for {phase}: {', then '.join(named)}" if named else ""
