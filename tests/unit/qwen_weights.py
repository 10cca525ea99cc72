"""Tiny Qwen-Image-Edit models for tests: random numbers under the official names.

Names and shapes are spelled out here a second time, in the order in which diffusers and
transformers build the modules, so that a mistake in the loader's own lists shows. The files are
written without the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import weights_files as wf

Tensors = dict[str, torch.Tensor]
MARKER = "__index_timestep_zero__"
wf.ST_NAMES.update({torch.float8_e4m3fn: "F8_E4M3", torch.uint8: "U8", torch.int8: "I8"})


@dataclass(frozen=True)
class Sizes:
    """Of a model that ComfyUI's own classes take: text heads of 128, VAE of 16 channels."""

    layers: int = 2
    heads: int = 2
    head_dim: int = 32
    axes: tuple[int, int, int] = (4, 14, 14)
    joint: int = 48
    text_layers: int = 2
    text_inner: int = 96
    vocabulary: int = 64
    vision_layers: int = 2
    vision: int = 32
    vision_inner: int = 40
    vae: int = 8


TINY = Sizes()
# Of the text encoder: 4 heads of 128, as many for keys, since hosts find it by 512 key biases.
TEXT_HEADS = TEXT_KV = 4


class _Maker:
    """Collects tensors of random numbers about as large as trained ones are."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.tensors: Tensors = {}

    def add(self, name: str, *shape: int, about: float = 0.0, scale: float = 0.05) -> None:
        numbers = torch.randn(shape, generator=self.draw) * scale + about
        self.tensors[name] = numbers.to(self.dtype)

    def linear(self, name: str, out: int, inner: int, bias: bool = True) -> None:
        self.add(f"{name}.weight", out, inner, scale=inner**-0.5)
        if bias:
            self.add(f"{name}.bias", out)

    def norm(self, name: str, *shape: int) -> None:
        self.add(name, *shape, about=1.0)

    def conv(self, name: str, out: int, inner: int, *kernel: int) -> None:
        count = inner
        for size in kernel:
            count *= size
        self.add(f"{name}.weight", out, inner, *kernel, scale=count**-0.5)
        self.add(f"{name}.bias", out)


def transformer(sizes: Sizes = TINY, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """The DiT: 13 tensors and 32 a block; no 2511 marker, the config says that."""
    make = _Maker(seed, dtype)
    width = sizes.heads * sizes.head_dim
    for part, inner in (("linear_1", 256), ("linear_2", width)):
        make.linear(f"time_text_embed.timestep_embedder.{part}", width, inner)
    make.norm("txt_norm.weight", sizes.joint)
    make.linear("img_in", width, 64)
    make.linear("txt_in", width, sizes.joint)
    for i in range(sizes.layers):
        block = f"transformer_blocks.{i}."
        make.linear(block + "img_mod.1", 6 * width, width)
        for part in ("norm_q", "norm_k"):
            make.norm(f"{block}attn.{part}.weight", sizes.head_dim)
        for part in ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj"):
            make.linear(f"{block}attn.{part}", width, width)
        make.linear(block + "attn.to_out.0", width, width)
        make.linear(block + "attn.to_add_out", width, width)
        for part in ("norm_added_q", "norm_added_k"):
            make.norm(f"{block}attn.{part}.weight", sizes.head_dim)
        make.linear(block + "img_mlp.net.0.proj", 4 * width, width)
        make.linear(block + "img_mlp.net.2", width, 4 * width)
        make.linear(block + "txt_mod.1", 6 * width, width)
        make.linear(block + "txt_mlp.net.0.proj", 4 * width, width)
        make.linear(block + "txt_mlp.net.2", width, 4 * width)
    make.linear("norm_out.linear", 2 * width, width)
    make.linear("proj_out", 64, width)
    return make.tensors


def text_encoder(
    sizes: Sizes = TINY, seed: int = 1, dtype: torch.dtype = torch.bfloat16
) -> Tensors:
    """The text encoder in the official repository's names, `lm_head.weight` included."""
    make = _Maker(seed, dtype)
    eye, hidden = sizes.vision, sizes.joint
    make.add("model.visual.patch_embed.proj.weight", eye, 3, 2, 14, 14)
    for i in range(sizes.vision_layers):
        block = f"model.visual.blocks.{i}."
        make.norm(block + "norm1.weight", eye)
        make.norm(block + "norm2.weight", eye)
        make.linear(block + "attn.qkv", 3 * eye, eye)
        make.linear(block + "attn.proj", eye, eye)
        make.linear(block + "mlp.gate_proj", sizes.vision_inner, eye)
        make.linear(block + "mlp.up_proj", sizes.vision_inner, eye)
        make.linear(block + "mlp.down_proj", eye, sizes.vision_inner)
    make.norm("model.visual.merger.ln_q.weight", eye)
    make.linear("model.visual.merger.mlp.0", 4 * eye, 4 * eye)
    make.linear("model.visual.merger.mlp.2", hidden, 4 * eye)
    make.add("model.language_model.embed_tokens.weight", sizes.vocabulary, hidden)
    for i in range(sizes.text_layers):
        layer = f"model.language_model.layers.{i}."
        make.linear(layer + "self_attn.q_proj", TEXT_HEADS * 128, hidden)
        make.linear(layer + "self_attn.k_proj", TEXT_KV * 128, hidden)
        make.linear(layer + "self_attn.v_proj", TEXT_KV * 128, hidden)
        make.linear(layer + "self_attn.o_proj", hidden, TEXT_HEADS * 128, bias=False)
        make.linear(layer + "mlp.gate_proj", sizes.text_inner, hidden, bias=False)
        make.linear(layer + "mlp.up_proj", sizes.text_inner, hidden, bias=False)
        make.linear(layer + "mlp.down_proj", hidden, sizes.text_inner, bias=False)
        make.norm(layer + "input_layernorm.weight", hidden)
        make.norm(layer + "post_attention_layernorm.weight", hidden)
    make.norm("model.language_model.norm.weight", hidden)
    make.linear("lm_head", sizes.vocabulary, hidden, bias=False)
    return make.tensors


