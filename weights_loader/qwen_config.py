"""A network's sizes from the shapes of its tensors, compared with config.json where there is one.

The shapes win no argument: where the two disagree, the folder holds parts of two versions, and it
is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from . import files, qwen_families
from .errors import WeightsError
from .qwen_folder import Source
from .qwen_keys import DIM_MULT, RES_BLOCKS, TEMPORAL
from .qwen_parts import MARKER, DiTConfig, TextConfig, VAEConfig

_OWN = "use the config.json that belongs to these weights: download both again"
_DAMAGED = "download the file again, or use one that ComfyUI's page for this model offers"
_MAX_BLOCKS = 1000
_VISION_HEAD_DIM = 80
# What ComfyUI has built into the vision part.
_VISION_FIXED = {
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
}
# ComfyUI has them built in, so another VAE of the same shapes would come out in wrong colours.
LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


def dit_config(source: Source, tensors: Mapping[str, files.Stored]) -> DiTConfig:
    """Sizes of a DiT. tensors: in ComfyUI's names. Raises: WeightsError."""
    look = _Look(source.path, "dit", tensors)
    if qwen_families.family(tensors) != "a Qwen-Image diffusion model":
        qwen_families.refuse(source.path, "dit", tensors)
    width, in_channels = look.shape("img_in.weight", 2)
    (joint_dim,) = look.shape("txt_norm.weight", 1)
    (head_dim,) = look.shape("transformer_blocks.0.attn.norm_q.weight", 1)
    if not head_dim or width % head_dim:
        look.refuse(f"a width that is a multiple of the head's {head_dim}", str(width))
    config = source.config or {}
    json = _Json(source.config_path, config)
    patch = json.size("patch_size", 2)
    out_rows = look.shape("proj_out.weight", 2)[0]
    if out_rows % patch**2:
        look.refuse(f"rows of proj_out.weight in multiples of {patch**2}", str(out_rows))
    marked = MARKER in tensors
    if marked and math.prod(tensors[MARKER].shape):
        look.refuse(f"an empty {MARKER}", str(tensors[MARKER].shape))
    json.equal("num_layers", layers := look.blocks("transformer_blocks."))
    json.equal("num_attention_heads", heads := width // head_dim)
    json.equal("attention_head_dim", head_dim)
    json.equal("joint_attention_dim", joint_dim)
    json.equal("in_channels", in_channels)
    json.equal("out_channels", out_channels := out_rows // patch**2)
    for name in ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope"):
        json.equal(name, False)
    zero_cond_t = json.flag("zero_cond_t")
    axes = _axes(look, json, head_dim)
    return DiTConfig(
        num_layers=layers,
        heads=heads,
        head_dim=head_dim,
        joint_dim=joint_dim,
        in_channels=in_channels,
        out_channels=out_channels,
        patch=patch,
        axes_dims=axes,
        zero_cond_t=marked or zero_cond_t,
    )


def text_config(source: Source, tensors: Mapping[str, files.Stored]) -> TextConfig:
    """Sizes of a text encoder. tensors: in ComfyUI's names. Raises: WeightsError."""
    look = _Look(source.path, "text", tensors)
    if qwen_families.family(tensors) != "a Qwen2.5-VL text encoder":
        qwen_families.refuse(source.path, "text", tensors)
    vocabulary, hidden = look.shape("model.embed_tokens.weight", 2)
    inner = look.shape("model.layers.0.self_attn.q_proj.weight", 2)[0]
    kv = look.shape("model.layers.0.self_attn.k_proj.weight", 2)[0]
    (intermediate, _) = look.shape("model.layers.0.mlp.gate_proj.weight", 2)
    vision_hidden = look.shape("visual.patch_embed.proj.weight", 5)[0]
    vision_intermediate = look.shape("visual.blocks.0.mlp.gate_proj.weight", 2)[0]
    whole = _Json(source.config_path, source.config or {})
    json = whole.inner("text_config") if "text_config" in whole.values else whole
    # 128 is what ComfyUI has built in; a single file does not say.
    heads = json.size("num_attention_heads", max(1, inner // 128))
    head_dim = inner // heads
    if not head_dim or inner != heads * head_dim or kv % head_dim:
        look.refuse(f"{heads} heads in the {inner} rows of q_proj and the {kv} of k_proj", "others")
    vision = whole.inner("vision_config")
    config = TextConfig(
        num_layers=look.blocks("model.layers."),
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv // head_dim,
        head_dim=head_dim,
        vocabulary=vocabulary,
        vision_layers=look.blocks("visual.blocks."),
        vision_hidden=vision_hidden,
        vision_intermediate=vision_intermediate,
        vision_heads=_vision_heads(look, vision, vision_hidden),
        vision_whole=vision.numbers("fullatt_block_indexes", TextConfig.vision_whole),
    )
    json.equal("num_hidden_layers", config.num_layers)
    json.equal("hidden_size", hidden)
    json.equal("intermediate_size", intermediate)
    json.equal("num_key_value_heads", config.kv_heads)
    json.equal("vocab_size", vocabulary)
    vision.equal("depth", config.vision_layers)
    vision.equal("hidden_size", vision_hidden)
    vision.equal("intermediate_size", vision_intermediate)
    vision.equal("out_hidden_size", hidden)
    for name, number in _VISION_FIXED.items():
        vision.equal(name, number)
    return config


def vae_config(source: Source, tensors: Mapping[str, files.Stored]) -> VAEConfig:
    """Sizes of a VAE. tensors: in ComfyUI's names. Raises: WeightsError."""
    look = _Look(source.path, "vae", tensors)
    if qwen_families.family(tensors) != "the Qwen-Image or Wan 2.1 VAE":
        qwen_families.refuse(source.path, "vae", tensors)
    dim = look.shape("decoder.head.0.gamma", 4)[0]
    z_dim = look.shape("conv2.weight", 5)[0]
    json = _Json(source.config_path, source.config or {})
    json.equal("base_dim", dim)
    json.equal("z_dim", z_dim)
    json.equal("num_res_blocks", RES_BLOCKS)
    json.equal("dim_mult", list(DIM_MULT))
    json.equal("temperal_downsample", list(TEMPORAL))
    json.equal("attn_scales", [])
    json.near("latents_mean", LATENTS_MEAN)
    json.near("latents_std", LATENTS_STD)
    return VAEConfig(dim, z_dim)


def _vision_heads(look: _Look, json: _Json, width: int) -> int:
    """Heads of the vision part: config.json's, or those of the official width of a head."""
    if "num_heads" not in json.values and width % _VISION_HEAD_DIM:
        expected = f"vision heads of {_VISION_HEAD_DIM}, or a folder whose config.json counts them"
        look.refuse(expected, f"a vision part {width} wide")
    heads = json.size("num_heads", max(1, width // _VISION_HEAD_DIM))
    # Rows and columns each turn a quarter of a head's numbers, in pairs.
    if width % heads or width // heads % 4:
        json.refuse(f"num_heads of heads of a multiple of 4 in {width}", str(heads))
    return heads


def _axes(look: _Look, json: _Json, head_dim: int) -> tuple[int, int, int]:
    """Rotary numbers by axis: config.json's, or the official proportions where none is there."""
    if "axes_dims_rope" not in json.values:
        frame, side = head_dim // 8, head_dim * 7 // 16
        if head_dim % 32:
            expected = "heads of a multiple of 32, or a folder whose config.json has axes_dims_rope"
            look.refuse(expected, f"heads of {head_dim}")
        return frame, side, side
    axes = json.values["axes_dims_rope"]
    sound = isinstance(axes, list) and len(axes) == 3 and all(type(n) is int for n in axes)
    if not sound or any(n <= 0 or n % 2 for n in axes) or sum(axes) != head_dim:
        expected = f"axes_dims_rope of three even numbers whose sum is {head_dim}"
        json.refuse(expected, repr(axes))
    return axes[0], axes[1], axes[2]


class _Look:
    """Shapes by name, with refusals that name the file."""

    def __init__(self, path: Path, kind: str, tensors: Mapping[str, files.Stored]) -> None:
        self._path, self._kind, self._tensors = path, kind, tensors

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        if name not in self._tensors:
            self.refuse(f"a tensor {name}", "none")
        shape = self._tensors[name].shape
        if len(shape) != rank or not all(shape):
            self.refuse(f"{name} of {rank} sizes", str(shape))
        return shape

    def blocks(self, start: str) -> int:
        """How many blocks there are. Their numbers must be 0 and up without a hole."""
        pattern = re.compile(re.escape(start) + r"(\d+)\.")
        found = {match[1] for name in self._tensors if (match := pattern.match(name))}
        if len(found) > _MAX_BLOCKS or found != {str(i) for i in range(len(found))}:
            odd = sorted(found.difference(str(i) for i in range(len(found))))
            self.refuse(f"blocks {start}0 to {start}{len(found) - 1}", f"{start}{odd[0]}")
        return len(found)

    def refuse(self, expected: str, got: str) -> NoReturn:
        raise WeightsError(self._path, expected, got, _DAMAGED)


class _Json:
    """Values of a config.json, with refusals that name it. A value that is not there passes."""

    def __init__(self, path: Path, values: Mapping[str, Any], scope: str = "") -> None:
        self._path, self.values, self._scope = path, values, scope

    def inner(self, name: str) -> _Json:
        values = self.values.get(name, {})
        if not isinstance(values, dict):
            self.refuse(f"{name} with names and values", repr(values))
        return _Json(self._path, values, f"{name}.")

    def size(self, name: str, default: int) -> int:
        value = self.values.get(name, default)
        if type(value) is not int or not 1 <= value <= 1 << 20:
            self.refuse(f"{self._scope}{name} as a whole number from 1", repr(value))
        return value

    def numbers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.values.get(name, list(default))
        if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
            self.refuse(f"{self._scope}{name} as a list of whole numbers", repr(value))
        return tuple(value)

    def flag(self, name: str) -> bool:
        value = self.values.get(name, False)
        if type(value) is not bool:
            self.refuse(f"{self._scope}{name} as true or false", repr(value))
        return value

    def equal(self, name: str, expected: object) -> None:
        if name not in self.values:
            return
        value = self.values[name]
        # In Python 1 == True == 1.0, also inside lists.
        if repr(value) != repr(expected):
            self.refuse(f"{self._scope}{name} {expected!r}, as the tensors have it", repr(value))

    def near(self, name: str, expected: tuple[float, ...]) -> None:
        value = self.values.get(name, list(expected))
        if (
            not isinstance(value, list)
            or len(value) != len(expected)
            or not all(type(number) in (int, float) for number in value)
            or not all(b - 1e-4 < a < b + 1e-4 for a, b in zip(value, expected, strict=True))
        ):
            self.refuse(f"{self._scope}{name} of the Qwen-Image VAE", repr(value)[:80])

    def refuse(self, expected: str, got: str) -> NoReturn:
        raise WeightsError(self._path, expected, got[:120], _OWN)
