"""Less noise and smoother areas with edges kept.

Denoising shrinks the cosine coefficients of overlapping 8×8 patches that the picture's own noise
explains and averages all patches that a pixel lies in (Yu and Sapiro, "DCT image denoising", IPOL
2011, with a shrinkage that has no jump). Smoothing is a bilateral filter (Tomasi and Manduchi, ICCV
1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .row_filters import RowFilter, read_bands

PATCH_PX = 8
PATCH_STEP_PX = 2
PATCH_THRESHOLD = 2.3
PATCH_TILE_PX = 128
MAX_NOISE = 0.25
SMOOTH_RADIUS_PX = 5
SMOOTH_SIGMA_PX = 2.5
SMOOTH_SIGMA_COLOUR = 0.1
SMOOTH_TILE_PX = 256
NOISE_BINS = 4096
CLIPPED = 0.5 / 255
# The median of |x| for a normal x of deviation 1.
NORMAL_MEDIAN = 0.6745


def measure_noise(
    read_rows: Callable[[int, int], Tensor],
    hw: tuple[int, int],
    band_rows: int = 128,
    check: Callable[[float], None] | None = None,
) -> tuple[float, float, float]:
    """Estimate a picture's noise.

    read_rows: (first, end) -> (3,rows,W) float32 in [0,1], asked once for every row.
    check: called before each band with the band's share of the picture.
    Returns: standard deviation along luma and two colour axes (those of `denoise`); all 0 where
        nothing can be told, as for a picture of one row.
    The median of the finest diagonal detail, which structure hardly reaches (Donoho 1994). Areas
    at black or white are left out: noise does not show there, and backgrounds are often both.
    """
    counts = torch.zeros(3, NOISE_BINS, dtype=torch.int64)
    above: Tensor | None = None
    for first, end, band in read_bands(read_rows, hw[0], band_rows):
        if check is not None:
            check((end - first) / hw[0])
        rows = band if above is None else torch.cat([above, band], dim=1)
        above = band[:, -1:]
        open_ = ~((rows >= 1 - CLIPPED).all(dim=0) | (rows <= CLIPPED).all(dim=0))
        use = open_[:-1, :-1] & open_[1:, :-1] & open_[:-1, 1:] & open_[1:, 1:]
        axes = _to_axes(rows)
        detail = axes[:, :-1, :-1] - axes[:, 1:, :-1] - axes[:, :-1, 1:] + axes[:, 1:, 1:]
        place = (detail[:, use].abs() * (0.5 / MAX_NOISE * NOISE_BINS)).long()
        for axis, places in enumerate(place.clamp_(max=NOISE_BINS - 1).cpu()):
            counts[axis] += places.bincount(minlength=NOISE_BINS)
    luma, first_colour, second_colour = (_median(axis) / NORMAL_MEDIAN for axis in counts)
    return luma, first_colour, second_colour


def denoise(amount: float, noise: tuple[float, float, float]) -> RowFilter:
    """Take noise away and keep edges and texture that stand out from it.

    amount: 0 leaves the picture as it is, 1 takes away what the filter takes for noise; between
        them the result lies on the straight line between the two.
    noise: as measure_noise gives it.
    Returns: a filter for (3,·,·) RGB in [0,1].
    """
    basis = _cosines()
    levels = torch.tensor(noise, dtype=torch.float32)[:, None, None]

    def apply(tile: Tensor) -> Tensor:
        inner = tile[:, PATCH_PX:-PATCH_PX, PATCH_PX:-PATCH_PX]
        cleaned = _shrink_patches(tile, basis.to(tile.device), levels.to(tile.device))
        return torch.lerp(inner, cleaned, amount).clamp_(0, 1)

    return RowFilter(PATCH_PX, PATCH_TILE_PX, apply, PATCH_STEP_PX)


def smooth(amount: float) -> RowFilter:
    """Even out areas and leave edges where they are: a bilateral filter.

    amount: 0 leaves the picture as it is, 1 is the filter's own result; between them the result
        lies on the straight line between the two.
    Returns: a filter for (C,·,·) in [0,1].
    """
    radius = SMOOTH_RADIUS_PX
    reach = range(-radius, radius + 1)
    shifts = [(dy, dx) for dy in reach for dx in reach if 0 < dy * dy + dx * dx <= radius * radius]

    def apply(tile: Tensor) -> Tensor:
        height, width = tile.shape[1] - 2 * radius, tile.shape[2] - 2 * radius
        inner = tile[:, radius : radius + height, radius : radius + width]
        change, total = torch.zeros_like(inner), torch.ones_like(inner[:1])
        for dy, dx in shifts:
            top, left = radius + dy, radius + dx
            difference = tile[:, top : top + height, left : left + width] - inner
            weight = difference.square().mean(dim=0, keepdim=True)
            weight.mul_(-0.5 / SMOOTH_SIGMA_COLOUR**2)
            weight.sub_(0.5 * (dy * dy + dx * dx) / SMOOTH_SIGMA_PX**2).exp_()
            change.addcmul_(difference, weight)
            total.add_(weight)
        return change.div_(total).mul_(amount).add_(inner).clamp_(0, 1)

    return RowFilter(radius, SMOOTH_TILE_PX, apply)


def _to_axes(rgb: Tensor) -> Tensor:
    """RGB (3,…) to orthonormal luma and two colour axes; grey has exactly no colour."""
    red, green, blue = rgb
    luma = (red + green + blue) * (1 / math.sqrt(3))
    first = (red - blue) * (1 / math.sqrt(2))
    second = (red + blue - 2 * green) * (1 / math.sqrt(6))
    return torch.stack([luma, first, second])


def _from_axes(axes: Tensor) -> Tensor:
    luma = axes[0] * (1 / math.sqrt(3))
    first, second = axes[1] * (1 / math.sqrt(2)), axes[2] * (1 / math.sqrt(6))
    return torch.stack([luma + first + second, luma - 2 * second, luma - first + second])


def _median(counts: Tensor) -> float:
    """The median in [0, MAX_NOISE] of what a histogram counted."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    up_to = counts.cumsum(0)
    place = int(torch.searchsorted(up_to, torch.tensor((total + 1) // 2)))
    before = int(up_to[place] - counts[place])
    # Differences of an 8-bit picture are mostly exactly 0: those have no width to share out.
    inside = (total / 2 - before) / int(counts[place]) if place else 0.0
    return (place + inside) * MAX_NOISE / NOISE_BINS


def _cosines() -> Tensor:
    """(64,64): the orthonormal cosine basis of a patch's pixels, the constant first."""
    place = torch.arange(PATCH_PX, dtype=torch.float64)
    waves = torch.cos(math.pi / PATCH_PX * (place[None] + 0.5) * place[:, None])
    waves[0] *= math.sqrt(0.5)
    waves *= math.sqrt(2 / PATCH_PX)
    both = torch.einsum("ay,bx->abyx", waves, waves)
    return both.reshape(PATCH_PX * PATCH_PX, PATCH_PX * PATCH_PX).float()


def _shrink_patches(tile: Tensor, basis: Tensor, noise: Tensor) -> Tensor:
    """(3,h,w) -> (3,h - 16,w - 16): every patch's coefficients shrunk, all patches averaged."""
    axes = _to_axes(tile)
    patches = axes.unfold(1, PATCH_PX, PATCH_STEP_PX).unfold(2, PATCH_PX, PATCH_STEP_PX)
    count = (patches.shape[1], patches.shape[2])
    waves = basis @ patches.permute(0, 3, 4, 1, 2).reshape(3, PATCH_PX * PATCH_PX, -1)
    # Smooth in the coefficient: a jump would turn rounding into a difference that shows.
    power = waves.square().square_()
    floor = (PATCH_THRESHOLD * noise).square().clamp(min=1e-12).square()
    gain = power.div_(power + floor)
    gain[:, 0] = 1
    # Patches that few waves explain are the ones to trust.
    trust = gain.square().sum(dim=1, keepdim=True).reciprocal_()
    cleaned = (basis.T @ waves.mul_(gain).mul_(trust)).reshape(3, -1, *count)
    trust = trust.reshape(3, *count)
    summed, trusted = torch.zeros_like(axes), torch.zeros_like(axes)
    rows, columns = ((n - 1) * PATCH_STEP_PX + 1 for n in count)
    for pixel in range(PATCH_PX * PATCH_PX):
        top, left = divmod(pixel, PATCH_PX)
        where = (
            slice(None),
            slice(top, top + rows, PATCH_STEP_PX),
            slice(left, left + columns, PATCH_STEP_PX),
        )
        summed[where] += cleaned[:, pixel]
        trusted[where] += trust
    inner = slice(PATCH_PX, -PATCH_PX)
    return _from_axes((summed[:, inner, inner]).div_(trusted[:, inner, inner]))
