"""Guarded clones of a workflow's models: a memory budget for each, kept while they run.

Only clones are changed, by a class and by wrappers that travel with their clones, so other
workflows on the same models are untouched. Names the host's modules for this subject; holds on
ComfyUI 0.3.75 and on 0.33.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import psutil
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ..engine import vram_plan, vram_words
from ..engine.vram_plan import DECODE, DIT, ENCODE, GB, TEXT, Job, Loaded, Plan
from . import _guard_parts, _qwen_patcher
from ._tensors import InputError

log = logging.getLogger("realtoon")

ADAPT, WARN, STOP = "adapt", "warn", "stop"
ON_EXCEED = (ADAPT, WARN, STOP)
COMPONENTS = {"text_encoder": (TEXT,), "dit": (DIT,), "vae": (ENCODE, DECODE)}

_KEY = "realtoon_guard"
_KEPT_RUNS = 16
_process = psutil.Process()
_last_runs: dict[str, dict[str, Reading]] = {}


@dataclass(frozen=True)
class Wishes:
    """The node's inputs. card: bytes of it, 0 for all that is there. reserve: bytes left free.
    budgets: component -> bytes, only those that were asked for."""

    card: int
    reserve: int
    budgets: Mapping[str, int]
    on_exceed: str


@dataclass(frozen=True)
class Reading:
    """Bytes at a moment, or the most of several. used: by tensors, on a CPU by this process.
    reserved: by torch's allocator. others: by other processes on the device."""

    used: int = 0
    reserved: int = 0
    others: int = 0

    def most(self, other: Reading) -> Reading:
        """The larger of each."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Reading(*(max(pair) for pair in pairs))


def reading(device: torch.device, peak: bool = False) -> Reading:
    """What is taken now. peak: on a CUDA device, the most since its counter was reset."""
    if device.type != "cuda":
        own = _process.memory_info().rss
        memory = psutil.virtual_memory()
        return Reading(own, own, max(0, memory.total - memory.available - own))
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    others = max(0, total - free - reserved)
    if not peak:
        return Reading(torch.cuda.memory_allocated(device), reserved, others)
    most = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return Reading(*most, others)


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
        self.measured: dict[str, Reading] = {}

    @property
    def card(self) -> int:
        """Bytes of the card, or of as much of it as was asked for, less what others hold."""
        there = int(management.get_total_memory(self.device))
        asked = min(self.wishes.card or there, there)
        if self.device.type != "cuda":
            return asked
        return max(0, min(asked, there - reading(self.device).others))

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
        # A run that is not predicted to fit is not made to fail for sure.
        self.ceiling = made.available if made.fits and wishes.on_exceed != WARN else None
        if binding and needs.peak > made.available and wishes.on_exceed == STOP:
            raise self._too_much(made, needs, job)
        if wishes.on_exceed == ADAPT:
            self.parted = made.job.at_once < job.at_once
            for name, phases in COMPONENTS.items():
                here = [made.prediction.phase(each) for each in phases]
                self.limits[name] = min(phase.resident.get(name, 0) for phase in here)
                held = [sum(phase.resident.values()) for phase in here]
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

    def saw(self, phase: str, peak: bool = False) -> None:
        """Note what is taken."""
        self._note(phase, reading(self.device, peak))

    def saw_step(self) -> None:
        """Note what a step has taken, where nobody else counts it."""
        if self.device.type != "cuda":
            own = _process.memory_info().rss
            self._note(DIT, Reading(own, own))

    def _note(self, phase: str, now: Reading) -> None:
        self.measured[phase] = self.measured.get(phase, Reading()).most(now)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The sampler's time: a hard ceiling on a card, measured, and all put back at its end."""
        on_card = self.device.type == "cuda"
        with _ceiling(self.device, self.ceiling if on_card else None):
            if on_card:
                torch.cuda.reset_peak_memory_stats(self.device)
            self.measured.pop(DIT, None)
            try:
                self.saw(DIT)
                yield
            finally:
                self.saw(DIT, peak=True)
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
        return told(self.measured, self.device)


def told(measured: Mapping[str, Reading], device: torch.device) -> list[str]:
    """What was measured, in lines."""
    if device.type != "cuda":
        return [
            f"measured, {phase}: {vram_words.size(each.used)} of main memory in this process"
            for phase, each in measured.items()
        ]
    return [
        f"measured, {phase}: {vram_words.size(each.used)} in tensors,"
        f" {vram_words.size(each.reserved)} reserved, {vram_words.size(each.others)} by others"
        for phase, each in measured.items()
    ]


def last_run(node_id: str | None) -> dict[str, Reading]:
    """What a node's last run was measured to take; empty before the first."""
    return _last_runs.get(node_id or "", {})


