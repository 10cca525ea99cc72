"""What a file is that is not the network asked for: told by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from . import files
from .errors import WeightsError, listed

WANTED = {
    "dit": "a Qwen-Image-Edit diffusion model",
    "text": "a Qwen2.5-VL text encoder with its vision part",
    "vae": "the Qwen-Image VAE",
}
NEXT = {
    "dit": "choose qwen_image_edit_2511 (bf16 or fp8), or the folder of the official repository",
    "text": "choose qwen_2.5_vl_7b (bf16 or fp8 scaled), or the official text_encoder folder",
    "vae": "choose qwen_image_vae, or the official vae folder",
}
_LORA = re.compile(
    r"[._](lora_(A|B|up|down|magnitude_vector)|lokr_\w+|hada_w\w+|dora_scale)([._]|$)"
)
# In this order: the first whose names all appear. A name that ends with "*" is a beginning.
_FAMILIES = (
    ("a Qwen-Image ControlNet", ("controlnet_blocks.*",)),
    ("Qwen-Image-Layered", ("time_text_embed.addition_t_embedding.weight",)),
    ("a Lens model", ("txt_norm*", "transformer_blocks.0.img_mlp.w1.weight")),
    ("a Qwen-Image diffusion model", ("txt_norm.weight", "transformer_blocks.0.img_mod.1*")),
    ("a Flux or HunyuanVideo model", ("double_blocks.0.*",)),
    ("a Flux model in diffusers' names", ("single_transformer_blocks.0.*",)),
    ("an SD3 model", ("joint_blocks.0.*",)),
    ("an SD3 model in diffusers' names", ("pos_embed.proj.*", "context_embedder.*")),
    ("a Wan video model", ("blocks.0.cross_attn.*", "patch_embedding.*")),
    ("a Wan video model in diffusers' names", ("condition_embedder.*", "blocks.0.attn2.*")),
    ("a Stable Diffusion model", ("input_blocks.0.*",)),
    ("a Stable Diffusion checkpoint", ("model.diffusion_model.input_blocks.0.*",)),
    ("a Stable Diffusion model in diffusers' names", ("down_blocks.0.*", "time_embedding.*")),
    ("a Lumina 2 or Z-Image model", ("cap_embedder.*",)),
    ("a T5 text encoder", ("encoder.block.0.layer.0.*",)),
    ("a CLIP text encoder", ("text_model.*",)),
    ("a Qwen3-VL text encoder", ("visual.deepstack_merger_list.0.*",)),
    ("a Qwen2-VL text encoder (not 2.5)", ("visual.blocks.0.mlp.fc1*",)),
    ("a Qwen3 text encoder", ("model.layers.0.self_attn.q_norm.*",)),
    (
        "a Qwen2.5-VL text encoder",
        ("visual.patch_embed.*", "model.layers.0.self_attn.k_proj.bias"),
    ),
    ("the vision part alone", ("visual.patch_embed.*",)),
    (
        "a text encoder without its vision part (no visual.* tensors: a text-only Qwen2.5)",
        ("model.layers.0.self_attn.k_proj.bias",),
    ),
    ("a language model of another family", ("model.layers.0.self_attn.*",)),
    ("the VAE of Wan 2.2", ("decoder.upsamples.0.upsamples.0.*",)),
    ("the Qwen-Image or Wan 2.1 VAE", ("decoder.middle.0.residual.0.gamma",)),
    (
        "the Qwen-Image or Wan 2.1 VAE in diffusers' names",
        ("decoder.mid_block.resnets.0.norm1.gamma",),
    ),
    ("a VAE of Stable Diffusion or Flux", ("decoder.up.0.block.0.*",)),
    (
        "a VAE of Stable Diffusion or Flux in diffusers' names",
        ("decoder.up_blocks.0.resnets.0.norm1.weight",),
    ),
)


def family(names: Mapping[str, object]) -> str:
    """What tensors of these names belong to, or "" where nothing known does."""
    if any(_LORA.search(name) for name in names):
        return "a LoRA (it changes a model, it is none)"
    for what, signs in _FAMILIES:
        if all(_has(names, sign) for sign in signs):
            return what
    return ""


def refuse(path: Path, kind: str, tensors: Mapping[str, files.Stored]) -> NoReturn:
    """Raise the WeightsError that says what a file is instead of a `kind`."""
    what = family(tensors) or f"a file with {listed(list(tensors), 'tensors')}"
    next_step = NEXT[kind]
    if what.startswith("a LoRA"):
        next_step = "put it into models/loras, choose it in LoRAHotInject, and a base model here"
    raise WeightsError(path, WANTED[kind], what, next_step)


def _has(names: Mapping[str, object], sign: str) -> bool:
    if not sign.endswith("*"):
        return sign in names
    return any(name.startswith(sign[:-1]) for name in names)
