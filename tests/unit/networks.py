"""DCT-Net for tests: random weights, and the network written plainly from the published facts.

The plain network is slow and exact (run it in float64); nothing of the code under test is in it.
Source: menyifang/DCT-Net @147e4f2 and the frozen graphs published with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from realtoon.engine.dctnet import DCTNet
from torch import Tensor


@dataclass(frozen=True)
class Flags:
    """The official network; PORT is LeslieZhoa's."""

    bgr: bool = True
    same_padding: bool = True
    tf1_upsample: bool = True
    guided_filter: bool = True
    tanh: bool = False
    edge_padding: bool = False


OFFICIAL = Flags()
PORT = Flags(False, False, False, False, True)
VARIANTS = [
    OFFICIAL,
    PORT,
    Flags(bgr=False),
    Flags(tf1_upsample=False),
    Flags(same_padding=False, tf1_upsample=False),
    Flags(guided_filter=False),
    Flags(tanh=True),
    Flags(edge_padding=True),
]


def names(flags: Flags) -> str:
    """For pytest's ids: what differs from the official network."""
    odd = [k for k in vars(flags) if getattr(flags, k) != getattr(OFFICIAL, k)]
    return {0: "official", 5: "port"}.get(len(odd), "-".join(odd))


def network(flags: Flags = OFFICIAL, seed: int = 0, dtype: torch.dtype = torch.float32) -> DCTNet:
    """Random weights whose output fills [-1,1] and rarely clips."""
    net = DCTNet(flags).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    for name, value in net.named_parameters():
        if value.ndim == 1:
            std = 0.05
        else:
            gain = {"convs.6": 0.7, "convs.8": 0.7, "convs.9": 0.28}.get(name[:7], 1.0)
            gain *= 0.5 if "conv2" in name else 1.0
            std = gain * math.sqrt(2 / 1.04 / value[0].numel())
        value.copy_(torch.randn(value.shape, generator=draw) * std)
    return net.to(dtype)


def picture(
    height: int, width: int, *, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(B,3,H,W) in [0,1]: soft shapes with some noise, so that the guided filter has edges."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 8 + 2, width // 8 + 2, generator=draw)
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = torch.rand(batch, 3, height, width, generator=draw)
    return (0.8 * smooth + 0.2 * noise).clamp(0, 1).to(dtype)


def plain(flags: Flags, tensors: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """The whole network. image: (B,3,H,W) RGB in [0,1]. Returns: the same."""
    height, width = image.shape[-2:]
    guide = image * 2 - 1
    sides = (0, -width % 16, 0, -height % 16)
    edge = flags.edge_padding
    guide = F.pad(guide, sides, "replicate") if edge else F.pad(guide, sides, value=1.0)
    if flags.bgr:
        guide = guide[:, [2, 1, 0]]
    full = _leaky(_conv(tensors, "convs.0", guide))
    half = _leaky(_conv(tensors, "convs.2", _leaky(_down(flags, tensors, "convs.1", full))))
    x = _leaky(_conv(tensors, "convs.4", _leaky(_down(flags, tensors, "convs.3", half))))
    for block in range(4):
        inner = _leaky(_conv(tensors, f"blocks.{block}.conv1", x))
        x = x + _conv(tensors, f"blocks.{block}.conv2", inner)
    x = half + _double(flags, _leaky(_conv(tensors, "convs.5", x)))
    x = _leaky(_conv(tensors, "convs.7", _leaky(_conv(tensors, "convs.6", x))))
    x = _leaky(_conv(tensors, "convs.8", full + _double(flags, x)))
    x = _conv(tensors, "convs.9", x)
    x = x.tanh() if flags.tanh else x
    x = guided(guide, x) if flags.guided_filter else x
    x = x.clamp(-0.999999, 0.999999)
    if flags.bgr:
        x = x[:, [2, 1, 0]]
    return ((x + 1) / 2)[..., :height, :width]


def _leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * 0.2)


def _conv(tensors: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = tensors[f"{name}.weight"]
    return F.conv2d(x, weight, tensors[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)


def _down(flags: Flags, tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    if not flags.same_padding:
        return _conv(tensors, name, x, 2)
    x = F.pad(x, (0, 1, 0, 1))
    return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], 2)


def _double(flags: Flags, x: Tensor) -> Tensor:
    """Each axis by a matrix: TensorFlow 1's rule, or half-pixel centres."""
    down, across = (_doubling(flags.tf1_upsample, x.shape[axis]).to(x) for axis in (-2, -1))
    return down @ x @ across.T


def _doubling(tf1: bool, length: int) -> Tensor:
    matrix = torch.zeros(2 * length, length, dtype=torch.float64)
    for row in range(2 * length):
        position = row / 2 if tf1 else (row + 0.5) / 2 - 0.5
        position = min(max(position, 0.0), length - 1.0)
        left = int(position)
        matrix[row, left] += 1 - (position - left)
        matrix[row, min(left + 1, length - 1)] += position - left
    return matrix


def guided(guide: Tensor, x: Tensor) -> Tensor:
    """The guided filter: radius 1, eps 0.01, means over what lies inside the picture."""
    ones = torch.ones_like(guide[:, :1])

    def mean(value: Tensor) -> Tensor:
        return F.avg_pool2d(value, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)

    mean_guide, mean_x = mean(guide), mean(x)
    slope = (mean(guide * x) - mean_guide * mean_x) / (mean(guide**2) - mean_guide**2 + 0.01)
    return mean(slope) * guide + mean(mean_x - slope * mean_guide)