@contextlib.contextmanager
def _ceiling(device: torch.device, available: int | None) -> Iterator[None]:
    """Torch takes no more of a card than this while it is entered; None leaves it as it is."""
    if available is None:
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    now = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _device: 1.0)
    before = now(device)
    torch.cuda.set_per_process_memory_fraction(min(before, max(0.05, available / total)), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def guarded(model: Any, clip: Any, vae: Any, guard: Guard) -> tuple[Any, Any, Any]:  # noqa: ANN401
    """Clones of the three under one guard. clip, vae: None stays None."""
    held = _held(model, guard, "dit")
    held.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, _sampling(guard))
    held.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, _KEY, _preparing(guard))
    held.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, _KEY, _one_by_one(guard))
    held.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _KEY, _seen(guard))
    if clip is not None:
        clip = clip.clone()
        clip.patcher = _held(clip.patcher, guard, "text_encoder")
    if vae is not None:
        vae = copy.copy(vae)
        vae.patcher = _held(vae.patcher, guard, "vae")
    return held, clip, vae


@dataclass(frozen=True)
class _Hold:
    guard: Guard
    component: str


class _Held:
    """In front of a kind of patcher: it loads no more than its guard allows."""

    def partially_load(self, device_to: Any, extra_memory: float = 0, **kwargs: Any) -> Any:  # noqa: ANN401
        hold: _Hold | None = self.attachments.get(_KEY)
        load = super().partially_load
        if hold is None or not hold.guard.holds:
            return load(device_to, extra_memory, **kwargs)
        if hold.component != "dit":
            # A sampler's models are loaded together; there was room made for them before.
            hold.guard.make_room(hold.component, self)
        limit = hold.guard.limit(hold.component, self)
        if limit >= self.model_size():
            return load(device_to, extra_memory, **kwargs)
        if getattr(self, "is_dynamic", bool)():
            result = load(device_to, extra_memory, **kwargs)
            _page_at_most(self, limit)
            return result
        return load(device_to, min(extra_memory, limit - self.loaded_size()), **kwargs)


@lru_cache(maxsize=16)
def _kind(kind: type[Any]) -> type[Any]:
    if issubclass(kind, _Held):
        return kind
    # Whole on the card or none of it cannot be held to a budget.
    base = comfy.model_patcher.ModelPatcher if kind is _qwen_patcher.kind_of("none") else kind
    return type(f"Guarded{kind.__name__}", (_Held, base), {})


def _held(patcher: Any, guard: Guard, component: str) -> Any:  # noqa: ANN401
    clone = patcher.clone()
    clone.__class__ = _kind(type(clone))
    for kind in (*clone.wrappers.values(), *clone.callbacks.values()):
        # Of a guard before this one.
        kind.pop(_KEY, None)
    clone.attachments[_KEY] = _Hold(guard, component)
    # Of the others no end is known, so that only this moment is measured.
    phase = DIT if component == "dit" else f"{vram_words.NAMES[component]} loaded"
    clone.add_callback_with_key(CallbacksMP.ON_LOAD, _KEY, lambda *_: guard.saw(phase))
    return clone


def _page_at_most(patcher: Any, limit: int) -> None:  # noqa: ANN401
    """For patchers that bring weights page by page, of which the host has set no limit."""
    pages = getattr(patcher, "_vbar_get", lambda: None)()
    if hasattr(pages, "set_watermark"):
        pages.set_watermark(limit)


def _is(entry: Any, patcher: Any) -> bool:  # noqa: ANN401
    return entry.model is not None and entry.model.is_clone(patcher)


def _held_by_others(patcher: Any) -> int:  # noqa: ANN401
    return sum(
        int(each.model_loaded_memory())
        for each in management.current_loaded_models
        if each.model is not None and each.device == patcher.load_device and not _is(each, patcher)
    )


def _sampling(guard: Guard) -> Callable[..., Any]:
    def sample(executor: Any, noise: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        guider = executor.class_obj
        if noise.ndim >= 4:
            guard.settle(_guard_parts.job_of(noise, guider.conds, getattr(guider, "cfg", 1.0)))
        with guard.running():
            return executor(noise, *args, **kwargs)

    return sample


def _preparing(guard: Guard) -> Callable[..., Any]:
    def prepare(executor: Any, model: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        guard.make_room("dit", model)
        return executor(model, *args, **kwargs)

    return prepare


def _one_by_one(guard: Guard) -> Callable[..., Any]:
    """Conditionings each in a pass of their own, where the plan has no room for both in one."""

    def calc(executor: Any, model: Any, conds: list[Any], *args: Any) -> Any:  # noqa: ANN401
        if not guard.parted:
            return executor(model, conds, *args)
        none: list[Any] = [None] * len(conds)
        return [
            executor(model, [*none[:i], cond, *none[i + 1 :]], *args)[i]
            for i, cond in enumerate(conds)
        ]

    return calc


def _seen(guard: Guard) -> Callable[..., Any]:
    def forward(executor: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        result = executor(*args, **kwargs)
        guard.saw_step()
        return result

    return forward


def bytes_of(gb: float) -> int:
    """GB of the node's inputs as bytes."""
    return round(gb * GB)
