"""What Qwen-Image-Edit is shown of a picture: sizes of its references and of its vision copies.

Plain numbers: no pixel is touched here.
"""

from __future__ import annotations

import math

from .image_prep import Framing

REFERENCE_MULTIPLE = 16
"""Pixels a token: the VAE makes 8 of them one, the model's patches 2 of these."""

VISION_MULTIPLE = 28
"""Pixels of the vision tower's tokens: patches of 14, merged by twos."""

VISION_PX = 384
"""Side of the square whose area the vision copies had in training."""

TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture,"
    " objects, background), then explain how the user's text instruction should alter or modify the"
    " image. Generate a new image that meets the user's requirements while maintaining consistency"
    " with the original input where appropriate.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""The words that the model was trained with, to the letter. Source: `prompt_template_encode` of the
official QwenImageEditPlusPipeline (diffusers 0.36)."""


def is_aligned(hw: tuple[int, int]) -> bool:
    """Whether a picture is whole tokens, so that neither VAE nor model has to cut or pad it."""
    return all(side > 0 and side % REFERENCE_MULTIPLE == 0 for side in hw)


def reference_tokens(hw: tuple[int, int]) -> int:
    """Tokens of a picture with sides of whole tokens."""
    return math.prod(hw) // REFERENCE_MULTIPLE**2


def vision_tokens(hw: tuple[int, int]) -> int:
    """Tokens that the text encoder gets for a vision copy."""
    return math.prod(hw) // VISION_MULTIPLE**2


def vision_size(hw: tuple[int, int], side_px: int = VISION_PX) -> tuple[int, int]:
    """(height, width) of a picture's vision copy: area about side_px², aspect kept, whole tokens.

    hw: the picture's. side_px: at least 112, which is 16 tokens.
    The sides are those to which the vision tower's own processor would round a copy of that area,
    so it has nothing left to resize; no side is under one token.
    Source: `smart_resize` of transformers' Qwen2-VL processor; ComfyUI 0.33 text_encoders/qwen_vl.
    """
    scale = math.sqrt(side_px**2 / math.prod(hw))
    sides = [max(1, round(round(side * scale) / VISION_MULTIPLE)) for side in hw]
    if 1 in sides:
        # A strip thinner than a token is widened to one: its length keeps the area.
        longest = max(1, side_px**2 // VISION_MULTIPLE**2)
        sides = [min(side, longest) for side in sides]
    return sides[0] * VISION_MULTIPLE, sides[1] * VISION_MULTIPLE


def plan_reference(hw: tuple[int, int], area_px: int) -> Framing:
    """How a further reference is brought to whole tokens: scaled down, the overhang cut evenly.

    hw: (height, width), at least 1×1. area_px: at most this many pixels, at least one token's.
    Returns: a plan for image_prep.frame_rows. Proportions are kept to the nearest pixel; what
        hangs over is less than a token, on one of the sides. Only a picture with a side under one
        token is enlarged, and only a strip of that width may be larger than area_px.
    """
    height, width = hw
    scale = min(1.0, math.sqrt(area_px / (height * width)))
    scale = max(scale, REFERENCE_MULTIPLE / min(hw))
    out_h, out_w = (_whole(side * scale) for side in hw)
    cover = max(out_h / height, out_w / width)
    scaled = max(out_h, round(height * cover)), max(out_w, round(width * cover))
    offset = (-((scaled[0] - out_h) // 2), -((scaled[1] - out_w) // 2))
    return Framing((height, width), scaled, (out_h, out_w), offset)


def _whole(side: float) -> int:
    # A hair more: of 16.0 the square root may leave 15.999….
    return max(1, int(side / REFERENCE_MULTIPLE + 1e-6)) * REFERENCE_MULTIPLE
