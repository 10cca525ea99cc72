"""Names and shapes of Qwen-Image-Edit's three networks, and ComfyUI's names for them.

Source: QwenImageTransformer2DModel and AutoencoderKLQwenImage of diffusers 0.36,
Qwen2_5_VLForConditionalGeneration of transformers; ComfyUI 0.33 ldm/qwen_image, ldm/wan/vae and
text_encoders/qwen_vl.
"""

from __future__ import annotations

import re

from .qwen_parts import DiTConfig, TextConfig, VAEConfig

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

TIME_CHANNELS = 256
VISION_PATCH = (3, 2, 14, 14)
VISION_MERGE = 4
DIM_MULT = (1, 2, 4, 4)
RES_BLOCKS = 2
TEMPORAL = (False, True, True)
UNUSED_TEXT = ("lm_head.weight", "model.lm_head.weight", "logit_scale")


def dit_shapes(config: DiTConfig) -> Shapes:
    """Name -> shape of every tensor of the DiT, the 2511 marker left out (1,933 at 60 layers)."""
    width = config.width
    shapes: Shapes = {"txt_norm.weight": (config.joint_dim,)}
    _linear(shapes, "time_text_embed.timestep_embedder.linear_1", width, TIME_CHANNELS)
    _linear(shapes, "time_text_embed.timestep_embedder.linear_2", width, width)
    _linear(shapes, "img_in", width, config.in_channels)
    _linear(shapes, "txt_in", width, config.joint_dim)
    for number in range(config.num_layers):
        block = f"transformer_blocks.{number}"
        for stream in ("img", "txt"):
            _linear(shapes, f"{block}.{stream}_mod.1", 6 * width, width)
            _linear(shapes, f"{block}.{stream}_mlp.net.0.proj", 4 * width, width)
            _linear(shapes, f"{block}.{stream}_mlp.net.2", width, 4 * width)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            shapes[f"{block}.attn.{name}.weight"] = (config.head_dim,)
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
            _linear(shapes, f"{block}.attn.{name}", width, width)
        for name in ("to_out.0", "to_add_out"):
            _linear(shapes, f"{block}.attn.{name}", width, width)
    _linear(shapes, "norm_out.linear", 2 * width, width)
    _linear(shapes, "proj_out", config.patch**2 * config.out_channels, width)
    return shapes


def text_shapes(config: TextConfig) -> Shapes:
    """ComfyUI's name -> shape of every tensor of the text encoder (728 at the official size)."""
    hidden, kv = config.hidden, config.kv_heads * config.head_dim
    inner = config.heads * config.head_dim
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocabulary, hidden)}
    for number in range(config.num_layers):
        layer = f"model.layers.{number}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (hidden,)
        for name, size in (("q_proj", inner), ("k_proj", kv), ("v_proj", kv)):
            _linear(shapes, f"{layer}.self_attn.{name}", size, hidden)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, inner)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}.mlp.{name}.weight"] = (config.intermediate, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, config.intermediate)
    shapes["model.norm.weight"] = (hidden,)
    eye = config.vision_hidden
    shapes["visual.patch_embed.proj.weight"] = (eye, *VISION_PATCH)
    for number in range(config.vision_layers):
        block = f"visual.blocks.{number}"
        shapes[f"{block}.norm1.weight"] = shapes[f"{block}.norm2.weight"] = (eye,)
        _linear(shapes, f"{block}.attn.qkv", 3 * eye, eye)
        _linear(shapes, f"{block}.attn.proj", eye, eye)
        for name in ("gate_proj", "up_proj"):
            _linear(shapes, f"{block}.mlp.{name}", config.vision_intermediate, eye)
        _linear(shapes, f"{block}.mlp.down_proj", eye, config.vision_intermediate)
    shapes["visual.merger.ln_q.weight"] = (eye,)
    _linear(shapes, "visual.merger.mlp.0", VISION_MERGE * eye, VISION_MERGE * eye)
    _linear(shapes, "visual.merger.mlp.2", hidden, VISION_MERGE * eye)
    return shapes


