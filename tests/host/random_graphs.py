"""Whole graphs on a card that is simulated, drawn at random, for guard_cases.py: in a ComfyUI's own
process, on its tiny Qwen models.

Each draws a card, budgets, two guards on the same models, a picture's size and a LoRA, then runs
text encoding, picture encoding, sampling and decoding in any order, with other workflows' models,
unloading, errors and interrupts in between. At every load and in every forward pass the weights on
the card, as the host counts them, and what a run of this size takes besides are held against it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import random
import zlib
from dataclasses import dataclass, replace
from typing import Any

import qwen_loader_cases as qwen
from simulated_card import BrokenError, Device, adapter, changed, state

SIDES = ((32, 32), (48, 32), (64, 64))
TOKENS = (3, 9, 27, 5, 11)
OPERATIONS = (
    *("text", "encode", "sample", "sample", "decode", "decode by the host"),
    *("other guard", "unguarded", "stranger", "unload", "error", "interrupt"),
)


def plan():
    return importlib.import_module("realtoon.engine.vram_plan")


def graphs(count: int) -> dict:
    """What was done, what overran a budget or the card, and what was left behind."""
    counted = ("operations", "guarded loads", "partly", "checks", "stopped", "broken")
    found: dict[str, Any] = dict.fromkeys((*counted, "would overrun unguarded", "cannot fit"), 0)
    found |= {"graphs": count, "overruns": [], "leftovers": [], "differences": {}}
    models = qwen.load("dit.safetensors")[:3]
    pristine = weights(models)
    for way in WAYS:
        for side in SIDES:
            usual(way, models, side, False)
            usual(way, models, side, True)
    for seed in range(count):
        _Graph(seed, models, found).run(pristine)
    plain, folded = (usual("sample", models, SIDES[0], each) for each in (False, True))
    return found | {"what a LoRA changes": qwen.apart(plain, folded)}


def weights(models) -> list[int]:
    """Of each model's numbers, in order."""
    import torch

    parts = (models[0].model, models[1].cond_stage_model, models[2].first_stage_model)
    return [
        zlib.crc32(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
        for part in parts
        for tensor in part.state_dict().values()
        if tensor.numel()
    ]


# --- what a workflow does, whoever holds the models -----------------------------------------------


def text(clip):
    """Of tokens with a picture among them, through the host's own CLIPTextEncode's way."""
    tokens = [(number, 1.0) for number in TOKENS]
    seen = {"type": "image", "data": picture(56, 56), "original_type": "image"}
    tokens.insert(2, (seen, 1.0))
    return clip.encode_from_tokens_scheduled({"qwen25_7b": [tokens]})[0][0]


@functools.cache
def picture(width: int, height: int):
    import torch

    return torch.rand((1, height, width, 3), generator=torch.Generator().manual_seed(width))


@functools.cache
def latent(width: int, height: int, seed: int = 1):
    import torch

    chance = torch.Generator().manual_seed(seed)
    return torch.randn((1, 16, 1, height // 8, width // 8), generator=chance)


def encode(vae, side):
    """As EncodeForEdit does."""
    conditioning = importlib.import_module("realtoon.nodes._conditioning")
    return conditioning.encode_picture(vae, picture(*side), lambda part: None)


def sample(model, side):
    import comfy.sample
    import torch

    chance = torch.Generator().manual_seed(5)
    extra = {"reference_latents": [latent(*side, 2)]}
    conds = [[[torch.randn(1, 7, 48, generator=chance), extra]] for _ in range(2)]
    return comfy.sample.sample(
        model, latent(*side), 1, 4.0, "euler", "simple", *conds, torch.zeros_like(latent(*side)),
        seed=5, disable_pbar=True,
    )  # fmt: skip


def decode(vae, side):
    """As TiledVAEDecode does."""
    streaming = importlib.import_module("realtoon.nodes._streaming")
    return streaming.decode(vae, latent(*side), "fp32", 2)[0]


def decode_by_host(vae, side):
    return vae.decode(latent(*side))


WAYS = {
    "text": lambda models, side: text(models[1]),
    "encode": lambda models, side: encode(models[2], side),
    "sample": lambda models, side: sample(models[0], side),
    "decode": lambda models, side: decode(models[2], side),
    "decode by the host": lambda models, side: decode_by_host(models[2], side),
}
COMPONENTS = {"text": "text_encoder", "sample": "dit"}


def with_lora(model):
    """A LoRA that the host folds into some of the weights."""
    import torch

    clone = model.clone()
    names = [n for n in model.model_state_dict() if ".attn.to_" in n and n.endswith("q.weight")]
    for name in names:
        shape = model.model_state_dict()[name].shape
        clone.add_patches({name: ("diff", (torch.full(shape, 0.02),))}, 1.0)
    assert clone.patches
    return clone


def onto(device, models):
    """The same models, as on a card."""
    model, clip, vae = models[0].clone(), models[1].clone(), copy.copy(models[2])
    vae.patcher, vae.device = vae.patcher.clone(), device
    for patcher in (model, clip.patcher, vae.patcher):
        patcher.load_device = device
    return model, clip, vae


_usual: dict[tuple[str, tuple[int, int], bool], Any] = {}


def usual(way: str, models, side, folded: bool):
    """The result where there is no card and no guard."""
    key = (way, side, folded and way == "sample")
    if key not in _usual:
        model = with_lora(models[0]) if key[2] else models[0]
        _usual[key] = WAYS[way]((model, *models[1:]), side)
    return _usual[key]


# --- one graph ------------------------------------------------------------------------------------


@dataclass
class _Guarded:
    guard: Any
    models: tuple[Any, Any, Any]
    on_exceed: str


class _Graph:
    def __init__(self, seed: int, models, found: dict) -> None:
        self.dice, self.plain, self.found, self.seed = random.Random(seed), models, found, seed
        self.side = self.dice.choice(SIDES)
        self.folded, self.beside = self.dice.random() < 0.4, self.dice.random() < 0.3

    def run(self, pristine: list[int]) -> None:
        dice = self.dice
        about = importlib.import_module("realtoon.nodes._guard_parts").loaded(*self.plain)
        self.job = plan().Job(
            *self.side, references=(self.side,), text_tokens=7, conditionings=2, at_once=2
        )
        total = sum(about.bytes.values())
        least = plan().alone(about, self.job).peak - max(about.bytes.values())
        self.card = least + dice.randint(total // 6, 2 * total)
        with Device(self.card + dice.choice((0, total))) as device:
            self.device = device
            device.management.unload_all_models()
            self.models = onto(device.device, self.plain)
            if self.folded:
                self.models = (with_lora(self.models[0]), *self.models[1:])
            if self.beside:
                self.models[0].set_additional_models("beside", [device.patcher(6)])
            originals = [self.models[0], self.models[1].patcher, self.models[2].patcher]
            before = state(*originals)
            self.strangers = [device.patcher(dice.randint(2, 60)) for _ in range(2)]
            self.guards = [self._guarded() for _ in range(2)]
            for _ in range(6):
                self._one(dice.choice(OPERATIONS))
            device.empty()
            left = changed(before, state(*originals))
            left += ["weights"] if weights(self.plain) != pristine else []
            if left:
                self.found["leftovers"].append([self.seed, left])

    def _guarded(self) -> _Guarded:
        pack, dice = adapter(), self.dice
        parts = importlib.import_module("realtoon.nodes._guard_parts")
        about = parts.loaded(*self.models)
        budgets = {
            name: int(dice.uniform(0.1, 2) * about.bytes[name])
            for name in ("dit", "text_encoder", "vae")
            if dice.random() < 0.25
        }
        on_exceed = dice.choice(("adapt", "adapt", "adapt", "warn", "stop"))
        guard = pack.Guard(
            about, pack.Wishes(self.card, 0, budgets, on_exceed), self.device.device, None
        )
        known = dice.random() < 0.7
        try:
            guard.settle(parts.job(*(self.side if known else (1024, 1024))), binding=known)
        except ValueError:
            self.found["stopped"] += 1
            on_exceed, guard.wishes = "adapt", replace(guard.wishes, on_exceed="adapt")
            guard.settle(parts.job(*self.side))
        return _Guarded(guard, adapter("_guard_clones").guarded(*self.models, guard), on_exceed)

    def _one(self, name: str) -> None:
        dice, management = self.dice, self.device.management
        self.found["operations"] += 1
        if name == "unload":
            self.device.empty()
        elif name == "stranger":
            management.load_models_gpu([dice.choice(self.strangers)])
        elif name == "unguarded":
            self._compare(dice.choice(list(WAYS)), self.models)
        elif name in ("error", "interrupt"):
            self._break(dice.choice(self.guards), dice.choice(list(WAYS)), name)
        else:
            guarded = self.guards[name == "other guard"]
            self._guarded_run(guarded, dice.choice(list(WAYS)) if name == "other guard" else name)

    def _compare(self, way: str, models) -> None:
        made = WAYS[way](models, self.side)
        wanted = usual(way, self.plain, self.side, self.folded)
        name = "with a LoRA" if way == "sample" and self.folded else way
        found = self.found["differences"]
        found[name] = max(found.get(name, 0.0), qwen.apart(made, wanted))

    def _guarded_run(self, guarded: _Guarded, way: str) -> None:
        self.found["guarded loads"] += 1
        models = guarded.models
        if self.dice.random() < 0.4:
            model, clip, vae = models
            models = (model.clone(), clip.clone(), copy.copy(vae))
        try:
            with self._checked(guarded, way, models):
                self._compare(way, models)
        except ValueError as error:
            if guarded.on_exceed != "stop" or "VRAM Guard" not in str(error):
                raise
            self.found["stopped"] += 1

    def _break(self, guarded: _Guarded, way: str, what: str) -> None:
        """An error or an interrupt as a model's first layer is called, or as it is loaded."""
        broken, management = break_with(what), self.device.management
        patcher = _patcher(guarded.models, way)
        try:
            if self.dice.random() < 0.5:
                with on_load(guarded.models, way, broken) as models:
                    self.device.empty()
                    WAYS[way](models, self.side)
            else:
                with computing(patcher.model, broken):
                    WAYS[way](guarded.models, self.side)
        except (BrokenError, management.InterruptProcessingException):
            self.found["broken"] += 1
        except ValueError as error:
            if "VRAM Guard" not in str(error):
                raise

    @contextlib.contextmanager
    def _checked(self, guarded: _Guarded, way: str, models):
        """The card and the budgets, held against what is on it whenever a model computes."""
        component = COMPONENTS.get(way, "vae")
        with computing(_patcher(models, way).model, lambda: self._check(guarded, way, component)):
            yield

    def _check(self, guarded: _Guarded, way: str, component: str) -> None:
        pack, found = plan(), self.found
        names = {"text": pack.TEXT, "encode": pack.ENCODE, "sample": pack.DIT}
        phase = names.get(way, pack.DECODE)
        guard, patcher = guarded.guard, _patcher(self.models, way)
        found["checks"] += 1
        size, own = patcher.model_size(), patcher.loaded_size()
        found["partly"] += own < size
        budget = guard.wishes.budgets.get(component, size)
        if own > min(budget, guard.limits.get(component, size)) and own < size:
            found["overruns"].append([self.seed, way, own, budget])
        if own == size > budget:
            found["overruns"].append([self.seed, way, "whole", own, budget])
        if on_card(patcher.model) > own + 4096:
            found["overruns"].append([self.seed, way, "uncounted", on_card(patcher.model), own])
        job = self.job if not guard.parted else replace(self.job, at_once=1)
        besides = pack.Phase(phase, {}, pack.activations(guard.loaded, job, phase)).bytes
        over = self.device.held + besides - self.card
        if over <= 0:
            return
        if guarded.on_exceed == "warn":
            found["would overrun unguarded"] += 1
        elif own == 0 or besides > self.card:
            found["cannot fit"] += 1
        else:
            found["overruns"].append([self.seed, way, "card", over, own, size])


def _patcher(models, way: str):
    if way == "sample":
        return models[0]
    return models[1].patcher if way == "text" else models[2].patcher


def on_card(model) -> int:
    """Bytes of the layers that the host has brought to the card and not taken away."""
    import comfy.model_management as management

    return sum(
        management.module_size(each)
        for each in model.modules()
        if getattr(each, "comfy_patched_weights", False) and not list(each.children())
    )


def break_with(what: str):
    """What raises an error, the host's interrupt, or the error of a card that is full."""
    import comfy.model_management as management
    import torch

    def fail(*_args, **_kwargs):
        if what == "interrupt":
            management.interrupt_current_processing(True)
            try:
                management.throw_exception_if_processing_interrupted()
            finally:
                management.interrupt_current_processing(False)
        raise torch.OutOfMemoryError("out of memory") if what == "memory" else BrokenError

    return fail


@contextlib.contextmanager
def computing(model, call):
    """Call something as a model's first layer computes, or lends its weights, each time anew."""
    import comfy.ops

    layers = {id(each): each for each in model.modules() if list(each.parameters(recurse=False))}
    first: list[int] = []

    def used(layer, *_args):
        if not first or first[0] == id(layer):
            first[:] = [id(layer)]
            call()

    def cast(layer, *args, **kwargs):
        if id(layer) in layers:
            used(layer)
        return before(layer, *args, **kwargs)

    before = comfy.ops.cast_bias_weight
    hooks = [each.register_forward_pre_hook(used) for each in layers.values()]
    comfy.ops.cast_bias_weight = cast
    try:
        yield
    finally:
        comfy.ops.cast_bias_weight = before
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def on_load(models, way: str, call):
    """Clones of the models that call something when the one of this way is loaded."""
    from comfy.patcher_extension import CallbacksMP

    model, clip, vae = models[0].clone(), models[1].clone(), copy.copy(models[2])
    vae.patcher = vae.patcher.clone()
    patcher = _patcher((model, clip, vae), way)
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, "injected", call)
    yield model, clip, vae
