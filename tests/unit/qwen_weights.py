"""Tiny Qwen-Image-Edit models for tests: random numbers under the official names.

The tensors and configs are those of the small model that `run.py realistic --tiny` makes, in which
names and shapes are spelled out a second time. The files are written without the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import weights_files as wf
from realtoon.weights_loader.qwen_tiny import (
    TEXT_HEADS,
    TEXT_KV,
    TINY,
    Sizes,
    Tensors,
    model_index,
    text_config,
    text_encoder,
    transformer,
    transformer_config,
    vae,
    vae_config,
)

__all__ = ["TEXT_HEADS", "TEXT_KV"]
MARKER = "__index_timestep_zero__"
wf.ST_NAMES.update({torch.float8_e4m3fn: "F8_E4M3", torch.uint8: "U8", torch.int8: "I8"})


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def write_file(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """One safetensors file. Its header is padded to 8 bytes, as the official writer does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    # The official writer puts the widest dtypes first, so that each tensor lies on its boundary.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        kind = wf.ST_NAMES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(wf.raw(tensor) if tensor.numel() else b"")
    return path


def write_shards(folder: Path, stem: str, tensors: Tensors, count: int) -> list[Path]:
    """Shards in order, and the index that places each tensor."""
    names = list(tensors)
    step = -(-len(names) // count)
    weight_map: dict[str, str] = {}
    paths = []
    for i in range(count):
        part = names[i * step : (i + 1) * step]
        file = f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors"
        paths.append(write_file(folder / file, {n: tensors[n] for n in part}, {"format": "pt"}))
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / f"{stem}.safetensors.index.json", index)
    return paths


def write_official(
    folder: Path,
    sizes: Sizes = TINY,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shards: int = 3,
    edition: str = "2511",
) -> Path:
    """The official repository's folder. edition: "2511", "2509" or "2508" (the first Edit)."""
    changes = {"zero_cond_t": True} if edition == "2511" else {}
    config = transformer_config(sizes, **changes)
    if edition != "2511":
        del config["zero_cond_t"]
    plus = "QwenImageEditPipeline" if edition == "2508" else "QwenImageEditPlusPipeline"
    write_json(folder / "model_index.json", model_index(plus))
    write_json(folder / "transformer/config.json", config)
    write_json(folder / "text_encoder/config.json", text_config(sizes))
    write_json(folder / "vae/config.json", vae_config(sizes))
    write_json(folder / "scheduler/scheduler_config.json", {"shift_terminal": 0.02})
    write_json(folder / "tokenizer/tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    stem = "diffusion_pytorch_model"
    write_shards(folder / "transformer", stem, transformer(sizes, dtype=dtype), shards)
    write_shards(folder / "text_encoder", "model", text_encoder(sizes, dtype=dtype), shards)
    write_file(folder / f"vae/{stem}.safetensors", vae(sizes, dtype=dtype))
    return folder


# --- what repacked files hold -------------------------------------------------------------------


def comfy_text(tensors: Tensors) -> Tensors:
    """The names that ComfyUI's file of the text encoder has."""
    return {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in tensors.items()
        if name != "lm_head.weight"
    }


def marked(tensors: Tensors) -> Tensors:
    return {**tensors, MARKER: torch.empty(0)}


def matrices(tensors: Tensors) -> list[str]:
    """Modules that the published fp8 files quantise: the blocks' linear layers."""
    return [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and (".layers." in name or "transformer_blocks." in name)
    ]


def fp8(tensors: Tensors) -> Tensors:
    """Cast without scales, as fp8_e4m3fn files are."""
    return {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}


def fp8_scaled(tensors: Tensors, scheme: str) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a scaled fp8 file.

    scheme: "scaled_fp8" (marker and scale_weight), "comfy_quant" or "metadata".
    """
    result = dict(tensors)
    layers = matrices(tensors)
    for layer in layers:
        weight = tensors[f"{layer}.weight"].float()
        scale = weight.abs().max() / 448
        result[f"{layer}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        result[f"{layer}.scale_weight" if scheme == "scaled_fp8" else f"{layer}.weight_scale"] = (
            scale
        )
        if scheme == "comfy_quant":
            text = b'{"format": "float8_e4m3fn"}'
            result[f"{layer}.comfy_quant"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    if scheme == "scaled_fp8":
        result["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    if scheme != "metadata":
        return result, {}
    settings = {layer: {"format": "float8_e4m3fn"} for layer in layers}
    return result, {"_quantization_metadata": json.dumps({"layers": settings})}
