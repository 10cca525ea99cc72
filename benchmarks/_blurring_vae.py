"""Weights of Qwen-Image's VAE, small, that bring a picture back blurred but in its place.

Random weights give noise, and the official ones are not needed to find out where a picture lies.
Here the encoder is the mean of blocks of 8 pixels and the decoder a smooth way back, both symmetric
to each block's centre, so that what is moved was moved by the nodes.
"""

from __future__ import annotations

import math

import qwen_weights
import torch

Tensors = dict[str, torch.Tensor]
SIZES = qwen_weights.Sizes(vae=4)
COLOURS = 3
STEADY = 3
"""The channel that is 1 everywhere: beside it the norms leave the small colours as they are."""
SMALL = 0.004
SIDE = torch.tensor([1.0, 2.0, 1.0]) / 4


def tensors() -> Tensors:
    """All 194 of them in diffusers' names, fp32."""
    made = {
        name: torch.zeros_like(t)
        for name, t in qwen_weights.vae(SIZES, dtype=torch.float32).items()
    }
    for name, tensor in made.items():
        if "norm" in name:
            tensor.fill_(1.0)
        elif name.endswith("conv_shortcut.weight"):
            _carry(tensor[:, :, -1, 0, 0], 1.0, COLOURS + 1)
        elif name.endswith("resample.1.weight"):
            _resample(tensor, down=name.startswith("encoder"))
    for side in ("encoder", "decoder"):
        width = made[f"{side}.norm_out.gamma"]
        _carry(made[f"{side}.conv_in.weight"][:, :, -1, 1, 1], SMALL, COLOURS)
        made[f"{side}.conv_in.bias"][STEADY] = 1.0
        # Near 0 SiLU is half of what comes in.
        back = 2 / (math.sqrt(len(width)) * SMALL)
        _carry(made[f"{side}.conv_out.weight"][:, :, -1, 1, 1], back, COLOURS)
    for name in ("quant_conv", "post_quant_conv"):
        _carry(made[f"{name}.weight"][:, :, -1, 0, 0], 1.0, COLOURS)
    return made


def _carry(matrix: torch.Tensor, factor: float, count: int) -> None:
    """Let the first channels through."""
    for channel in range(count):
        matrix[channel, channel] = factor


def _resample(weight: torch.Tensor, down: bool) -> None:
    for channel in range(COLOURS + 1):
        if down:
            weight[channel, channel, :2, :2] = 0.25
        else:
            weight[channel, channel] = SIDE[:, None] * SIDE
