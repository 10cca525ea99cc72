"""Synthetic LoRA files with the names that real tools write, for tests and benchmarks.

Names are spelled out here without the code under test: each layout is a function from a module's
name to the keys of its tensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import weights_files as wf

wf.ST_NAMES.update(
    {
        torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.uint8: "U8",
        torch.int8: "I8", torch.bool: "BOOL",
    }
)  # fmt: skip

Tensors = dict[str, torch.Tensor]
Modules = dict[str, tuple[int, int]]


def qwen_modules(
    blocks: int = 60, width: int = 3072, joint: int = 3584, inside: int = 64
) -> Modules:
    """The 846 linear modules of Qwen-Image-Edit: name -> (out, in)."""
    found: Modules = {
        "time_text_embed.timestep_embedder.linear_1": (width, 256),
        "time_text_embed.timestep_embedder.linear_2": (width, width),
        "img_in": (width, inside),
        "txt_in": (width, joint),
        "norm_out.linear": (2 * width, width),
        "proj_out": (inside, width),
    }
    for i in range(blocks):
        b = f"transformer_blocks.{i}"
        for part in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"):
            found[f"{b}.attn.{part}"] = (width, width)
        found[f"{b}.attn.to_add_out"] = (width, width)
        for stream in ("img", "txt"):
            found[f"{b}.{stream}_mod.1"] = (6 * width, width)
            found[f"{b}.{stream}_mlp.net.0.proj"] = (4 * width, width)
            found[f"{b}.{stream}_mlp.net.2"] = (width, 4 * width)
    return found


def tiny_modules(blocks: int = 2) -> Modules:
    """The same names, small."""
    return qwen_modules(blocks, width=16, joint=24, inside=8)


# --- layouts --------------------------------------------------------------------------------------

Name = Callable[[str], str]


def _dotted(prefix: str) -> Name:
    return lambda module: prefix + module


def _flat(prefix: str) -> Name:
    return lambda module: prefix + module.replace(".", "_")


def _processor(module: str) -> str:
    head, _, last = module.rpartition(".attn.")
    return f"{head}.attn.processor.{last.removesuffix('.0')}" if head else module


AB = ("{}.lora_A.weight", "{}.lora_B.weight")
DOWN = ("{}.lora_down.weight", "{}.lora_up.weight")
# What the layout is called -> (how a module is named, keys of down and up, with alpha tensors).
LAYOUTS: dict[str, tuple[Name, tuple[str, str], bool]] = {
    "kohya, musubi": (_flat("lora_unet_"), DOWN, True),
    "onetrainer": (_flat("lora_transformer_"), DOWN, True),
    "simpletuner lycoris": (_flat("lycoris_"), DOWN, True),
    "flat": (_flat(""), DOWN, True),
    "diffusers": (_dotted("transformer."), AB, False),
    "diffusers with alpha": (_dotted("transformer."), AB, True),
    "bare": (_dotted(""), AB, False),
    "bare down/up": (_dotted(""), DOWN, True),
    "ai-toolkit": (_dotted("diffusion_model."), AB, False),
    "comfyui": (_dotted("diffusion_model."), DOWN, True),
    "whole checkpoint": (_dotted("model.diffusion_model."), AB, False),
    "peft": (_dotted("base_model.model."), AB, False),
    "peft of a pipeline": (_dotted("base_model.model.transformer."), AB, False),
    "peft of a model": (_dotted("base_model.model.model."), AB, False),
    "simpletuner peft": (_dotted("transformer.base_model.model."), AB, False),
    "diffsynth": (
        _dotted("pipe.dit."),
        ("{}.lora_A.default.weight", "{}.lora_B.default.weight"),
        False,
    ),
    "data parallel": (_dotted("module."), AB, False),
    "compiled": (_dotted("_orig_mod."), AB, False),
    "unet": (_dotted("unet."), ("{}.lora.down.weight", "{}.lora.up.weight"), False),
    "adapter default": (
        _dotted(""),
        ("{}.lora_A.default.weight", "{}.lora_B.default.weight"),
        False,
    ),
    "adapter of another name": (
        _dotted("transformer."),
        ("{}.lora_A.我的.weight", "{}.lora_B.我的.weight"),
        True,
    ),
    "lora.A": (_dotted("transformer."), ("{}.lora.A.weight", "{}.lora.B.weight"), False),
    "without .weight": (_dotted("transformer."), ("{}.lora_A", "{}.lora_B"), False),
    "linear layer": (
        _dotted("transformer."),
        ("{}.lora_linear_layer.down.weight", "{}.lora_linear_layer.up.weight"),
        False,
    ),
    "attention processors": (_processor, ("{}_lora.down.weight", "{}_lora.up.weight"), False),
}


def lora(
    modules: Mapping[str, tuple[int, ...]],
    layout: str = "ai-toolkit",
    rank: int = 4,
    dtype: torch.dtype = torch.bfloat16,
    alpha: float = 2.0,
    seed: int = 0,
) -> Tensors:
    """Down and up matrices of all modules in a layout."""
    name, (down, up), with_alpha = LAYOUTS[layout]
    draw = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for module, (out, inner, *_) in modules.items():
        stem = name(module)
        tensors[down.format(stem)] = torch.randn(rank, inner, generator=draw).to(dtype)
        tensors[up.format(stem)] = torch.randn(out, rank, generator=draw).to(dtype)
        if with_alpha:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha).to(torch.float32)
    return tensors


def write(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    path.write_bytes(wf.safetensors_bytes(tensors, metadata))
    return path


def write_sparse(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16", bytes_each: int = 2
) -> Path:
    """A sound file of zeros that takes no room on the disk."""
    header: dict[str, object] = {}
    at = 0
    for name, shape in shapes.items():
        end = at + bytes_each * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


def lora_shapes(
    modules: Mapping[str, tuple[int, ...]], layout: str, rank: int
) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a real-size file, without its numbers."""
    name, (down, up), with_alpha = LAYOUTS[layout]
    shapes: dict[str, tuple[int, ...]] = {}
    for module, (out, inner, *_) in modules.items():
        stem = name(module)
        shapes[down.format(stem)] = (rank, inner)
        shapes[up.format(stem)] = (out, rank)
        if with_alpha:
            shapes[f"{stem}.alpha"] = ()
    return shapes


