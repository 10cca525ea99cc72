"""What the guarded clones of a workflow's models share: a plan, budgets, and what was measured.

The clones themselves are made in _guard_clones.py. Names the host's modules for this subject; holds
on ComfyUI 0.3.75 and on 0.33.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import torch

from ..engine import vram_plan, vram_words
from ..engine.vram_plan import DECODE, DIT, ENCODE, GB, PHASES, TEXT, Job, Loaded, Plan
from . import _guard_reading
from ._guard_reading import Reading
from ._tensors import InputError

log = logging.getLogger("realtoon")

ADAPT, WARN, STOP = "adapt", "warn", "stop"
ON_EXCEED = (ADAPT, WARN, STOP)
COMPONENTS = {"text_encoder": (TEXT,), "dit": (DIT,), "vae": (ENCODE, DECODE)}

_KEPT_RUNS = 16
_last_runs: dict[str, dict[str, Reading]] = {}


@dataclass(frozen=True)
class Wishes:
    """The node's inputs. card: bytes of it, 0 for all that is there. reserve: bytes left free.
    budgets: component -> bytes, only those that were asked for."""

    card: int
    reserve: int
    budgets: Mapping[str, int]
    on_exceed: str


class Guard:
    """What the guarded clones of one node share: the plan, the limits, what was measured."""

    def __init__(
        self, loaded: Loaded, wishes: Wishes, device: torch.device, node_id: str | None
    ) -> None:
        self.loaded, self.wishes, self.device, self._node_id = loaded, wishes, device, node_id
        self.limits: dict[str, int] = dict(wishes.budgets)
        self.beside: dict[str, int] = {}
        self.parted = False
        self.ceiling: int | None = None
        self.predicted: dict[str, int] = {}
        self.measured: dict[str, Reading] = {}
        self._running: tuple[str, ...] = ()
        self._noting = threading.Lock()
        self._of_last_run: set[str] = set()

    @property
    def card(self) -> int:
        """Bytes of the card, or of as much of it as was asked for, less what others hold."""
        there = int(management.get_total_memory(self.device))
        asked = min(self.wishes.card or there, there)
        if self.device.type != "cuda":
            return asked
        return max(0, min(asked, there - self._reading().others))

    @property
    def holds(self) -> bool:
        """Whether weights have a place of their own to be kept out of."""
        return not management.is_device_cpu(self.device)

    def settle(self, job: Job, binding: bool = True) -> Plan:
        """Plan a run, and set the limits by it. binding: whether the job is the run's own.

        Raises: InputError where it is to stop.
        """
        wishes, card = self.wishes, self.card
        made = vram_plan.plan(self.loaded, job, card, wishes.reserve, wishes.budgets)
        needs = vram_plan.alone(self.loaded, job, wishes.budgets)
        self.limits, self.beside, self.parted = dict(wishes.budgets), {}, False
        self.predicted = {phase.name: phase.bytes for phase in made.prediction.phases}
        # A run that is not predicted to fit is not made to fail for sure.
        self.ceiling = made.available if made.fits and wishes.on_exceed != WARN else None
        if binding and needs.peak > made.available and wishes.on_exceed == STOP:
            raise self._too_much(made, needs, job)
        if wishes.on_exceed != WARN:
            self.parted = made.job.at_once < job.at_once
            for name, phases in COMPONENTS.items():
                here = [made.prediction.phase(each) for each in phases]
                self.limits[name] = min(phase.resident.get(name, 0) for phase in here)
                # The host counts no table.
                held = [sum({**phase.resident, "table": 0}.values()) for phase in here]
                self.beside[name] = max(
                    phase.bytes - total for phase, total in zip(here, held, strict=True)
                )
        exceeds = needs.peak > made.available and wishes.on_exceed == WARN
        if binding and (exceeds or not made.fits):
            log.warning("VRAM Guard: %s", vram_words.told(made, self.loaded)[0])
        return made

    def _too_much(self, made: Plan, needs: vram_plan.Prediction, job: Job) -> InputError:
        short = vram_words.size(needs.peak - made.available)
        size = vram_plan.largest_alone(self.loaded, job, made.available, self.wishes.budgets)
        lower = f"lower the picture to {size[0]}×{size[1]}, or " if size else ""
        return InputError(
            "VRAM Guard",
            f"at most {vram_words.size(made.available)} (card less reserve and other programs)",
            f"{vram_words.size(needs.peak)} predicted in {needs.worst.name} at"
            f" {job.width}×{job.height}, {short} too much",
            f"{lower}free {short} on the card, or set on_exceed to adapt, which streams"
            f" {vram_words.size(made.streamed_a_step)} a step",
        )

    def limit(self, component: str, patcher: comfy.model_patcher.ModelPatcher) -> int:
        """The bytes of weights that a component may hold as it is loaded now."""
        size = int(patcher.model_size())
        limit = min(size, self.limits.get(component, size))
        asked = self.wishes.budgets.get(component, size)
        if limit >= self.loaded.bytes[component] and asked >= size:
            # The host counts buffers too, which a plan does not: all of it is all of it.
            limit = size
        if component not in self.beside:
            return limit
        room = self._available() - self.beside[component] - _held_by_others(patcher)
        return max(0, min(limit, room))

    def make_room(self, component: str, patcher: comfy.model_patcher.ModelPatcher) -> None:
        """Have the host put away others' weights that a component needs the place of."""
        if component not in self.beside or not self.holds:
            return
        own = min(int(patcher.model_size()), self.limits[component])
        over = _held_by_others(patcher) + own + self.beside[component] - self._available()
        if over > 0:
            keep = [each for each in management.current_loaded_models if _is(each, patcher)]
            free = management.get_free_memory(self.device)
            management.free_memory(free + over, self.device, keep)

    def _available(self) -> int:
        return self.card - self.wishes.reserve

    def _reading(self, peak: bool = False) -> Reading:
        return _guard_reading.reading(self.device, _paged(self.device), peak)

    def _see(self, peak: bool = False) -> None:
        """Note what is taken, for each phase that runs."""
        now = self._reading(peak)
        with self._noting:
            for phase in self._running:
                most = self.measured.get(phase, Reading()).most(now)
                self.measured[phase] = replace(most, predicted=self.predicted.get(phase, 0))

    @contextlib.contextmanager
    def running(self, phase: str) -> Iterator[None]:
        """A phase's time: a hard ceiling on a card, measured, and all put back at its end.

        phase: one of PHASES. A phase within itself is that phase.
        """
        if phase in self._running:
            yield
            return
        on_card = self.device.type == "cuda"
        if on_card and self._running:
            # The counter starts anew below.
            self._see(peak=True)
        if phase == DIT:
            self._of_last_run = set(PHASES)
        if phase in self._of_last_run:
            self._of_last_run.discard(phase)
            self.measured.pop(phase, None)
        self._running += (phase,)
        try:
            if on_card:
                torch.cuda.reset_peak_memory_stats(self.device)
            self._see()
            polled = contextlib.nullcontext() if on_card else _guard_reading.polled(self._see)
            with _guard_reading.ceiling(self.device, self.ceiling if on_card else None), polled:
                yield
        finally:
            # A card that failed may not answer; its own error is the one to be told.
            with contextlib.suppress(RuntimeError):
                self._see(peak=True)
            self._running = tuple(each for each in self._running if each != phase)
            if phase == DIT:
                self.parted = False
            self._keep()

    def _keep(self) -> None:
        """Remember what was measured for the node's next chart, and say it on the node."""
        if self._node_id is None:
            return
        _last_runs.pop(self._node_id, None)
        while len(_last_runs) >= _KEPT_RUNS:
            del _last_runs[next(iter(_last_runs))]
        _last_runs[self._node_id] = dict(self.measured)
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.send_progress_text("\n".join(self.told()), self._node_id)

    def told(self) -> list[str]:
        """What was measured, in lines."""
        return _guard_reading.told(self.measured, self.device)


