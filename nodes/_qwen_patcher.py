"""How a model of Qwen-Image-Edit is held: once for all workflows, and how much of it on a device.

What both of ComfyUI's ways to hold weights allow: `none` and `sequential` take the static patcher,
whose budget can be set for one model, also where the host pages weights by itself (0.12 and newer).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.model_management as management
import comfy.model_patcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ._host import outlive_entry

ATTENTIONS = ("pytorch", "xformers", "flash", "sage")
AUTO, NONE, SEQUENTIAL = "auto", "none", "sequential"
OFFLOADS = (AUTO, NONE, SEQUENTIAL)

_KEY = "realtoon_qwen"
# What the host itself asks for with --novram; 0 would mean all.
_HARDLY_ANY = 0.1
_WHOLE = 1e32

_kept: dict[str, tuple[tuple[Any, ...], Any]] = {}
_alive: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()


def shared(key: tuple[Any, ...], build: Callable[[], Any]) -> Any:  # noqa: ANN401
    """What ``build`` gives (a patcher, CLIP or VAE), made once as long as anybody has it.

    key: its kind, then what it is made of. One of a kind is held here, until the host unloads it or
    another one is asked for; beside that it lives as long as the workflows that use it.
    """
    made = _alive.get(key)
    kind = key[0]
    if made is None:
        # Two bases are not to be in memory at once because the old one was kept for nobody.
        _kept.pop(kind, None)
        made = _alive[key] = build()
        _patcher(made).add_callback_with_key(
            CallbacksMP.ON_DETACH,
            _KEY,
            lambda gone, unload=True: _let_go(key, gone) if unload else None,
        )
    _kept[kind] = (key, made)
    return made


def _patcher(made: Any) -> comfy.model_patcher.ModelPatcher:  # noqa: ANN401
    return getattr(made, "patcher", made)


def _let_go(key: tuple[Any, ...], patcher: comfy.model_patcher.ModelPatcher) -> None:
    held = _kept.get(key[0])
    if held is None or held[0] != key:
        return
    outlive_entry(patcher.model, held[1])
    del _kept[key[0]]


class _Whole(comfy.model_patcher.ModelPatcher):
    """All weights on the device while the model is there: all of it comes, all of it goes."""

    def partially_load(self, device_to: Any, extra_memory: float = 0, **kwargs: Any) -> Any:  # noqa: ANN401
        return super().partially_load(device_to, _WHOLE, **kwargs)

    def partially_unload(self, *_args: Any, **_kwargs: Any) -> int:
        return 0


class _Sequential(comfy.model_patcher.ModelPatcher):
    """Weights stay in main memory and come to the device layer by layer."""

    def partially_load(self, device_to: Any, extra_memory: float = 0, **kwargs: Any) -> Any:  # noqa: ANN401
        return super().partially_load(device_to, min(extra_memory, _HARDLY_ANY), **kwargs)


def kind_of(offload: str, disable_dynamic: bool = False) -> type[comfy.model_patcher.ModelPatcher]:
    """The class of patcher for one of OFFLOADS; a clone of it is of the same class."""
    core = comfy.model_patcher.ModelPatcher
    usual = getattr(comfy.model_patcher, "CoreModelPatcher", core)
    kinds = {NONE: _Whole, SEQUENTIAL: _Sequential}
    return kinds.get(offload, core if disable_dynamic else usual)


def is_sequential(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether a model's weights come to the device layer by layer."""
    return isinstance(patcher, _Sequential)


def too_large(patcher: comfy.model_patcher.ModelPatcher) -> str:
    """What is wrong with holding a model whole on its device, "" where nothing is."""
    device = patcher.load_device
    if device.type == "cpu" or not isinstance(patcher, _Whole):
        return ""
    has, needs = management.get_total_memory(device), patcher.model_size()
    if needs < has:
        return ""
    return (
        f"offload none: the model's {needs / 1e9:.1f} GB do not fit into the {has / 1e9:.1f} GB of"
        f" {device}, so sampling will run out of memory. Next step: set offload to auto"
    )


def held(model: nn.Module) -> dict[str, int]:
    """Bytes that a model's weights take, by dtype, the largest first."""
    sums: dict[str, int] = {}
    for weight in model.parameters():
        data = getattr(weight, "_qdata", weight)
        name = str(data.dtype).removeprefix("torch.")
        sums[name] = sums.get(name, 0) + data.numel() * data.element_size()
    return dict(sorted(sums.items(), key=lambda each: -each[1]))


def attentions() -> list[str]:
    """Those of ATTENTIONS that this host can run."""
    registered = getattr(host_attention, "REGISTERED_ATTENTION_FUNCTIONS", {})
    return [name for name in ATTENTIONS if name in registered]


def set_attention(patcher: comfy.model_patcher.ModelPatcher, name: str) -> None:
    """Let a model compute attention one way, whatever the host was started with."""
    function = host_attention.REGISTERED_ATTENTION_FUNCTIONS[name]

    def override(_usual: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **kwargs)

    options = patcher.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = override


def usual_attention() -> str:
    """The name of what the host uses where nothing else is asked for."""
    name = getattr(host_attention.optimized_attention, "__name__", "unknown")
    return name.removeprefix("attention_")
