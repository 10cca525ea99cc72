"""How much memory a run of the realistic pipeline takes, and a plan that keeps it within a card.

``predict`` gives the peak of each phase from what is loaded and from what is asked for; ``plan``
says what stays on the card, what streams, how high decoding's strips are and what leaves first, or
the largest size that fits. docs/vram.md tells both in words.

All sizes are bytes; GB are 10⁹ of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from .vram_activations import (
    DECODE,
    DIT,
    ENCODE,
    FULL,
    GB,
    PHASES,
    RESTORE,
    TEXT,
    DiTShape,
    Job,
    Loaded,
    TextShape,
    VAEShape,
    activations,
    by_dtype,
    check,
    is_narrow,
    sixteen,
)

__all__ = [
    "DECODE", "DIT", "ENCODE", "FULL", "GB", "PHASES", "RESTORE", "TEXT",
    "DiTShape", "Job", "Loaded", "Phase", "Plan", "Prediction", "TextShape", "VAEShape",
    "activations", "alone", "by_dtype", "largest_alone", "plan", "predict",
]  # fmt: skip

ACTIVATION_MARGIN = 0.15
"""On top of what tensors take: the allocator's fragments and the kernels' workspaces."""
FIXED_MARGIN = GB
"""The device's context, the libraries' handles and kernels. Both margins are uncalibrated."""
RESERVE = GB // 2
"""Left free beneath the card unless told otherwise."""
USES = {
    TEXT: ("text_encoder",),
    ENCODE: ("vae",),
    DIT: ("dit", "table", "lora"),
    DECODE: ("vae",),
    RESTORE: (),
}
LEAVES = ("text_encoder", "vae", "dit", "lora", "table")
"""Who leaves first in a phase that does not use it: an unchanged prompt is not encoded again."""
STREAMS = frozenset({"dit", "text_encoder"})
"""What can run without being on the card as a whole: a layer is brought when it is its turn."""
STRIPS = (32, 16, 8, 4, 2, 1)
"""Rows of the latent that decoding takes at once, as a plan chooses from."""
STREAM_BUFFERS = 2
"""Layers on the way while a component streams: one that computes, one that is being brought."""


@dataclass(frozen=True)
class Phase:
    """One phase's memory. resident: component -> bytes on the card. activations: all else that
    tensors take at the worst moment. moving: buffers of layers on their way to the card."""

    name: str
    resident: Mapping[str, int]
    activations: int
    moving: int = 0

    @property
    def simulated(self) -> int:
        """What tensors take."""
        return sum(self.resident.values()) + self.moving + self.activations

    @property
    def bytes(self) -> int:
        """What a card is to have: with both margins."""
        return self.simulated + round(ACTIVATION_MARGIN * self.activations) + FIXED_MARGIN

    @property
    def shares(self) -> dict[str, float]:
        """component, "activations", "moving" and "margins" -> share of ``bytes``."""
        parts = dict(self.resident) | {"activations": self.activations, "moving": self.moving}
        parts["margins"] = self.bytes - self.simulated
        return {name: size / self.bytes for name, size in parts.items() if size}


@dataclass(frozen=True)
class Prediction:
    """The phases of a run, in their order."""

    phases: tuple[Phase, ...]

    @property
    def worst(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def peak(self) -> int:
        """What a card is to have for all of them."""
        return self.worst.bytes

    def phase(self, name: str) -> Phase:
        """A phase by its name, one of PHASES."""
        return next(phase for phase in self.phases if phase.name == name)


@dataclass(frozen=True)
class Plan:
    """How a run is kept within a card.

    fits: whether it is. job: as asked for, with the strips and the joined conditionings that the
    plan chose. streamed_a_step: bytes that come to the card in each step of the sampler.
    moved_a_run: bytes that come back between phases, once a run with a new prompt. leaving: phase
    -> who leaves for it, in order. largest: (width, height) of the largest picture of these
    proportions that fits, where this one does not; None where none does.
    """

    fits: bool
    job: Job
    prediction: Prediction
    available: int
    streamed_a_step: int
    moved_a_run: int
    leaving: Mapping[str, tuple[str, ...]]
    largest: tuple[int, int] | None = None

    @property
    def resident(self) -> Mapping[str, Mapping[str, int]]:
        """phase -> component -> bytes that stay on the card."""
        return MappingProxyType({phase.name: phase.resident for phase in self.prediction.phases})

    @property
    def short(self) -> int:
        """Bytes that are missing; 0 where it fits."""
        return max(0, self.prediction.peak - self.available)


def predict(
    loaded: Loaded, job: Job, resident: Mapping[str, Mapping[str, int]] | None = None
) -> Prediction:
    """The memory of each phase.

    resident: phase -> component -> bytes on the card; None: everything in every phase.
    Raises: ValueError where the job is none.
    """
    check(job)
    everything = loaded.bytes
    phases = []
    for name in PHASES:
        here = everything if resident is None else resident[name]
        moving = sum(
            STREAM_BUFFERS * _layer(loaded, used)
            for used in USES[name]
            if used in STREAMS and here.get(used, 0) < everything[used]
        )
        kept = MappingProxyType({part: size for part, size in here.items() if size})
        phases.append(Phase(name, kept, activations(loaded, job, name), moving))
    return Prediction(tuple(phases))


def plan(
    loaded: Loaded,
    job: Job,
    card: int,
    reserve: int = RESERVE,
    budgets: Mapping[str, int] | None = None,
) -> Plan:
    """Fit a job into a card.

    card: bytes of it. reserve: bytes of it that stay free, for the desktop. budgets: component ->
    the most bytes it may hold on the card at any time.
    The plan takes, in this order: lower strips, then weights that a phase does not use leave
    (only as many bytes as are missing), then conditionings one by one, then weights stream.
    Raises: ValueError where the job is none.
    """
    check(job)
    made = _fit(loaded, job, card - reserve, budgets or {})
    if made.fits:
        return made
    available, kept = card - reserve, budgets or {}
    return replace(made, largest=_largest(job, lambda j: _fit(loaded, j, available, kept).fits))


def alone(loaded: Loaded, job: Job, budgets: Mapping[str, int] | None = None) -> Prediction:
    """The memory of each phase with nothing on the card but what it uses, and that as a whole
    where ``budgets`` allow it. Raises: ValueError where the job is none."""
    sizes = _capped(loaded, budgets or {})
    return predict(
        loaded, job, {each: {name: sizes[name] for name in USES[each]} for each in PHASES}
    )


def largest_alone(
    loaded: Loaded, job: Job, available: int, budgets: Mapping[str, int] | None = None
) -> tuple[int, int] | None:
    """(width, height) of the largest picture of a job's proportions, at most as large, that fits
    without streaming; None where none does."""
    return _largest(job, lambda j: alone(loaded, j, budgets).peak <= available)


def _fit(loaded: Loaded, job: Job, available: int, budgets: Mapping[str, int]) -> Plan:
    job = _lower_strips(loaded, job, available, budgets)
    everything = _capped(loaded, budgets)
    resident = _resident(loaded, job, available, everything)
    streams = any(resident[DIT].get(name, 0) < everything[name] for name in USES[DIT])
    if streams and job.at_once > 1:
        job = replace(job, at_once=1)
        resident = _resident(loaded, job, available, everything)
    prediction = predict(loaded, job, resident)
    sizes = loaded.bytes
    passes = -(-job.conditionings // job.at_once)
    streamed = passes * sum(sizes[name] - resident[DIT].get(name, 0) for name in ("dit",))
    moved = sum(
        max(0, resident[now].get(name, 0) - resident[before].get(name, 0))
        for name in sizes
        for before, now in zip((PHASES[-1], *PHASES), PHASES, strict=False)
    )
    leaving = {
        phase: tuple(n for n in LEAVES if resident[phase].get(n, 0) < everything[n])
        for phase in PHASES
    }
    return Plan(
        fits=prediction.peak <= available,
        job=job,
        prediction=prediction,
        available=available,
        streamed_a_step=streamed,
        moved_a_run=moved,
        leaving=leaving,
    )


def _capped(loaded: Loaded, budgets: Mapping[str, int]) -> dict[str, int]:
    return {name: min(size, budgets.get(name, size)) for name, size in loaded.bytes.items()}


def _resident(
    loaded: Loaded, job: Job, available: int, everything: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """phase -> component -> bytes: all that there is room for, what is used last of all to go."""
    found = {}
    sizes = loaded.bytes
    for phase in PHASES:
        here = dict(everything)
        missing = _needed(loaded, job, phase, here, sizes) - available
        order = [n for n in LEAVES if n not in USES[phase]]
        for name in (*order, *(n for n in USES[phase] if n in STREAMS)):
            if missing <= 0:
                break
            if name in USES[phase] and here[name] == sizes[name]:
                missing += STREAM_BUFFERS * _layer(loaded, name)
            gone = min(here[name], missing)
            here[name] -= gone
            missing -= gone
        found[phase] = here
    return found


def _needed(
    loaded: Loaded, job: Job, phase: str, here: Mapping[str, int], sizes: Mapping[str, int]
) -> int:
    moving = sum(
        STREAM_BUFFERS * _layer(loaded, name)
        for name in USES[phase]
        if name in STREAMS and here[name] < sizes[name]
    )
    return Phase(phase, here, activations(loaded, job, phase), moving).bytes


def _lower_strips(loaded: Loaded, job: Job, available: int, budgets: Mapping[str, int]) -> Job:
    """The highest strips up to the job's with which everything stays, or, where none are that low,
    with which the VAE fits by itself."""
    if job.strip_rows == FULL:
        return job
    everything = _capped(loaded, budgets)
    lower = [replace(job, strip_rows=rows) for rows in STRIPS if rows < job.strip_rows]
    for here in (everything, {"vae": everything["vae"]}):
        for tried in (job, *lower):
            sizes = loaded.bytes | here
            phases = (_needed(loaded, tried, phase, here, sizes) for phase in (ENCODE, DECODE))
            if max(phases) <= available:
                return tried
    return (job, *lower)[-1]


def _largest(job: Job, fits: Callable[[Job], bool]) -> tuple[int, int] | None:
    """By halving the long side's range: what fits grows with nothing but the size."""
    longer = max(job.width, job.height)

    def size(sixteenths: int) -> tuple[int, int]:
        factor = sixteenths * 16 / longer
        return sixteen(job.width * factor), sixteen(job.height * factor)

    low, high = 0, longer // 16
    while high - low > 1:
        middle = (low + high) // 2
        if fits(job.scaled(*size(middle))):
            low = middle
        else:
            high = middle
    return size(low) if low else None


def _layer(loaded: Loaded, name: str) -> int:
    """Bytes of the largest layer that streams."""
    if name == "dit":
        numbers = loaded.dit_shape.mlp_ratio * loaded.dit_shape.hidden**2
        return numbers * (1 if is_narrow(loaded.dit) else 2)
    shape = loaded.text_shape
    return shape.hidden * shape.intermediate * (1 if is_narrow(loaded.text_encoder) else 2)
