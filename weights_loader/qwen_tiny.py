"""A small Qwen-Image-Edit of random numbers, in the official repository's layout and names.

For trying the whole workflow without the 30 GB of real weights: what it draws is noise. Names and
shapes are spelled out here in the order in which diffusers and transformers build the modules, and
not taken from the loader's own lists, so that tests that load these files see a mistake in those.

Source: Qwen/Qwen-Image-Edit-2511 on Hugging Face: its folders, configs and tensor names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from . import safetensors_file
from .errors import WeightsError

EDITIONS = ("2511", "2509", "2508")
VOCABULARY = 152064
"""Of ComfyUI's tokenizer, which is the official one."""
Tensors = dict[str, torch.Tensor]


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
    vision: int = 160
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
    """transformer/config.json as diffusers writes it. changes: fields in place of usual ones."""
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
    """text_encoder/config.json as transformers writes it."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_size": sizes.joint,
        "intermediate_size": sizes.text_inner,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": TEXT_HEADS,
        "num_hidden_layers": sizes.text_layers,
        "num_key_value_heads": TEXT_KV,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
        "rope_theta": 1000000.0,
        "vision_config": {
            "depth": sizes.vision_layers,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_size": sizes.vision,
            "in_chans": 3,
            "intermediate_size": sizes.vision_inner,
            "num_heads": sizes.vision // 80,
            "out_hidden_size": sizes.joint,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
        },
        "vocab_size": sizes.vocabulary,
    }


def vae_config(sizes: Sizes = TINY) -> dict[str, object]:
    """vae/config.json as diffusers writes it."""
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
    """model_index.json of a diffusers folder. name: of its pipeline's class."""
    return {
        "_class_name": name,
        "processor": ["transformers", "Qwen2VLProcessor"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }


def write(
    folder: Path,
    edition: str = "2511",
    seed: int = 0,
    sizes: Sizes | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Write the official folder: index, configs, shards, tokenizer and processor.

    folder: made where it is not there; files of the same names are replaced. edition: of EDITIONS.
    seed: other numbers, other pictures; the same seed gives the same bytes. sizes: default are
    small ones with the vocabulary of ComfyUI's tokenizer, 34 MB in all.
    Returns: the folder. Raises: WeightsError where it cannot be written.
    """
    if edition not in EDITIONS:
        known = ", ".join(EDITIONS)
        raise WeightsError(folder, f"an edition of {known}", repr(edition), "name one of these")
    sizes = sizes or Sizes(vocabulary=VOCABULARY)
    for name, config in _configs(sizes, edition).items():
        _write_json(folder / name, config)
    stem = "diffusion_pytorch_model"
    _write_shards(folder / "transformer", stem, transformer(sizes, 3 * seed, dtype), 2)
    text = text_encoder(sizes, 3 * seed + 1, dtype)
    _write_shards(folder / "text_encoder", "model", text, 2)
    coder = vae(sizes, 3 * seed + 2, dtype)
    safetensors_file.write(folder / f"vae/{stem}.safetensors", coder, {"format": "pt"})
    plus = "QwenImageEditPipeline" if edition == "2508" else "QwenImageEditPlusPipeline"
    # Last, because this file is what makes it a model's folder.
    _write_json(folder / "model_index.json", model_index(plus))
    return folder


def write_lora(file: Path, seed: int = 0, sizes: Sizes = TINY, rank: int = 4) -> Path:
    """Write a LoRA for the tiny diffusion model, in the layout of the published Lightning ones.

    Returns: the file. Raises: WeightsError where it cannot be written.
    """
    make = _Maker(seed, torch.bfloat16)
    width = sizes.heads * sizes.head_dim
    for i in range(sizes.layers):
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            name = f"transformer_blocks.{i}.attn.{part}"
            make.add(f"{name}.lora_down.weight", rank, width)
            make.add(f"{name}.lora_up.weight", width, rank)
            make.tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    safetensors_file.write(file, make.tensors, {"format": "pt"})
    return file


def _configs(sizes: Sizes, edition: str) -> dict[str, dict[str, object]]:
    dit = transformer_config(sizes)
    if edition != "2511":
        del dit["zero_cond_t"]
    return {
        "transformer/config.json": dit,
        "text_encoder/config.json": text_config(sizes),
        "vae/config.json": vae_config(sizes),
        "scheduler/scheduler_config.json": {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": 1.0,
            "shift_terminal": 0.02,
            "use_dynamic_shifting": True,
        },
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer"},
        "processor/preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "merge_size": 2,
            "patch_size": 14,
            "temporal_patch_size": 2,
        },
    }


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=2) + "\n"
    safetensors_file.replace_with(path, [text.encode("utf-8")])


def _write_shards(folder: Path, stem: str, tensors: Tensors, count: int) -> None:
    """Shards in order, and the index that places each tensor."""
    names = list(tensors)
    step = -(-len(names) // count)
    weight_map: dict[str, str] = {}
    for number in range(count):
        part = names[number * step : (number + 1) * step]
        file = f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"
        safetensors_file.write(
            folder / file, {name: tensors[name] for name in part}, {"format": "pt"}
        )
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    _write_json(folder / f"{stem}.safetensors.index.json", index)
