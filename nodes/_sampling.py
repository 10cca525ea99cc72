"""What a sampling preset asks of ComfyUI: its own patches on a model, its noise schedules, and a
type for what goes into a sampler's lists. Holds on ComfyUI 0.3.75 and on 0.33."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

import nodes

from ._tensors import InputError


class _Values(list):
    """A combo's type as the list of values that an output sends.

    A combo by its list of options fits if it offers all of them, as does a combo by its name. The
    host compares types with ``!=``: an older one takes nothing but the very same list, and a newer
    one refuses its own COMBO where a node names a combo by its list, as KSampler does.
    """

    def __ne__(self, other: object) -> bool:
        if isinstance(other, list):
            return not set(self) <= set(other)
        return other != io.Combo.io_type


class Choice:
    """An output that goes into a list of options, such as KSampler's sampler_name."""

    class Output(io.Combo.Output):
        @property
        def io_type(self) -> list[str]:
            return _Values(self.options)


def patched(model: ModelPatcher, shift: float | None, cfg_norm: float | None) -> ModelPatcher:
    """A clone of model with the patches of the host's nodes; None leaves something as it is.

    shift: of the noise schedule, as ModelSamplingAuraFlow. cfg_norm: strength, as CFGNorm.
    Raises: InputError if the model's noise does not run along a flow.
    """
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.CONST):
        raise InputError(
            "model",
            "a flow model such as Qwen-Image-Edit",
            f"{type(model.model).__name__}, which is none",
            "join QwenEditLoader's model output here",
        )
    model = model.clone()
    if shift is not None:
        model = _run("ModelSamplingAuraFlow", model=model, shift=shift)
    if cfg_norm is not None:
        model = _run("CFGNorm", model=model, strength=cfg_norm)
    return model


def _run(node_id: str, **inputs: Any) -> Any:  # noqa: ANN401
    """The first output of a node of the host, whichever schema it is written in."""
    node = nodes.NODE_CLASS_MAPPINGS.get(node_id)
    if node is None:
        raise InputError(
            "preset",
            f"ComfyUI's own node {node_id}",
            "a ComfyUI without it",
            "look in its log for why its extra nodes did not load",
        )
    return getattr(node(), node.FUNCTION)(**inputs)[0]


def noise_levels(model: ModelPatcher, scheduler: str, steps: int) -> Tensor:
    """The noise level before each step and at the end: (steps + 1,) float32 on CPU, 1 = all noise,
    falling to 0."""
    sampling = model.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, scheduler, steps).float().cpu()
