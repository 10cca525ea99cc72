"""LoRA under ComfyUI: beside the weights through its injections, or folded by its own patches.

One of the files here that name the host's modules. No weight of the base is written, copied, moved
or backed up for an adapter beside it: the patcher's ``patches_uuid`` stays, and the adapters' own
tensors are a model of their own, which the host loads with the base and counts. Holds on ComfyUI
0.3.75 and 0.33.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as management
import comfy.model_patcher
import comfy.weight_adapter
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, PatcherInjection
from torch import Tensor, nn

from ..engine import low_rank
from ..engine.kept import Kept
from ..engine.low_rank import Beside, Held, Injected, Use
from ..engine.modulation_table import TableLinear
from ..weights_loader import lora as files
from ..weights_loader.lora import Adapter, LoraFile
from . import _host
from ._tensors import InputError

FOLDER = "loras"
_KEY = "realtoon_lora"
_PREFIX = "diffusion_model."
_WIDE = (torch.float32, torch.bfloat16, torch.float16)

_kept = Kept(0)
# Model -> whose adapters stand on it (a patcher's id), and what takes them off.
_standing: weakref.WeakKeyDictionary[nn.Module, tuple[int, Injected]] = weakref.WeakKeyDictionary()


_layers: weakref.WeakKeyDictionary[nn.Module, dict[str, nn.Module]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Opened:
    """A file read for a model. gains: model -> layer -> DoRA's gain, computed when asked for."""

    file: LoraFile
    gains: weakref.WeakKeyDictionary[nn.Module, dict[str, Tensor]]


class Link(NamedTuple):
    """One LoRA of a chain. opened: None where the host has folded it."""

    name: str
    opened: Opened | None
    strength: float


def names() -> dict[str, Path]:
    """The files in models/loras, 2 before 10."""
    found = _host.model_files(FOLDER)
    return {name: found[name] for name in sorted(found, key=files.natural_key)}


def layers(patcher: ModelPatcher) -> dict[str, nn.Module]:
    """A model's linear layers by their names in the DiT, whatever their weights are stored in."""
    root = getattr(patcher.model, "diffusion_model", None)
    if not isinstance(root, nn.Module):
        raise InputError(
            "model", "a diffusion model", type(patcher.model).__name__, "join a loader's model here"
        )
    if root not in _layers:
        # Kept, since walking through thousands of modules takes longer than a switch may.
        sizes = ("in_features", "out_features")
        _layers[root] = {
            name: module
            for name, module in root.named_modules()
            if all(isinstance(getattr(module, size, None), int) for size in sizes)
        }
    return _layers[root]


def open_file(
    path: Path, patcher: ModelPatcher, beside: bool, keep_bytes: int
) -> tuple[Opened, bool]:
    """A file for a model. Returns: it, and whether it was kept since an earlier read.

    beside: factors come in the dtype that the model computes in, else as they are in the file.
    keep_bytes: how much of all files together stays in main memory for the next time.
    Raises: WeightsError, also where nothing in the file is for this model.
    """
    shapes = {name: (m.out_features, m.in_features) for name, m in layers(patcher).items()}
    dtype = _compute_dtype(patcher) if beside else None
    key = (_host.file_state(path), dtype, tuple(shapes.items()))
    _kept.limit_bytes = keep_bytes
    if _kept.bytes > keep_bytes:
        _kept.clear()
    opened = _kept.find(key)
    if opened is not None:
        return opened, True
    # Tensors of an inference would be of no use to one who trains.
    with torch.inference_mode(False), torch.no_grad():
        file = files.read(path, shapes)
        adapters = tuple(_narrowed(each, dtype) for each in file.adapters)
    opened = Opened(dataclasses.replace(file, adapters=adapters), weakref.WeakKeyDictionary())
    _kept.keep(key, opened, sum(t.nbytes for a in adapters for t in a.tensors.values()))
    return opened, False


def chain(patcher: ModelPatcher) -> tuple[Link, ...]:
    """The LoRAs that this pack has put on a patcher, in order."""
    return patcher.get_attachment(_KEY) or ()


def beside(patcher: ModelPatcher, link: Link) -> ModelPatcher:
    """A clone with one more LoRA beside its weights. link.opened: not None."""
    clone = _linked(patcher, link)
    modules = layers(clone)
    uses: dict[str, list[Use]] = {}
    for each in chain(clone):
        if each.opened is not None and each.strength != 0:
            gains = _gains(clone, each.opened)
            for adapter in each.opened.file.adapters:
                uses.setdefault(adapter.module, []).append(_use(adapter, each.strength, gains))
    dtype = _compute_dtype(clone)
    held = LoRABeside()
    beside = {
        name: Beside(each, dtype, _bias(modules[name], each), held) for name, each in uses.items()
    }
    shared = [name for name in uses if isinstance(modules[name], TableLinear)]
    dynamic = hasattr(clone, "is_dynamic") and clone.is_dynamic()
    # A static one beside a dynamic base would have the host push all others off the device.
    kind = comfy.model_patcher.CoreModelPatcher if dynamic else ModelPatcher
    own = kind(held, load_device=clone.load_device, offload_device=torch.device("cpu"))
    clone.set_additional_models(_KEY, [own])
    clone.set_injections(_KEY, [PatcherInjection(_putter(beside, shared), _take_off)])
    for call, answer in (
        (CallbacksMP.ON_CLONE, _stands_on_no_clone),
        (CallbacksMP.ON_EJECT_MODEL, _take_off),
    ):
        clone.remove_callbacks_with_key(call, _KEY)
        clone.add_callback_with_key(call, _KEY, answer)
    return clone