def last_run(node_id: str | None) -> dict[str, Reading]:
    """What a node's last run was measured to take; empty before the first."""
    return _last_runs.get(node_id or "", {})


def bytes_of(gb: float) -> int:
    """GB of the node's inputs as bytes."""
    return round(gb * GB)


def _paged(device: torch.device) -> int:
    """Bytes of weights in pages, which torch's allocator does not know of."""
    patchers = [e.model for e in management.current_loaded_models if e.device == device]
    found = [getattr(each, "_vbar_get", lambda: None)() for each in patchers]
    return sum(int(pages.loaded_size()) for pages in found if pages is not None)


def _is(entry: Any, patcher: Any) -> bool:  # noqa: ANN401
    return entry.model is not None and entry.model.is_clone(patcher)


def _held_by_others(patcher: Any) -> int:  # noqa: ANN401
    """Bytes of weights beside a patcher's own, with what is about to be loaded along with it."""
    held = sum(
        int(each.model_loaded_memory())
        for each in management.current_loaded_models
        if each.model is not None and each.device == patcher.load_device and not _is(each, patcher)
    )
    along = patcher.get_nested_additional_models()
    return held + sum(int(each.model_size() - _loaded(each)) for each in along)


def _loaded(patcher: Any) -> int:  # noqa: ANN401
    entries = management.current_loaded_models
    return patcher.loaded_size() if any(_is(each, patcher) for each in entries) else 0
