"""A card that is simulated, and what a guard could leave changed, for guard_cases.py and
random_graphs.py: in a ComfyUI's own process."""

from __future__ import annotations

import importlib
import threading


class BrokenError(Exception):
    """Raised within a run."""


def adapter(name="_guard"):
    return importlib.import_module(f"realtoon.nodes.{name}")


def state(*patchers) -> dict[str, str]:
    """Of the host and of the models that were given, all that a guard could leave changed."""
    import comfy.model_management as management
    import torch

    functions = {n: id(v) for n, v in vars(management).items() if callable(v)}
    settings = (
        torch.backends.cudnn.allow_tf32,
        [each.name for each in threading.enumerate() if each.name == "VRAM Guard"],
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
