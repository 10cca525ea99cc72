"""Clones of a workflow's models that keep to their guard's budgets and tell it their phases.

A class and wrappers travel with the clones, and stand on nothing else. Names the host's modules for
this subject; holds on ComfyUI 0.3.75 and on 0.33.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import comfy.model_patcher
import comfy.utils
from comfy.patcher_extension import WrappersMP

from ..engine.vram_plan import DECODE, DIT, ENCODE, TEXT
from . import _guard_parts, _qwen_patcher
from ._guard import Guard

_KEY = "realtoon_guard"
_PAGE = 32 << 20


def guarded(model: Any, clip: Any, vae: Any, guard: Guard) -> tuple[Any, Any, Any]:  # noqa: ANN401
    """Clones of the three under one guard. clip, vae: None stays None."""
    held = _held(model, guard, "dit")
    held.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, _sampling(guard))
    held.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, _KEY, _preparing(guard))
    held.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, _KEY, _one_by_one(guard))
    if clip is not None:
        clip = clip.clone()
        clip.patcher = _held(clip.patcher, guard, "text_encoder")
        clip.__class__ = _measured(_Encoding, type(clip))
    if vae is not None:
        vae = copy.copy(vae)
        vae.patcher = _held(vae.patcher, guard, "vae")
        vae.__class__ = _measured(_Coding, type(vae))
    return held, clip, vae


def measuring(patcher: Any, phase: str) -> contextlib.AbstractContextManager[None]:  # noqa: ANN401
    """The time of a phase that this pack runs by itself, on a patcher that may be guarded."""
    hold: _Hold | None = getattr(patcher, "attachments", {}).get(_KEY)
    return contextlib.nullcontext() if hold is None else hold.guard.running(phase)


class _Encoding:
    """In front of a text encoder: its encoding is a phase of its guard."""

    def clone(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        clone = super().clone(*args, **kwargs)
        clone.__class__ = _measured(_Encoding, type(clone))
        return clone

    def encode_from_tokens(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with measuring(self.patcher, TEXT):
            return super().encode_from_tokens(*args, **kwargs)

    def encode_from_tokens_scheduled(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with measuring(self.patcher, TEXT):
            return super().encode_from_tokens_scheduled(*args, **kwargs)


class _Coding:
    """In front of a VAE: its encoding and its decoding are phases of its guard."""

    def encode(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with measuring(self.patcher, ENCODE):
            return super().encode(*args, **kwargs)

    def encode_tiled(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with measuring(self.patcher, ENCODE):
            return super().encode_tiled(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with measuring(self.patcher, DECODE):
            return super().decode(*args, **kwargs)

    def decode_tiled(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with measuring(self.patcher, DECODE):
            return super().decode_tiled(*args, **kwargs)


@lru_cache(maxsize=16)
def _measured(front: type[Any], kind: type[Any]) -> type[Any]:
    if issubclass(kind, front):
        return kind
    return type(f"Guarded{kind.__name__}", (front, kind), {})


@dataclass(frozen=True)
class _Hold:
    guard: Guard
    component: str


class _Held:
    """In front of a kind of patcher: it loads no more than its guard allows."""

    def partially_load(self, device_to: Any, extra_memory: float = 0, **kwargs: Any) -> Any:  # noqa: ANN401
        try:
            return self._load_within(device_to, extra_memory, **kwargs)
        except BaseException:
            # Newer hosts do so for errors only, and their interrupt is none.
            self.detach()
            raise

    def _load_within(self, device_to: Any, extra_memory: float, **kwargs: Any) -> Any:  # noqa: ANN401
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

    def pin_weight_to_device(self, key: str) -> Any:  # noqa: ANN401
        # For what is to come layer by layer. The host leaves on the device what a larger budget
        # has brought there, counts it no more, and would patch it a second time.
        name = key.rpartition(".")[0]
        module = comfy.utils.get_attr(self.model, name) if name else self.model
        if getattr(module, "comfy_patched_weights", False):
            _take_off(self, name, module)
        return super().pin_weight_to_device(key)


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
    return clone


def _take_off(patcher: Any, name: str, module: Any) -> None:  # noqa: ANN401
    """One layer's weights off the device, as they were before patches."""
    for part, _ in list(module.named_parameters(recurse=False)):
        key = f"{name}.{part}"
        kept = patcher.backup.pop(key, None)
        if kept is not None:
            put = comfy.utils.copy_to_param if kept.inplace_update else comfy.utils.set_attr_param
            put(patcher.model, key, kept.weight)
    module.to(patcher.offload_device)
    module.comfy_patched_weights = False


def _page_at_most(patcher: Any, limit: int) -> None:  # noqa: ANN401
    """For patchers that bring weights page by page, of which the host has set no limit."""
    pages = getattr(patcher, "_vbar_get", lambda: None)()
    if hasattr(pages, "set_watermark"):
        # Small layers lie beside the pages. Part of a page would count as a whole one.
        limit -= int(patcher.model.model_loaded_weight_memory)
        pages.set_watermark(max(0, limit) // _PAGE * _PAGE)


def _sampling(guard: Guard) -> Callable[..., Any]:
    def sample(executor: Any, noise: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        guider = executor.class_obj
        if noise.ndim >= 4:
            guard.settle(_guard_parts.job_of(noise, guider.conds, getattr(guider, "cfg", 1.0)))
        with guard.running(DIT):
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
