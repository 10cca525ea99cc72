"""The modulation table under ComfyUI: patches of the host's LoRA loaders and the sampler's schedule
reach it. Beside _host.py the only file here that names the host's modules.

Nothing of the host is replaced: what is attached travels with the patcher's clones, and the table
itself hangs on the model. Everything here holds on ComfyUI 0.3.75 and on 0.33.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.float
import comfy.lora
import comfy.model_management as management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn

from ..engine import modulation_table as engine
from ..engine.modulation_table import Fold, ModulationTable, Provider

_KEY = "realtoon_modulation"
_ATTRIBUTE = "realtoon_modulation_table"
_PREFIX = "diffusion_model."


def attach(
    patcher: comfy.model_patcher.ModelPatcher, provider: Provider, dtype: torch.dtype | None = None
) -> ModulationTable:
    """Answer the modulation of a Qwen-Image model from a table; its weights leave the model.

    patcher: freshly made, not loaded to a device, before it is cloned or given on; the model's
    state dict may have been loaded with or without the modulation weights, or come later.
    provider: name in the DiT -> tensor; it lives as long as the model. dtype: what the model would
    hold these weights in, None: as the provider gives them.
    Raises: ValueError, see engine.modulation_table.attach.
    """
    model = patcher.model.diffusion_model
    table = engine.attach(model, provider, dtype)
    setattr(model, _ATTRIBUTE, table)
    # The host would count the names in the state dict as resident.
    patcher.size = engine.resident_bytes(patcher.model)
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, _KEY, _follow_patches)
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, _KEY, _before_run)
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, _KEY, _after_detach)
    patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, _KEY, _with_schedule)
    return table


def table_of(model: nn.Module) -> ModulationTable | None:
    """The table of the host's model (a patcher's ``model``), if one is attached."""
    return getattr(getattr(model, "diffusion_model", None), _ATTRIBUTE, None)


def _follow_patches(patcher: comfy.model_patcher.ModelPatcher, *_: Any) -> None:
    """Fold this patcher's LoRAs in; what is the same as before keeps its rows."""
    table = table_of(patcher.model)
    if table is None:
        return
    folds = {}
    for name in _names(table):
        patches = patcher.patches.get(_PREFIX + name)
        if patches:
            folds[name] = Fold(_Patches(patches), _folder(_PREFIX + name, list(patches)))
    table.set_folds(folds)


def _names(table: ModulationTable) -> list[str]:
    return [f"{name}.{part}" for name in table.layers for part in ("weight", "bias")]


class _Patches:
    """Patches of one key, equal if they are the same objects at the same strengths.

    Adapters may hold tensors, which do not compare to a bool; they are held here, so that no other
    object takes their identity.
    """

    def __init__(self, patches: list[tuple[Any, ...]]) -> None:
        self.patches = [tuple(patch) for patch in patches]

    def _marks(self) -> list[tuple[Any, ...]]:
        return [(p[0], id(p[1]), p[2], p[3], id(p[4])) for p in self.patches]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Patches) and self._marks() == other._marks()

    __hash__ = None


def _folder(key: str, patches: list[tuple[Any, ...]]) -> Callable[[Tensor, torch.device], Tensor]:
    """What ModelPatcher.patch_weight_to_device does to a weight, beside the model."""

    def fold(weight: Tensor, device: torch.device) -> Tensor:
        # Newer hosts compute it in fp16 on some cards, older ones in fp32.
        compute = getattr(management, "lora_compute_dtype", lambda _: torch.float32)(device)
        wide = management.cast_to_device(weight, device, compute, copy=True)
        wide = comfy.lora.calculate_weight(patches, wide, key)
        seed = _string_to_seed(key)
        return comfy.float.stochastic_rounding(wide, weight.dtype, seed=seed)

    return fold


def _string_to_seed(key: str) -> int:
    newer = getattr(comfy.utils, "string_to_seed", None)
    return (newer or comfy.model_patcher.string_to_seed)(key)


def _before_run(patcher: comfy.model_patcher.ModelPatcher) -> None:
    _follow_patches(patcher)
    table = table_of(patcher.model)
    if table is None:
        return
    names = {_PREFIX + name for name in _names(table)}
    for patches in patcher.hook_patches.values():
        keys = {key if isinstance(key, str) else key[0] for key in patches}
        if keys & names:
            raise ValueError(
                "A LoRA hook changes modulation layers, which the modulation table does not follow"
                " within a run. Next step: set modulation to weights in QwenEditLoader, or load"
                " the LoRA without a hook."
            )


def _after_detach(patcher: comfy.model_patcher.ModelPatcher, unpatch_all: bool) -> None:
    # A clone that dies detaches too, but the model stays.
    table = table_of(patcher.model)
    if table is not None and unpatch_all:
        table.clear()


def _with_schedule(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """args: (guider, sigmas, …) of a sampler's ``sample``."""
    guider, sigmas = args[:2]
    model = getattr(guider, "inner_model", None)
    table = None if model is None else table_of(model)
    if table is not None and isinstance(sigmas, Tensor):
        table.set_schedule(model.model_sampling.timestep(sigmas).float())
    return executor(*args, **kwargs)
