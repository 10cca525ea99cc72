"""The PyTorch port's network, written plainly from its layers, to hold the fast one to.

Facts: LeslieZhoa/DCT-NET.Pytorch @b303f41 ``model/Pix2PixModule/model.py``. RGB in [-1,1],
zero padding of 1 on every side of a stride-2 convolution, half-pixel bilinear, tanh, no filter.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def _half_pixel_matrix(length: int) -> Tensor:
    """(2·length, length): rows of weights by which doubled samples mix their two neighbours."""
    matrix = torch.zeros(2 * length, length, dtype=torch.float64)
    for row in range(2 * length):
        position = min(max((row + 0.5) / 2 - 0.5, 0.0), length - 1.0)
        left = int(position)
        right = min(left + 1, length - 1)
        matrix[row, left] += 1 - (position - left)
        matrix[row, right] += position - left
    return matrix


def _double(value: Tensor) -> Tensor:
    down, across = (_half_pixel_matrix(value.shape[axis]) for axis in (-2, -1))
    return torch.einsum("yh,bchw,xw->bcyx", down, value, across)


def port_network(tensors: Mapping[str, Tensor], image_bchw: Tensor) -> Tensor:
    """image_bchw: float64 RGB [-1,1], sides multiples of 4. Returns the same, tanh-bounded."""

    def conv(value: Tensor, name: str, stride: int = 1) -> Tensor:
        weight, bias = (tensors[f"{name}.{part}"].double() for part in ("weight", "bias"))
        return F.conv2d(value, weight, bias, stride, padding=weight.shape[-1] // 2)

    def layer(value: Tensor, index: int, stride: int = 1) -> Tensor:
        value = conv(value, f"convs.{index}", stride)
        return torch.where(value > 0, value, value * 0.2)

    full = layer(image_bchw, 0)
    half = layer(layer(full, 1, 2), 2)
    value = layer(layer(half, 3, 2), 4)
    for index in range(4):
        inner = conv(value, f"blocks.{index}.conv1")
        value = value + conv(torch.where(inner > 0, inner, inner * 0.2), f"blocks.{index}.conv2")
    value = _double(layer(value, 5)) + half
    value = _double(layer(layer(value, 6), 7)) + full
    return torch.tanh(conv(layer(value, 8), "convs.9"))
