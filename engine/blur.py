"""A Gaussian blur that is fast without a compiler: shifted copies are added up."""

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor


def gaussian_blur(x: Tensor, sigma_px: float, radius_px: int) -> Tensor:
    """Blur each channel; beyond the border the edge repeats.

    x: (B,C,H,W) float. radius_px: how far a pixel looks. Returns: the same shape and dtype. A
    pixel's result depends on its neighbourhood alone, to the last bit.
    """
    offsets = torch.arange(-radius_px, radius_px + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    weights = (taps / taps.sum()).tolist()
    sides = (0, 0, radius_px, radius_px)
    x = _added(F.pad(x, sides, mode="replicate"), weights, 2)
    return _added(F.pad(x, sides[2:] + sides[:2], mode="replicate"), weights, 3)


def _added(padded: Tensor, weights: list[float], dim: int) -> Tensor:
    length = padded.shape[dim] - len(weights) + 1
    total = padded.narrow(dim, 0, length) * weights[0]
    for shift, weight in enumerate(weights[1:], start=1):
        total = total.add_(padded.narrow(dim, shift, length), alpha=weight)
    return total