def vae(sizes: Sizes = TINY, seed: int = 2, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """The VAE's 194 tensors in diffusers' names."""
    make = _Maker(seed, dtype)
    dim = sizes.vae

    def residual(name: str, inner: int, out: int) -> None:
        make.norm(f"{name}.norm1.gamma", inner, 1, 1, 1)
        make.conv(f"{name}.conv1", out, inner, 3, 3, 3)
        make.norm(f"{name}.norm2.gamma", out, 1, 1, 1)
        make.conv(f"{name}.conv2", out, out, 3, 3, 3)
        if inner != out:
            make.conv(f"{name}.conv_shortcut", out, inner, 1, 1, 1)

    def middle(side: str) -> None:
        make.norm(f"{side}.mid_block.attentions.0.norm.gamma", 4 * dim, 1, 1)
        make.conv(f"{side}.mid_block.attentions.0.to_qkv", 12 * dim, 4 * dim, 1, 1)
        make.conv(f"{side}.mid_block.attentions.0.proj", 4 * dim, 4 * dim, 1, 1)
        for i in range(2):
            residual(f"{side}.mid_block.resnets.{i}", 4 * dim, 4 * dim)

    make.conv("encoder.conv_in", dim, 3, 3, 3, 3)
    down = iter(f"encoder.down_blocks.{i}" for i in range(11))
    for inner, out, resample in (
        (dim, dim, "space"),
        (dim, 2 * dim, "time"),
        (2 * dim, 4 * dim, "time"),
        (4 * dim, 4 * dim, ""),
    ):
        residual(next(down), inner, out)
        residual(next(down), out, out)
        if resample:
            name = next(down)
            make.conv(f"{name}.resample.1", out, out, 3, 3)
            if resample == "time":
                make.conv(f"{name}.time_conv", out, out, 3, 1, 1)
    middle("encoder")
    make.norm("encoder.norm_out.gamma", 4 * dim, 1, 1, 1)
    make.conv("encoder.conv_out", 32, 4 * dim, 3, 3, 3)
    make.conv("quant_conv", 32, 32, 1, 1, 1)
    make.conv("post_quant_conv", 16, 16, 1, 1, 1)
    make.conv("decoder.conv_in", 4 * dim, 16, 3, 3, 3)
    middle("decoder")
    for i, (inner, out, resample) in enumerate(
        (
            (4 * dim, 4 * dim, "time"),
            (2 * dim, 4 * dim, "time"),
            (2 * dim, 2 * dim, "space"),
            (dim, dim, ""),
        )
    ):
        name = f"decoder.up_blocks.{i}"
        for j in range(3):
            residual(f"{name}.resnets.{j}", inner if j == 0 else out, out)
        if resample:
            make.conv(f"{name}.upsamplers.0.resample.1", out // 2, out, 3, 3)
            if resample == "time":
                make.conv(f"{name}.upsamplers.0.time_conv", 2 * out, out, 3, 1, 1)
    make.norm("decoder.norm_out.gamma", dim, 1, 1, 1)
    make.conv("decoder.conv_out", 3, dim, 3, 3, 3)
    return make.tensors


def transformer_config(sizes: Sizes = TINY, **changes: object) -> dict[str, object]:
    return {
        "_class_name": "QwenImageTransformer2DModel",
        "_diffusers_version": "0.36.0.dev0",
        "attention_head_dim": sizes.head_dim,
        "axes_dims_rope": list(sizes.axes),
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": sizes.joint,
        "num_attention_heads": sizes.heads,
        "num_layers": sizes.layers,
        "out_channels": 16,
        "patch_size": 2,
        "zero_cond_t": True,
    } | changes


def text_config(sizes: Sizes = TINY) -> dict[str, object]:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_size": sizes.joint,
        "intermediate_size": sizes.text_inner,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": TEXT_HEADS,
        "num_hidden_layers": sizes.text_layers,
        "num_key_value_heads": TEXT_KV,
        "vision_config": {
            "depth": sizes.vision_layers,
            "hidden_size": sizes.vision,
            "intermediate_size": sizes.vision_inner,
            "out_hidden_size": sizes.joint,
        },
        "vocab_size": sizes.vocabulary,
    }


def vae_config(sizes: Sizes = TINY) -> dict[str, object]:
    return {
        "_class_name": "AutoencoderKLQwenImage",
        "attn_scales": [],
        "base_dim": sizes.vae,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "latents_mean": [
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
        ],
        "latents_std": [
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
        ],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    }  # fmt: skip


def model_index(name: str = "QwenImageEditPlusPipeline") -> dict[str, object]:
    return {
        "_class_name": name,
        "processor": ["transformers", "Qwen2VLProcessor"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }


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
