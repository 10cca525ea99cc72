"""A card that is simulated, and VRAMGuard's clones loaded onto it in random orders, for
guard_cases.py: in a ComfyUI's own process."""

from __future__ import annotations

import contextlib
import importlib
import random
from dataclasses import replace


class BrokenError(Exception):
    """Raised within a run."""


def adapter():
    return importlib.import_module("realtoon.nodes._guard")


def state(*patchers) -> dict[str, str]:
    """Of the host and of the models that were given, all that a guard could leave changed."""
    import comfy.model_management as management

    functions = {n: id(v) for n, v in vars(management).items() if callable(v)}
    settings = (
        management.EXTRA_RESERVED_VRAM,
        management.vram_state,
        management.minimum_inference_memory(),
    )
    return {
        "functions": repr(sorted(functions.items())),
        "settings": repr(settings),
        "loaded": repr(
            [
                (id(each.model.model), each.model_loaded_memory(), each.device)
                for each in management.current_loaded_models
            ]
        ),
        "options": repr([each.model_options for each in patchers]),
        "kinds": repr([(type(each).__name__, sorted(vars(each))) for each in patchers]),
        "added": repr(
            [
                (
                    each.attachments,
                    sorted(each.callbacks),
                    sorted(each.wrappers),
                    each.object_patches,
                )
                for each in patchers
            ]
        ),
    }


def changed(before: dict, after: dict) -> list[str]:
    return [name for name in before if before[name] != after[name]]


class Device:
    """A card that is none: weights on it lie in main memory, and its bytes are counted."""

    def __init__(self, limit: int) -> None:
        import comfy.model_management as management
        import torch

        self.management, self.limit = management, limit
        self.device = torch.device("cpu", 1)
        self._before = {}

    @property
    def held(self) -> int:
        entries = self.management.current_loaded_models
        return sum(each.model_loaded_memory() for each in entries if each.device == self.device)

    def __enter__(self):
        def free(dev=None, torch_free_too=False):
            left = max(0, self.limit - self.held)
            return (left, left) if torch_free_too else left

        changes = {
            "get_free_memory": free,
            "get_total_memory": lambda dev=None, torch_total_too=False: self.limit,
            "is_device_cpu": lambda device: device.type == "cpu" and device.index != 1,
            "minimum_inference_memory": lambda: 0,
            "extra_reserved_memory": lambda: 0,
            "vram_state": self.management.VRAMState.NORMAL_VRAM,
        }
        self._before = {name: getattr(self.management, name) for name in changes}
        for name, change in changes.items():
            setattr(self.management, name, change)
        return self

    def empty(self) -> None:
        self.management.free_memory(1e30, self.device)

    def __exit__(self, *_) -> None:
        self.empty()
        for name, was in self._before.items():
            setattr(self.management, name, was)

    def patcher(self, layers: int):
        """A model of some layers, each of 64 × 64 numbers of four bytes."""
        import comfy.model_patcher
        import comfy.ops
        import torch

        with torch.inference_mode(False):
            parts = [comfy.ops.manual_cast.Linear(64, 64, bias=False) for _ in range(layers)]
            model = torch.nn.Sequential(*parts)
            for part in parts:
                torch.nn.init.zeros_(part.weight)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=self.device, offload_device=cpu)


def sequences() -> dict:
    """Random orders of loading on a card with a limit: guarded models beside others' models."""
    found = dict.fromkeys(("loads", "partly", "evicted", "overruns where only warned"), 0)
    found |= {"sequences": 500, "overruns": [], "leftovers": []}
    for seed in range(found["sequences"]):
        _sequence(random.Random(seed), found)
    return found


def _sequence(dice, found) -> None:
    from comfy.patcher_extension import CallbacksMP

    vram = importlib.import_module("realtoon.engine.vram_plan")
    pack = adapter()
    layers = {name: dice.randint(3, 24) for name in ("dit", "text_encoder", "vae")}
    weights = {name: 64 * 64 * 4 * count for name, count in layers.items()}
    about = vram.Loaded(
        **{name: {"float32": count} for name, count in weights.items()},
        dit_shape=vram.DiTShape(64, 32), text_shape=vram.TextShape(16, 32, 64, 8),
        vae_shape=vram.VAEShape(4),
    )  # fmt: skip
    job = vram.Job(64, 64, references=((64, 64),), text_tokens=5)
    least = max(vram.alone(about, job).peak, 0) - max(weights.values())
    card = least + dice.randint(sum(weights.values()) // 6, 2 * sum(weights.values()))
    budgets = {n: dice.randint(64 * 64 * 8, 2 * weights[n]) for n in weights if dice.random() < 0.3}
    with Device(card + dice.choice((0, weights["dit"]))) as device:
        management = device.management
        originals = {name: device.patcher(count) for name, count in layers.items()}
        before = state(*originals.values())
        wishes = pack.Wishes(card, 0, budgets, dice.choice(("adapt", "adapt", "warn")))
        guard_ = pack.Guard(about, wishes, device.device, None)
        guard_.settle(job)
        planned = pack.Guard(about, replace(wishes, on_exceed="adapt"), device.device, None)
        planned.settle(job)
        held = {n: pack._held(each, guard_, n) for n, each in originals.items()}
        strangers = [device.patcher(dice.randint(2, 20)) for _ in range(2)]
        for _ in range(12):
            name = dice.choice((*held, *held, "stranger", "original", "nothing", "error"))
            if name == "nothing":
                device.empty()
            elif name == "stranger":
                management.load_models_gpu([dice.choice(strangers)])
            elif name == "original":
                management.load_models_gpu([dice.choice(list(originals.values()))])
            elif name == "error":
                clone = held[dice.choice(list(held))].clone()
                clone.add_callback_with_key(CallbacksMP.ON_LOAD, "injected", _fail)
                with contextlib.suppress(BrokenError):
                    management.load_models_gpu([clone])
            else:
                _load(device, (guard_, planned), held[name], name, dice, found)
        device.empty()
        if changed(before, state(*originals.values())):
            found["leftovers"].append(changed(before, state(*originals.values())))


def _fail(*_args) -> None:
    raise BrokenError


def _load(device, guards, patcher, name, dice, found) -> None:
    guard_, planned = guards
    if dice.random() < 0.5:
        patcher = patcher.clone()
    before = device.held
    if name == "dit":
        guard_.make_room(name, patcher)
    device.management.load_models_gpu([patcher], memory_required=dice.choice((0, 1000)))
    own = patcher.loaded_size()
    found["loads"] += 1
    found["partly"] += own < patcher.model_size()
    found["evicted"] += device.held - own < before - own
    budget = guard_.limits.get(name, patcher.model_size())
    if own > budget:
        found["overruns"].append([name, own, budget])
    over = device.held + planned.beside[name] > planned.card
    if over and guard_.wishes.on_exceed == "adapt":
        found["overruns"].append([name, device.held, planned.beside[name], planned.card])
    found["overruns where only warned"] += over and guard_.wishes.on_exceed == "warn"
