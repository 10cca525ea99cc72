"""The DiT's weights in another dtype than they are stored in, tensor by tensor while loading.

Scaled fp8 is written as ComfyUI's `_quantization_metadata` has it: a float8_e4m3fn `weight`, a
float32 `weight_scale` by which it is multiplied, and a format for each layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import qwen_quant
from .errors import WeightsError
from .qwen_parts import Part

AS_STORED, BF16, FP8_SCALED = "as stored", "bf16", "fp8 e4m3 scaled"
WEIGHT_DTYPES = (AS_STORED, BF16, FP8_SCALED)
_FORMAT = "float8_e4m3fn"
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
# Attention and MLPs: with the modulation they are 99 % of the numbers. First and last layers,
# modulation, norms and biases stay as they are: there rounding costs most and spares least.
_MATRICES = re.compile(r"transformer_blocks\.\d+\.(attn|img_mlp|txt_mlp)\..+\.weight")


def check(part: Part, wanted: str) -> None:
    """Refuse what makes no sense of a file's own dtype, before it is read.

    wanted: one of WEIGHT_DTYPES. Raises: WeightsError.
    """
    kind, formats = part.quantisation.kind, ", ".join(part.quantisation.formats)
    if wanted == AS_STORED or kind == "none":
        return
    if kind == "other":
        got = f"one in {formats}, which only ComfyUI itself can open"
    elif wanted == BF16 or part.quantisation.formats == (_FORMAT,) and kind == "fp8 scaled":
        return
    elif kind == "fp8":
        got = f"one that was rounded to {formats} without scales, which cannot be undone"
    else:
        got = f"one in {formats}"
    expected = f"a file for weight_dtype {wanted!r}"
    raise WeightsError(part.path, expected, got, f"set weight_dtype to {AS_STORED!r}")


def convert(
    part: Part, state: dict[str, Tensor], wanted: str, tick: Callable[[], object] = lambda: None
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Weights in the wanted dtype. What need not change is not copied.

    state: of `part`, or what is left of it; it is emptied on the way, so that a stored tensor is
    let go as soon as its new one is there. wanted: passed by `check`. tick: called for each tensor.
    Returns: the new state, and ComfyUI's settings by layer: None where the file's own hold.
    Raises: WeightsError for numbers that are infinite or none.
    """
    quantised = part.quantisation.kind == "fp8 scaled"
    if wanted == AS_STORED or wanted == FP8_SCALED and quantised:
        return state, None
    result: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for name in list(state):
        tick()
        if name not in state or _is_extra(name):
            continue
        weight = state.pop(name)
        layer = name.rpartition(".")[0]
        if wanted == FP8_SCALED and weight.ndim == 2 and _MATRICES.fullmatch(name):
            result[name], result[f"{layer}.weight_scale"] = _scaled(part, name, weight)
            layers[layer] = {"format": _FORMAT}
        elif wanted == FP8_SCALED:
            result[name] = weight
        else:
            result[name] = multiplied_out(name, weight, state)
    state.clear()
    return result, layers


def multiplied_out(name: str, weight: Tensor, state: dict[str, Tensor]) -> Tensor:
    """A weight in bf16, by the scale that `state` holds for it, if any."""
    layer, _, what = name.rpartition(".")
    scale = next(_scales(layer, state), None)
    if scale is None or what != "weight" or weight.itemsize > 1:
        return weight.to(torch.bfloat16)
    factor = scale.float() if scale.numel() == 1 else scale.float().reshape(-1, 1)
    return (weight.float() * factor).to(torch.bfloat16)


def _scales(layer: str, state: dict[str, Tensor]) -> Iterator[Tensor]:
    for suffix in ("weight_scale", "scale_weight"):
        if f"{layer}.{suffix}" in state:
            yield state[f"{layer}.{suffix}"]


def _is_extra(name: str) -> bool:
    return name == qwen_quant.OLD_MARKER or name.rpartition(".")[2] in qwen_quant.SUFFIXES


def _scaled(part: Part, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in float8_e4m3fn and its scale."""
    wide = weight.float()
    largest = wide.abs().max()
    if not largest.isfinite():
        expected = f"finite numbers in {name}"
        raise WeightsError(part.path, expected, str(largest.item()), "download the file again")
    scale = (largest / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    rounded = (wide / scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return rounded, scale
