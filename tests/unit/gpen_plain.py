"""GPEN written plainly from the published facts, with the operations that the published code runs.

Every face has kernels of its own, all of them one grouped convolution; a picture is doubled by
zeros between its pixels and then blurred; the encoder's features are concatenated. Nothing of the
code under test is in it. Tests hold the fast network to it, and the benchmark times it.
Source: yangxy/GPEN @2c73670, ``face_model/gpen_model.py`` (FullGenerator).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# Pixels of zeros before and behind each blur. Tests change these, to see that it shows.
PADS = {"encoder": (2, 2), "doubling": (1, 1), "picture": (2, 1)}
_BLUR = torch.tensor([1.0, 3.0, 3.0, 1.0]).outer(torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


def plain(tensors: Mapping[str, Tensor], faces: Tensor) -> Tensor:
    """The whole generator.

    tensors: by the published names, without the blur kernels. faces: (B,3,S,S) RGB in [-1,1].
    Returns: (B,3,S,S), not clamped.
    """
    features = _encoder(tensors, faces)
    style = _style(tensors, features[-1])
    x = tensors["generator.input.input"].repeat(len(faces), 1, 1, 1)
    x = _styled(tensors, "generator.conv1", x, style, features[-1])
    picture = _to_rgb(tensors, "generator.to_rgb1", x, style)
    for level, feature in enumerate(reversed(features[:-1])):
        for index in (2 * level, 2 * level + 1):
            x = _styled(tensors, f"generator.convs.{index}", x, style, feature, up=index % 2 == 0)
        doubled = _resample(picture, gain=4, zeros=1, pad=PADS["picture"])
        picture = doubled + _to_rgb(tensors, f"generator.to_rgbs.{level}", x, style)
    return picture


def _encoder(tensors: Mapping[str, Tensor], x: Tensor) -> list[Tensor]:
    """The features at the face's size, at half of it, ... at 4 px."""
    x = F.conv2d(x, _equalised(tensors["ecd0.0.0.weight"]))
    found = [_activated(x, tensors["ecd0.0.1.bias"])]
    while found[-1].shape[-1] > 4:
        name = f"ecd{len(found)}.0"
        x = _resample(found[-1], gain=1, pad=PADS["encoder"])
        x = F.conv2d(x, _equalised(tensors[f"{name}.1.weight"]), stride=2)
        found.append(_activated(x, tensors[f"{name}.2.bias"]))
    return found


def _style(tensors: Mapping[str, Tensor], deepest: Tensor) -> Tensor:
    weight, bias = tensors["final_linear.0.weight"], tensors["final_linear.0.bias"]
    x = _activated(F.linear(deepest.flatten(1), _equalised(weight)), bias)
    x = x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()
    for layer in range(1, 9):
        name = f"generator.style.{layer}"
        x = F.linear(x, 0.01 * _equalised(tensors[f"{name}.weight"]))
        x = _activated(x, 0.01 * tensors[f"{name}.bias"])
    return x


def _styled(
    tensors: Mapping[str, Tensor],
    name: str,
    x: Tensor,
    style: Tensor,
    feature: Tensor,
    up: bool = False,
) -> Tensor:
    x = _modulated(tensors, f"{name}.conv", x, style, up=up)
    x = torch.cat((x, tensors[f"{name}.noise.weight"] * feature), 1)
    return _activated(x, tensors[f"{name}.activate.bias"])


def _to_rgb(tensors: Mapping[str, Tensor], name: str, x: Tensor, style: Tensor) -> Tensor:
    drawn = _modulated(tensors, f"{name}.conv", x, style, demodulated=False)
    return drawn + tensors[f"{name}.bias"]


def _modulated(
    tensors: Mapping[str, Tensor],
    name: str,
    x: Tensor,
    style: Tensor,
    up: bool = False,
    demodulated: bool = True,
) -> Tensor:
    batch, inner, height, width = x.shape
    weight, bias = (tensors[f"{name}.modulation.{part}"] for part in ("weight", "bias"))
    scale = F.linear(style, _equalised(weight), bias)
    kernels = _equalised(tensors[f"{name}.weight"][0]) * scale[:, None, :, None, None]
    if demodulated:
        lengths = (kernels.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
        kernels = kernels / lengths
    out, side = kernels.shape[1], kernels.shape[-1]
    grouped = x.reshape(1, batch * inner, height, width)
    if up:
        kernels = kernels.transpose(1, 2).reshape(batch * inner, out, side, side)
        y = F.conv_transpose2d(grouped, kernels, stride=2, groups=batch)
        y = y.reshape(batch, out, *y.shape[2:])
        return _resample(y, gain=4, pad=PADS["doubling"])
    kernels = kernels.reshape(batch * out, inner, side, side)
    y = F.conv2d(grouped, kernels, padding=side // 2, groups=batch)
    return y.reshape(batch, out, height, width)


def _resample(x: Tensor, gain: float, pad: tuple[int, int], zeros: int = 0) -> Tensor:
    """`zeros` after every pixel of both axes, a border of zeros before and behind, the blur."""
    batch, channels, height, width = x.shape
    if zeros:
        x = x.reshape(-1, height, 1, width, 1)
        x = F.pad(x, (0, zeros, 0, 0, 0, zeros))
        height, width = height * (1 + zeros), width * (1 + zeros)
    x = F.pad(x.reshape(-1, 1, height, width), pad * 2)
    y = F.conv2d(x, (gain * _BLUR).to(x)[None, None])
    return y.reshape(batch, channels, *y.shape[2:])


def _equalised(weight: Tensor) -> Tensor:
    return weight / math.sqrt(weight[0].numel())


def _activated(x: Tensor, bias: Tensor) -> Tensor:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return F.leaky_relu(x + bias.reshape(shape), 0.2) * math.sqrt(2)
