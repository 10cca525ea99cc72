"""Convolutions with their activation in one pass over memory, where the machine can do that."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

SLOPE = 0.2
"""Of the leaky activation, in DCT-Net as in GPEN."""

_FUSED_TYPES = (torch.float32, torch.bfloat16)


def _onednn(name: str, overload: str) -> Callable[..., Tensor] | None:
    """One of oneDNN's fused convolutions. They are internal to torch, so they may be missing: then
    the same arithmetic runs in two passes over memory."""
    if not torch.backends.mkldnn.is_available():
        return None
    packet = getattr(torch.ops.mkldnn, name, None)
    return cast("Callable[..., Tensor] | None", getattr(packet, overload, None))


_FUSED = _onednn("_convolution_pointwise", "default")
_FUSED_ADD = _onednn("_convolution_pointwise_", "binary")


def _is_fused(x: Tensor, fused: Callable[..., Tensor] | None) -> bool:
    plain = x.device.type == "cpu" and x.dtype in _FUSED_TYPES
    return fused is not None and plain and not torch.is_grad_enabled()


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    padding: tuple[int, int] = (1, 1),
    stride: int = 1,
    groups: int = 1,
    act: bool = True,
) -> Tensor:
    """Convolution, then leaky_relu if ``act``. Fastest with everything in channels-last order."""
    if _FUSED is not None and _is_fused(x, _FUSED):
        name, slope = ("leaky_relu", [SLOPE]) if act else ("none", [])
        return _FUSED(x, weight, bias, padding, (stride, stride), (1, 1), groups, name, slope, "")
    y = F.conv2d(x, weight, bias, stride, padding, groups=groups)
    return F.leaky_relu(y, SLOPE, inplace=not torch.is_grad_enabled()) if act else y


def convolve_onto(onto: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``onto`` plus the 3x3 convolution of ``x``; ``onto`` itself may be changed."""
    if _FUSED_ADD is not None and _is_fused(x, _FUSED_ADD):
        sides = (1, 1)
        return _FUSED_ADD(onto, x, weight, bias, sides, sides, sides, 1, "add", 1.0, None, [], None)
    return F.conv2d(x, weight, bias, padding=1).add_(onto)
