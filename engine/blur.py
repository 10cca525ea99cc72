"""A Gaussian blur that is fast without a compiler: shifted copies are added up.

A convolution of one channel takes ten times as long. A pixel's result depends on its neighbourhood
alone, to the last bit, so it does not matter where a picture is cut.
"""

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor


def gaussian_taps(sigma_px: float, radius_px: int) -> list[float]:
    """Weights of the pixels from ``-radius_px`` to ``radius_px``; they sum to 1."""
    place = torch.arange(-radius_px, radius_px + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (place / sigma_px) ** 2)
    return (taps / taps.sum()).tolist()


def gaussian_blur(x: Tensor, sigma_px: float, radius_px: int) -> Tensor:
    """Blur each channel; beyond the border the edge repeats.

    x: (B,C,H,W) float. radius_px: how far a pixel looks. Returns: the same shape and dtype.
    """
    padded = F.pad(x, (radius_px,) * 4, mode="replicate")
    return blur_inside(padded, gaussian_taps(sigma_px, radius_px))


def blur_inside(x: Tensor, taps: list[float]) -> Tensor:
    """Blur with an odd number of even taps, without padding.

    x: (...,H,W) float. Returns: (...,H - 2r,W - 2r), r the taps to each side.
    """
    return _weighted(_weighted(x, taps, x.ndim - 2), taps, x.ndim - 1)


def _weighted(x: Tensor, taps: list[float], dim: int) -> Tensor:
    length, radius = x.shape[dim] - len(taps) + 1, len(taps) // 2
    total = x.narrow(dim, radius, length) * taps[radius]
    for tap in range(radius):
        both = x.narrow(dim, tap, length) + x.narrow(dim, len(taps) - 1 - tap, length)
        total.add_(both, alpha=taps[tap])
    return total