# --- other families -------------------------------------------------------------------------------


def _each(pattern: str, numbers: Iterable[int], leaves: Mapping[str, tuple[int, int]]) -> Modules:
    return {f"{pattern.format(i)}.{leaf}": size for i in numbers for leaf, size in leaves.items()}


def _square(width: int, *names: str) -> Modules:
    return dict.fromkeys(names, (width, width))


_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_UNET = {f"attn1.{part}": (640, 640) for part in _ATTENTION} | {"ff.net.0.proj": (5120, 640)}


def _context(width: int) -> Modules:
    return {"attn2.to_k": (640, width), "attn2.to_v": (640, width), "attn2.to_q": (640, 640)}


# Family -> variants of names -> modules. A few dozen real names each.
FAMILIES: dict[str, dict[str, Modules]] = {
    "Qwen-Image": {
        "all": qwen_modules(),
        "attention alone": {n: s for n, s in qwen_modules().items() if ".attn." in n},
        "streams alone": {n: s for n, s in qwen_modules(2).items() if "_mlp" in n},
    },
    "Flux": {
        "original": _each(
            "double_blocks.{}",
            range(19),
            {
                "img_attn.qkv": (9216, 3072),
                "img_attn.proj": (3072, 3072),
                "img_mlp.0": (12288, 3072),
                "img_mlp.2": (3072, 12288),
                "img_mod.lin": (18432, 3072),
                "txt_attn.qkv": (9216, 3072),
            },
        )
        | _each(
            "single_blocks.{}",
            range(38),
            {"linear1": (21504, 3072), "modulation.lin": (9216, 3072)},
        ),
        "diffusers": _each(
            "transformer_blocks.{}",
            range(19),
            {
                "attn.to_q": (3072, 3072),
                "attn.add_q_proj": (3072, 3072),
                "ff.net.0.proj": (12288, 3072),
                "ff_context.net.2": (3072, 12288),
                "norm1.linear": (18432, 3072),
            },
        )
        | _each(
            "single_transformer_blocks.{}",
            range(38),
            {"attn.to_q": (3072, 3072), "proj_mlp": (12288, 3072)},
        ),
        "diffusers attention alone": _each(
            "transformer_blocks.{}", range(19), _square(3072, "attn.to_q")
        )
        | _each("single_transformer_blocks.{}", range(38), _square(3072, "attn.to_q", "attn.to_k")),
    },
    "SDXL": {
        "diffusers": _each(
            "down_blocks.1.attentions.0.transformer_blocks.{}", range(2), _UNET | _context(2048)
        ),
        "original": _each(
            "input_blocks.4.1.transformer_blocks.{}", range(2), _UNET | _context(2048)
        ),
        "self-attention alone": _each(
            "down_blocks.2.attentions.0.transformer_blocks.{}", range(10), _UNET
        ),
    },
    "SD 1.5": {
        "diffusers": _each(
            "down_blocks.{}.attentions.0.transformer_blocks.0", range(3), _UNET | _context(768)
        ),
        "middle": _each(
            "mid_block.attentions.{}.transformer_blocks.0", range(1), _UNET | _context(768)
        ),
    },
    "SD 2": {
        "diffusers": _each(
            "up_blocks.{}.attentions.0.transformer_blocks.0", range(1, 4), _UNET | _context(1024)
        )
    },
    "SD3": {
        "original": _each(
            "joint_blocks.{}.x_block",
            range(24),
            {"attn.qkv": (4608, 1536), "mlp.fc1": (6144, 1536)},
        ),
        "diffusers": _each(
            "transformer_blocks.{}",
            range(24),
            _square(1536, "attn.to_q", "attn.add_q_proj") | {"ff.net.0.proj": (6144, 1536)},
        ),
        "diffusers 3.5 large": _each(
            "transformer_blocks.{}", range(38), _square(2432, "attn.to_q", "attn.to_v")
        ),
    },
    "Wan": {
        "original": _each(
            "blocks.{}",
            range(30),
            _square(1536, "self_attn.q", "self_attn.o", "cross_attn.k") | {"ffn.0": (8960, 1536)},
        ),
        "diffusers": _each(
            "blocks.{}",
            range(40),
            _square(5120, "attn1.to_q", "attn2.to_k") | {"ffn.net.2": (5120, 13824)},
        ),
    },
    "Z-Image": {
        "original": _each(
            "layers.{}",
            range(30),
            {
                "attention.qkv": (11520, 3840),
                "feed_forward.w1": (10240, 3840),
                "adaLN_modulation.0": (15360, 256),
            },
        ),
        "diffusers": _each(
            "layers.{}", range(30), _square(3840, "attention.to_q", "attention.to_out.0")
        ),
    },
    "Lumina 2": {
        "original": _each(
            "layers.{}", range(26), {"attention.qkv": (6912, 2304), "feed_forward.w2": (2304, 9216)}
        )
    },
    "HunyuanVideo": {
        "original": _each(
            "double_blocks.{}",
            range(20),
            {
                "img_attn_qkv": (9216, 3072),
                "img_mlp.fc1": (12288, 3072),
                "img_mod.linear": (18432, 3072),
            },
        )
        | _each(
            "single_blocks.{}",
            range(40),
            {"linear1": (21504, 3072), "modulation.linear": (9216, 3072)},
        ),
    },
    "HiDream": {
        "original": _each(
            "double_stream_blocks.{}.block", range(16), _square(2560, "attn1.to_q", "attn1.to_k_t")
        )
    },
    "LTX-Video": {
        "diffusers": _each(
            "transformer_blocks.{}",
            range(28),
            _square(2048, "attn1.to_q", "attn2.to_k") | {"ff.net.2": (2048, 8192)},
        )
    },
}
