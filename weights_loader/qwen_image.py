"""Qwen-Image-Edit: any of the files it comes in becomes descriptions and tensors not yet read.

What is described: the official folder (model_index.json and its parts, sharded or not), a part's
folder, or a single file with ComfyUI's names or the official ones. Everything is judged on headers
and config.json: a file of 41 GB takes milliseconds. Loading a tensor maps it, so a network is never
in memory twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from . import files, qwen_config, qwen_families, qwen_folder, qwen_keys, qwen_quant
from .errors import WeightsError, listed
from .qwen_folder import Source
from .qwen_parts import (
    MARKER,
    Base,
    DiTConfig,
    Layout,
    Part,
    Quantisation,
    TextConfig,
    VAEConfig,
)
from .safetensors_file import size_of

__all__ = [
    "MARKER",
    "Base",
    "DiTConfig",
    "Part",
    "Quantisation",
    "TextConfig",
    "VAEConfig",
    "check_fit",
    "describe_base",
    "describe_text",
    "describe_vae",
    "layer_settings",
    "state",
]

_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_MODULATION = re.compile(r"transformer_blocks\.\d+\.(img|txt)_mod\.")
_OTHERS = "use a file that ComfyUI's page for this model offers, or the official folder"


def describe_base(path: Path) -> Base:
    """Describe what the input `base` names.

    path: a DiT file, the official folder, or its `transformer` folder.
    Returns: the DiT, and what else the official folder holds.
    Raises: WeightsError with file, expected, got and next step, before a number is read.
    """
    path = Path(path)
    if not (path / "model_index.json").exists():
        return Base(_describe_dit(path))
    pipeline = qwen_folder.read_pipeline(path)
    dit = _describe_dit(path / "transformer")
    text = describe_text(path / "text_encoder") if (path / "text_encoder").is_dir() else None
    vae = describe_vae(path / "vae") if (path / "vae").is_dir() else None
    check_fit(dit, text, vae)
    tokenizer, scheduler = (
        path / name if (path / name).is_dir() else None for name in ("tokenizer", "scheduler")
    )
    return Base(dit, text, vae, path, tokenizer, scheduler, pipeline)


def describe_text(path: Path) -> Part:
    """Describe a text encoder: a file, or the official `text_encoder` folder.

    Raises: WeightsError as `describe_base` does.
    """
    source = qwen_folder.open_source(Path(path), "text")
    official = any(name.startswith("model.language_model.") for name in source.tensors)
    named = _renamed(source, qwen_keys.text_name)
    used = {n: t for n, t in named.tensors.items() if n not in qwen_keys.UNUSED_TEXT}
    unused = len(named.tensors) - len(used)
    layout: Layout = "official" if official else "repacked"
    return _part(replace(named, tensors=used), "text", layout, unused)


def describe_vae(path: Path) -> Part:
    """Describe a VAE: a file in ComfyUI's names or diffusers', or the official `vae` folder.

    Wan 2.1's VAE has the same tensors and cannot be told apart. Raises: WeightsError.
    """
    source = qwen_folder.open_source(Path(path), "vae")
    if "decoder.mid_block.resnets.0.norm1.gamma" not in source.tensors:
        return _part(source, "vae", "repacked", 0)
    return _part(_renamed(source, qwen_keys.vae_name), "vae", "official", 0)


def check_fit(dit: Part, text: Part | None, vae: Part | None) -> None:
    """Refuse parts that do not belong together, though each is sound. Raises: WeightsError."""
    config = dit.config
    assert isinstance(config, DiTConfig)
    if text is not None and isinstance(text.config, TextConfig):
        expected = f"a text encoder of width {config.joint_dim}, as {dit.path.name} takes"
        if text.config.hidden != config.joint_dim:
            got = f"one of {text.config.hidden}"
            raise WeightsError(text.path, expected, got, qwen_families.NEXT["text"])
    if vae is not None and isinstance(vae.config, VAEConfig):
        z_dim, patch = vae.config.z_dim, config.patch**2
        if (z_dim * patch, z_dim) != (config.in_channels, config.out_channels):
            expected = f"a VAE of {config.out_channels} channels, as {dit.path.name} takes"
            raise WeightsError(vae.path, expected, f"one of {z_dim}", qwen_families.NEXT["vae"])


def state(part: Part) -> dict[str, torch.Tensor]:
    """All tensors of a part by ComfyUI's names, mapped from its files in their stored dtypes.

    No second copy is made: what is looked at is read, and given back with the last tensor.
    Raises: WeightsError where a file was changed or taken away since it was described.
    """
    return {name: stored.load() for name, stored in part.tensors.items()}


def layer_settings(part: Part) -> dict[str, object]:
    """ComfyUI's settings of each layer that a `comfy_quant` tensor tells of, by layer.

    Reads those tensors, dozens of bytes each. Hosts that know no such tensors (0.3.75) take the
    settings as JSON in the metadata `_quantization_metadata`. Raises: WeightsError.
    """
    return qwen_quant.layer_settings(part.tensors, part.path)


def _describe_dit(path: Path) -> Part:
    source = qwen_folder.open_source(path, "dit")
    prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in source.tensors)), "")
    found = {name: tensor for name, tensor in source.tensors.items() if name.startswith(prefix)}
    unused = len(source.tensors) - len(found)
    named = _renamed(replace(source, tensors=found), lambda name: name.removeprefix(prefix))
    layout: Layout = "repacked" if source.config is None else "official"
    return _part(named, "dit", layout, unused, prefix)


def _part(source: Source, kind: str, layout: Layout, unused: int, prefix: str = "") -> Part:
    quantised = qwen_quant.sort_out(source.path, source.tensors, source.metadata, prefix)
    plain, extras = dict(quantised.plain), quantised.extras
    if kind == "dit":
        config = qwen_config.dit_config(source, plain)
        shapes = qwen_keys.dit_shapes(config)
        # ComfyUI tells a 2511 by this name alone; the official shards do not have it.
        marker = plain.pop(MARKER, qwen_quant.empty("F32"))
        extras = {**extras, MARKER: marker} if config.zero_cond_t else extras
    elif kind == "text":
        config = qwen_config.text_config(source, plain)
        shapes = qwen_keys.text_shapes(config)
    else:
        config = qwen_config.vae_config(source, plain)
        shapes = qwen_keys.vae_shapes(config)
    _check(source, kind, plain, shapes, quantised.quantisation)
    everything = {**plain, **extras}
    dtypes = _sums(everything, lambda name: everything[name].dtype)
    return Part(
        kind=kind,  # type: ignore[arg-type]
        path=source.path,
        files=source.files,
        layout=layout,
        config=config,
        dtype=max(dtypes, key=lambda dtype: dtypes[dtype]),
        dtypes=dtypes,
        bytes_by=_sums(everything, _SECTIONS[kind]),
        quantisation=quantised.quantisation,
        unused=unused,
        tensors=everything,
        metadata=quantised.metadata,
    )


_SECTIONS: dict[str, Callable[[str], str]] = {
    "dit": lambda name: "modulation" if _MODULATION.match(name) else "body",
    "text": lambda name: "vision" if name.startswith("visual.") else "text",
    "vae": lambda name: "encoder" if name.startswith(("encoder.", "conv1.")) else "decoder",
}


def _sums(tensors: Mapping[str, files.Stored], key: Callable[[str], str]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, stored in tensors.items():
        size = size_of(stored)
        if size:
            sums[key(name)] = sums.get(key(name), 0) + size
    return sums


def _renamed(source: Source, rename: Callable[[str], str]) -> Source:
    tensors: dict[str, files.Stored] = {}
    origin: dict[str, Path] = {}
    for name, stored in source.tensors.items():
        new = rename(name)
        if new in tensors:
            got = f"two, one of them {name}"
            raise WeightsError(source.origin[name], f"one tensor {new}", got, _OTHERS)
        tensors[new], origin[new] = stored, source.origin[name]
    return replace(source, tensors=tensors, origin=origin)


def _check(
    source: Source,
    kind: str,
    tensors: Mapping[str, files.Stored],
    shapes: Mapping[str, tuple[int, ...]],
    quantisation: Quantisation,
) -> None:
    missing = [name for name in shapes if name not in tensors]
    if missing:
        step = "choose the folder that holds all shards, or download the file again"
        expected = f"all {len(shapes):,} tensors of {qwen_families.WANTED[kind]}"
        raise WeightsError(source.path, expected, listed(missing, "missing"), step)
    others = [name for name in tensors if name not in shapes]
    if others:
        expected = f"only tensors of {qwen_families.WANTED[kind]}"
        raise WeightsError(source.path, expected, listed(others, "others"), _OTHERS)
    packed = {f"{layer}.weight" for layer in quantisation.layers}
    for name, shape in shapes.items():
        stored = tensors[name]
        known = qwen_quant.FLOATS + qwen_quant.FP8
        if name in packed and quantisation.kind == "other":
            known += qwen_quant.PACKED
        where = source.origin.get(name, source.path)
        if stored.dtype not in known:
            expected = f"numbers of {' or '.join(known)} in {name}"
            raise WeightsError(where, expected, stored.dtype, _OTHERS)
        # Four bits a number: two stand in a byte.
        halves = (*shape[:-1], shape[-1] // 2) if stored.dtype in qwen_quant.PACKED else shape
        if stored.shape not in (shape, halves):
            raise WeightsError(where, f"{name} of shape {shape}", str(stored.shape), _OTHERS)