def vae_shapes(config: VAEConfig) -> Shapes:
    """ComfyUI's (Wan's) name -> shape of every tensor of the VAE (194)."""
    widths = [config.dim * mult for mult in DIM_MULT]
    top, z_dim = widths[-1], config.z_dim
    shapes: Shapes = {}
    _conv(shapes, "conv1", 2 * z_dim, 2 * z_dim, 1, 1, 1)
    _conv(shapes, "conv2", z_dim, z_dim, 1, 1, 1)
    _conv(shapes, "encoder.conv1", config.dim, 3, 3, 3, 3)
    at, inner = 0, config.dim
    for level, width in enumerate(widths):
        for _ in range(RES_BLOCKS):
            _residual(shapes, f"encoder.downsamples.{at}", inner, width)
            at, inner = at + 1, width
        if level < len(widths) - 1:
            _conv(shapes, f"encoder.downsamples.{at}.resample.1", width, width, 3, 3)
            if TEMPORAL[level]:
                _conv(shapes, f"encoder.downsamples.{at}.time_conv", width, width, 3, 1, 1)
            at += 1
    _middle(shapes, "encoder", top)
    shapes["encoder.head.0.gamma"] = (top, 1, 1, 1)
    _conv(shapes, "encoder.head.2", 2 * z_dim, top, 3, 3, 3)

    _conv(shapes, "decoder.conv1", top, z_dim, 3, 3, 3)
    _middle(shapes, "decoder", top)
    at, inner = 0, top
    for level, width in enumerate(reversed(widths)):
        for _ in range(RES_BLOCKS + 1):
            _residual(shapes, f"decoder.upsamples.{at}", inner, width)
            at, inner = at + 1, width
        if level < len(widths) - 1:
            _conv(shapes, f"decoder.upsamples.{at}.resample.1", width // 2, width, 3, 3)
            if TEMPORAL[-1 - level]:
                _conv(shapes, f"decoder.upsamples.{at}.time_conv", 2 * width, width, 3, 1, 1)
            at, inner = at + 1, width // 2
    shapes["decoder.head.0.gamma"] = (config.dim, 1, 1, 1)
    _conv(shapes, "decoder.head.2", 3, config.dim, 3, 3, 3)
    return shapes


def text_name(official: str) -> str:
    """ComfyUI's name of a tensor of the text encoder; names that are ComfyUI's stay as they are."""
    for old, new in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if official.startswith(old):
            return new + official[len(old) :]
    return official


_VAE_WHOLE = (
    ("quant_conv.", "conv1."),
    ("post_quant_conv.", "conv2."),
    *(
        (f"{side}.{old}.", f"{side}.{new}.")
        for side in ("encoder", "decoder")
        for old, new in (
            ("conv_in", "conv1"),
            ("norm_out", "head.0"),
            ("conv_out", "head.2"),
            ("mid_block.resnets.0", "middle.0"),
            ("mid_block.attentions.0", "middle.1"),
            ("mid_block.resnets.1", "middle.2"),
        )
    ),
)
_VAE_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_DOWN = re.compile(r"encoder\.down_blocks\.(\d{1,3})\.")
_UP = re.compile(r"decoder\.up_blocks\.(\d{1,3})\.(resnets|upsamplers)\.(\d{1,3})\.")
_IN_BLOCK = re.compile(
    r"((?:en|de)coder\.(?:middle|downsamples|upsamples)\.\d+)\."
    r"(norm1|conv1|norm2|conv2|conv_shortcut)\."
)


def vae_name(official: str) -> str:
    """ComfyUI's (Wan's) name of a tensor of the VAE in diffusers' names."""
    name = official
    for old, new in _VAE_WHOLE:
        if name.startswith(old):
            name = new + name[len(old) :]
            break
    name = _DOWN.sub(r"encoder.downsamples.\1.", name)
    name = _UP.sub(_up_block, name)
    return _IN_BLOCK.sub(lambda found: f"{found[1]}.{_VAE_RESIDUAL[found[2]]}.", name)


def _up_block(found: re.Match[str]) -> str:
    at = (RES_BLOCKS + 2) * int(found[1])
    at += int(found[3]) if found[2] == "resnets" else RES_BLOCKS + 1
    return f"decoder.upsamples.{at}."


def _linear(shapes: Shapes, name: str, out: int, inner: int) -> None:
    shapes[f"{name}.weight"] = (out, inner)
    shapes[f"{name}.bias"] = (out,)


def _conv(shapes: Shapes, name: str, out: int, inner: int, *kernel: int) -> None:
    shapes[f"{name}.weight"] = (out, inner, *kernel)
    shapes[f"{name}.bias"] = (out,)


def _residual(shapes: Shapes, name: str, inner: int, out: int) -> None:
    shapes[f"{name}.residual.0.gamma"] = (inner, 1, 1, 1)
    _conv(shapes, f"{name}.residual.2", out, inner, 3, 3, 3)
    shapes[f"{name}.residual.3.gamma"] = (out, 1, 1, 1)
    _conv(shapes, f"{name}.residual.6", out, out, 3, 3, 3)
    if inner != out:
        _conv(shapes, f"{name}.shortcut", out, inner, 1, 1, 1)


def _middle(shapes: Shapes, side: str, width: int) -> None:
    _residual(shapes, f"{side}.middle.0", width, width)
    shapes[f"{side}.middle.1.norm.gamma"] = (width, 1, 1)
    _conv(shapes, f"{side}.middle.1.to_qkv", 3 * width, width, 1, 1)
    _conv(shapes, f"{side}.middle.1.proj", width, width, 1, 1)
    _residual(shapes, f"{side}.middle.2", width, width)
