"""Which tensors of a file are scales and marks of quantised layers, and how ComfyUI is told.

Source: ComfyUI 0.33 comfy/utils.py convert_old_quants, comfy/quant_ops.py, comfy/ops.py; 0.3.75
comfy/model_detection.py detect_layer_quantization.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import files, safetensors_file
from .errors import WeightsError, listed
from .qwen_parts import Quantisation

METADATA = "_quantization_metadata"
OLD_MARKER = "scaled_fp8"
FLOATS = ("BF16", "F16", "F32")
FP8 = ("F8_E4M3", "F8_E5M2")
PACKED = ("U8", "I8")
SUFFIXES = (
    "scale_weight",
    "weight_scale",
    "weight_scale_2",
    "scale_input",
    "input_scale",
    "pre_quant_scale",
    "comfy_quant",
)
_OLD = ("scale_weight", "scale_input")
_USE_PUBLISHED = "use a file that ComfyUI's page for this model offers (bf16, fp8 or fp8 scaled)"


@dataclass(frozen=True)
class Quantised:
    """A file's tensors, sorted: `plain` network tensors, `extras` (scales, marks), and what they
    mean; `metadata` names layers as the tensors are named here."""

    plain: Mapping[str, files.Stored]
    extras: Mapping[str, files.Stored]
    quantisation: Quantisation
    metadata: Mapping[str, str]


def sort_out(
    path: Path, tensors: Mapping[str, files.Stored], metadata: Mapping[str, str], prefix: str
) -> Quantised:
    """Tell weights from scales, and how the layers are quantised.

    tensors: without `prefix`, which the layers in `metadata` may carry.
    Raises: WeightsError for scales without weights, half a scheme, or layers nothing tells of.
    """
    extras = {n: t for n, t in tensors.items() if n.rpartition(".")[2] in SUFFIXES}
    if OLD_MARKER in tensors:
        extras[OLD_MARKER] = tensors[OLD_MARKER]
    plain = {name: tensor for name, tensor in tensors.items() if name not in extras}
    layers = _layers(path, plain, extras)
    described = _described(path, metadata, prefix)
    lost = [name for name in described or () if f"{name}.weight" not in plain]
    if lost:
        _refuse(path, "quantised layers that are in the file", listed(lost, "others in metadata"))
    kinds = {suffix for found in layers.values() for suffix in found}
    old = OLD_MARKER in extras or bool(kinds & set(_OLD))
    if old and (kinds - set(_OLD) or described):
        _refuse(path, "one way of writing scales", "scale_weight and weight_scale together")
    if old:
        # ComfyUI takes the scales for unknown tensors where the mark is lost, and renders noise.
        extras.setdefault(OLD_MARKER, empty("F8_E4M3"))
        scaled = tuple(name for name, found in layers.items() if "scale_weight" in found)
        quantisation = Quantisation("fp8 scaled", ("float8_e4m3fn",), scaled, "scaled_fp8")
    elif layers or described:
        quantisation = _new(path, plain, layers, described)
    else:
        quantisation = _unscaled(plain)
    texts = dict(metadata)
    if described is not None:
        texts[METADATA] = json.dumps({"format_version": "1.0", "layers": described})
    return Quantised(plain, extras, quantisation, texts)


def empty(dtype: str) -> files.Stored:
    """A tensor of no numbers: what it says is that it is there."""
    kind = torch.float8_e4m3fn if dtype == "F8_E4M3" else torch.float32
    return files.Stored(dtype, (0,), lambda: torch.empty(0, dtype=kind))


def layer_settings(quantised: Quantised | Mapping[str, files.Stored], path: Path) -> dict[str, Any]:
    """ComfyUI's settings of each layer that carries a `comfy_quant`, by layer.

    Reads those tensors, some dozens of bytes each: hosts before 0.5 take such files only with the
    settings in their metadata. Raises: WeightsError where one is not JSON.
    """
    tensors = quantised.extras if isinstance(quantised, Quantised) else quantised
    found: dict[str, Any] = {}
    for name, stored in tensors.items():
        layer, _, suffix = name.rpartition(".")
        if suffix == "comfy_quant":
            data = bytes(stored.load().view(torch.uint8).flatten().tolist())
            found[layer] = safetensors_file.json_object(path, data, f"settings of {layer}")
    return found


def _layers(
    path: Path, plain: Mapping[str, files.Stored], extras: Mapping[str, files.Stored]
) -> dict[str, set[str]]:
    layers: dict[str, set[str]] = {}
    for name, stored in extras.items():
        layer, _, suffix = name.rpartition(".")
        if name == OLD_MARKER:
            continue
        if suffix == "comfy_quant" and (stored.dtype != "U8" or len(stored.shape) != 1):
            _refuse(path, f"bytes in {name}", f"{stored.dtype} of shape {stored.shape}")
        layers.setdefault(layer, set()).add(suffix)
    lost = [layer for layer in layers if f"{layer}.weight" not in plain]
    if lost:
        _refuse(path, "a weight for each scale", listed(lost, "scales without one"))
    for layer, found in layers.items():
        dtype = plain[f"{layer}.weight"].dtype
        if {"scale_weight", "weight_scale"} & found and dtype not in (*FP8, *PACKED):
            _refuse(path, f"a quantised {layer}.weight beside its scale", dtype)
    return layers


def _described(path: Path, metadata: Mapping[str, str], prefix: str) -> dict[str, Any] | None:
    """Layers in the metadata, named without the prefix."""
    if METADATA not in metadata:
        return None
    text = metadata[METADATA].encode("utf-8", "replace")
    layers = safetensors_file.json_object(path, text, "quantisation metadata").get("layers")
    if not isinstance(layers, dict) or not all(isinstance(each, dict) for each in layers.values()):
        _refuse(path, "layers in the quantisation metadata", type(layers).__name__)
    return {name.removeprefix(prefix): each for name, each in layers.items()}


def _new(
    path: Path,
    plain: Mapping[str, files.Stored],
    layers: dict[str, set[str]],
    described: dict[str, Any] | None,
) -> Quantisation:
    told = set(described or ()) | {n for n, found in layers.items() if "comfy_quant" in found}
    scaled = [name for name, found in layers.items() if "weight_scale" in found]
    untold = [name for name in scaled if name not in told]
    if untold:
        _refuse(path, "a format for each scale", listed(untold, "layers without"))
    unscaled = sorted(told.difference(scaled))
    if unscaled:
        _refuse(path, "a scale for each quantised layer", listed(unscaled, "layers without"))
    formats = {
        str((described or {}).get(name, {}).get("format") or _format(plain, layers, name))[:40]
        for name in scaled
    }
    fp8 = formats <= {"float8_e4m3fn", "float8_e5m2"}
    scheme = "metadata" if described else "comfy_quant"
    kind = "fp8 scaled" if fp8 else "other"
    return Quantisation(kind, tuple(sorted(formats)), tuple(scaled), scheme)


def _format(plain: Mapping[str, files.Stored], layers: dict[str, set[str]], name: str) -> str:
    """What a weight's dtype says; the layer's own settings are numbers, which are not read."""
    if "weight_scale_2" in layers[name]:
        return "nvfp4"
    dtype = plain[f"{name}.weight"].dtype
    return {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8"}.get(dtype, dtype)


def _unscaled(plain: Mapping[str, files.Stored]) -> Quantisation:
    cast = {name: each.dtype for name, each in plain.items() if each.dtype in FP8}
    layers = tuple(name.removesuffix(".weight") for name in cast if name.endswith(".weight"))
    names = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    formats = tuple(sorted({names[dtype] for dtype in cast.values()}))
    return Quantisation("fp8", formats, layers) if cast else Quantisation()


def _refuse(path: Path, expected: str, got: str) -> NoReturn:
    raise WeightsError(path, expected, got, _USE_PUBLISHED)