def folded(patcher: ModelPatcher, link: Link) -> tuple[ModelPatcher, int]:
    """A clone into whose weights the host will fold a LoRA, as with its own loader.

    Returns: it, and how many biases found no place because their layer has none.
    """
    assert link.opened is not None
    gains = _gains(patcher, link.opened)
    rounds: list[dict[str, Any]] = []

    def put(key: str, patch: object) -> None:
        # One call of the host takes one patch a key, and takes long.
        free = next((each for each in rounds if key not in each), None)
        if free is None:
            free = {}
            rounds.append(free)
        free[key] = patch

    for adapter in link.opened.file.adapters:
        key = f"{_PREFIX}{adapter.module}"
        if adapter.kind != "diff" or "diff" in adapter.tensors:
            named = tuple(adapter.tensors.items())
            put(f"{key}.weight", _Folded(set(), (adapter.kind, adapter.scale, named)))
        bias = low_rank.added_bias(_use(adapter, 1.0, gains))
        if bias is not None:
            put(f"{key}.bias", ("diff", (bias,)))
    clone = _linked(patcher, Link(link.name, None, link.strength))
    left = sum(len(each) - len(clone.add_patches(each, link.strength)) for each in rounds)
    return clone, left


class _Folded(comfy.weight_adapter.WeightAdapterBase):
    """Any adapter as a patch of the host: newer hosts make another one of the same with ``weights``
    moved to a device, so that all of it lies there."""

    name = "realtoon"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(self, weight: Tensor, key: str, strength: float, *_: Any) -> Tensor:
        kind, scale, named = self.weights
        adapter = Adapter(key, kind, dict(named), scale, 0)
        return low_rank.fold(weight, adapter, strength).to(weight.dtype)


class LoRABeside(Held):
    """What stands beside all layers; the host names it by its class when it loads it."""


def _use(adapter: Adapter, strength: float, gains: Mapping[str, Tensor]) -> Use:
    # A layer may have an adapter without a magnitude beside one that has it.
    gain = gains[adapter.module] if "magnitude" in adapter.tensors else None
    return Use(adapter, strength, gain)


def _linked(patcher: ModelPatcher, link: Link) -> ModelPatcher:
    clone = patcher.clone()
    clone.set_attachments(_KEY, (*chain(patcher), link))
    return clone


def _putter(beside: Mapping[str, Beside], shared: Sequence[str]) -> Callable[..., None]:
    def put(patcher: ModelPatcher) -> None:
        old = _standing.pop(patcher.model, None)
        if old is not None:
            old[1].remove()
        injected = Injected(layers(patcher), beside, shared)
        _standing[patcher.model] = (id(patcher), injected)

    return put


def _take_off(patcher: ModelPatcher) -> None:
    """By the patcher that has put them on: a clone of it may die while it runs. Again when all
    others have taken off what may lie over ours."""
    owner, injected = _standing.get(patcher.model, (None, None))
    if injected is not None and owner == id(patcher) and injected.remove():
        del _standing[patcher.model]


def _stands_on_no_clone(_patcher: ModelPatcher, clone: ModelPatcher) -> None:
    # The host copies the mark; a clone would then inject itself when a node adds patches to it.
    clone.is_injected = False


def _compute_dtype(patcher: ModelPatcher) -> torch.dtype:
    model = patcher.model
    dtype = getattr(model, "manual_cast_dtype", None) or model.get_dtype()
    return dtype if dtype in _WIDE else torch.bfloat16


def _narrowed(adapter: Adapter, dtype: torch.dtype | None) -> Adapter:
    """Factors in one dtype; vectors as they are."""
    if dtype is None:
        return adapter
    tensors = {n: t.to(dtype) if t.dim() > 1 else t for n, t in adapter.tensors.items()}
    return dataclasses.replace(adapter, tensors=tensors)


def _bias(module: nn.Module, uses: Sequence[Use]) -> Tensor | None:
    """The layer's own bias, where DoRA needs it."""
    bias = getattr(module, "bias", None)
    return bias if any(use.gain is not None for use in uses) else None


def _gains(patcher: ModelPatcher, opened: Opened) -> dict[str, Tensor]:
    """DoRA's gains of a file on a model, computed once."""
    known = opened.gains.setdefault(patcher.model, {})
    waiting = [
        each
        for each in opened.file.adapters
        if "magnitude" in each.tensors and each.module not in known
    ]
    if waiting:
        progress = _host.Progress(len(waiting))
        with torch.inference_mode(False), torch.no_grad():
            for adapter in waiting:
                weight = _base_weight(patcher, adapter.module)
                known[adapter.module] = low_rank.dora_gain(adapter, weight).cpu()
                progress.step()
    return known


def _base_weight(patcher: ModelPatcher, layer: str) -> Tensor:
    """A layer's weight without what the host has folded in, fp32 where models run."""
    key = f"{_PREFIX}{layer}.weight"
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    backup = patcher.backup.get(key)
    weight = weight if backup is None else backup.weight
    device = management.get_torch_device()
    wide = management.cast_to_device(weight, device, torch.float32, copy=True)
    return wide if convert is None else convert(wide, inplace=True)
