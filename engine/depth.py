"""Sharpen a picture where it is out of focus.

Blur the picture once more and see how much of its gradients is left: an edge that is soft already
hardly changes, a hard one loses most of its gradient. That gives the blur's width at every place
that has structure (the ratio of Zhuo and Sim, "Defocus map estimation from a single image", 2011,
taken over a neighbourhood instead of along edges). The detail that a blur of that width took is
then put back by repeated residuals (van Cittert 1931), within what lies around each pixel.

Noise needs no setting: where the picture is soft, its finest diagonal detail is noise and nothing
else, so the noise is measured on the spot. Structure that does not stand out from it is left alone,
and so is a place whose finest detail is more than noise, which is sharp.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from .blur import blur_inside, gaussian_taps
from .row_filters import RowFilter

TILE_PX = 384
REBLUR_PX = 1.5
WINDOW_PX = 5.0
BLURS_PX = (1.0, 1.5, 2.0, 3.0)
PASSES = 4
SHARP_PX, SOFT_PX = 1.1, 1.5
OVERSHOOT = 0.1
NEAR_PX = 2
FLOOR = 0.5 / 255
NOISE_LOW, NOISE_HIGH = 4.0, 12.0
CORING = 4.0
CALM = 0.5
HALO_PX = 32
_LUMA = (0.299, 0.587, 0.114)


def compensate(amount: float) -> RowFilter:
    """Sharpen soft places by their own blur; sharp places and flat ones stay.

    amount: 0 leaves the picture as it is, 1 puts all of the correction in.
    Returns: a filter for (3,·,·) RGB in [0,1].
    """

    def apply(tile: Tensor) -> Tensor:
        change = _correction(tile)
        return change.mul_(amount).add_(_cut(tile, HALO_PX)).clamp_(0, 1)

    return RowFilter(HALO_PX, TILE_PX, apply)


def blur_map(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How soft a picture is, place by place.

    rgb: (3,h + 2m,w + 2m) in [0,1], m = MAP_HALO_PX.
    Returns: three (1,h,w): the blur's width in pixels, how surely there is structure to tell it
        by (0 to 1), and the variance of the noise in a colour channel.
    """
    luma = (rgb * rgb.new_tensor(_LUMA)[:, None, None]).sum(dim=0, keepdim=True)
    again = _blur(luma, REBLUR_PX)
    margin = _radius(REBLUR_PX)
    fine = _cut(luma, margin)
    noise = _blur(_diagonal(fine).square(), WINDOW_PX)
    energy = (_blur(_gradient(fine), WINDOW_PX) - noise).clamp_(min=0)
    left_noise = noise * _gradient_noise(REBLUR_PX)
    left = _blur(_gradient(again), WINDOW_PX)
    above = left / (left_noise + FLOOR**2)
    sure = ((above - NOISE_LOW) / (NOISE_HIGH - NOISE_LOW)).clamp_(0, 1)
    ratio = ((left - left_noise).clamp_(min=0) / (energy + 1e-12)).clamp_(max=0.99).square_()
    width = (ratio / (1 - ratio)).sqrt_().mul_(REBLUR_PX)
    # Luma averages the channels' noise away, and what is put back is put back into channels.
    colour = _diagonal(_cut(rgb, margin)).square_().mean(dim=0, keepdim=True)
    return width, sure, torch.maximum(noise, _blur(colour, WINDOW_PX))


def _correction(tile: Tensor) -> Tensor:
    width, sure, noise = blur_map(_cut(tile, HALO_PX - MAP_HALO_PX))
    gate = ((width - SHARP_PX) / (SOFT_PX - SHARP_PX)).clamp_(0, 1).mul_(sure)
    inner = _cut(tile, HALO_PX)
    if not bool(gate.any()):
        return torch.zeros_like(inner)
    change = torch.zeros_like(inner)
    for index, sigma in enumerate(BLURS_PX):
        share = _share(width, index).mul_(gate)
        if bool((share > 0).any()):
            lost = _lost_detail(tile, sigma)
            # Detail as faint as what the filter makes of noise is noise.
            power = lost.square()
            floor = noise * (CORING**2 * _detail_noise(sigma)) + 1e-12
            change.addcmul_(lost.mul_(power).div_(power.add_(floor)), share)
    near = _cut(tile, HALO_PX - NEAR_PX)[None]
    high = F.max_pool2d(near, 2 * NEAR_PX + 1, stride=1)[0]
    low = -F.max_pool2d(-near, 2 * NEAR_PX + 1, stride=1)[0]
    room = (high - low) * OVERSHOOT
    return torch.minimum(torch.maximum(change, low - room - inner), high + room - inner)


def _share(width: Tensor, index: int) -> Tensor:
    """How much of the correction for BLURS_PX[index] a place gets; the shares add up to 1."""
    here = BLURS_PX[index]
    share = torch.ones_like(width)
    if index > 0:
        below = BLURS_PX[index - 1]
        share = torch.minimum(share, (width - below) / (here - below))
    if index + 1 < len(BLURS_PX):
        above = BLURS_PX[index + 1]
        share = torch.minimum(share, (above - width) / (above - here))
    return share.clamp_(0, 1)


def _lost_detail(tile: Tensor, sigma: float) -> Tensor:
    """What a blur of sigma took, up to the detail that PASSES residuals bring back."""
    reach, soft = _radius(sigma, PASSES), _radius(CALM * sigma)
    lost = None
    x = _cut(tile, HALO_PX - PASSES * reach - soft)
    for _ in range(PASSES):
        # The residual of a residual: each is what the last one still lacks.
        x = _cut(x, reach) - _blur(x, sigma, reach)
        lost = x if lost is None else _cut(lost, reach) + x
    assert lost is not None
    return _blur(lost, CALM * sigma)


@cache
def _detail_noise(sigma: float) -> float:
    """The variance that _lost_detail gives for white noise of variance 1."""
    side = 4 * HALO_PX + 1
    impulse = torch.zeros(1, side, side)
    impulse[0, side // 2, side // 2] = 1
    return float(_lost_detail(impulse, sigma).square().sum())


def _radius(sigma: float, passes: int = 0) -> int:
    """Taps to each side; so few that as many passes fit into HALO_PX."""
    radius = math.ceil(3 * sigma)
    return min(radius, (HALO_PX - math.ceil(3 * CALM * sigma)) // passes) if passes else radius


def _blur(x: Tensor, sigma: float, radius: int | None = None) -> Tensor:
    """Gaussian blur without padding: (C,h,w) -> (C,h - 2r,w - 2r)."""
    return blur_inside(x, gaussian_taps(sigma, _radius(sigma) if radius is None else radius))


def _gradient(x: Tensor) -> Tensor:
    """Squared gradient, one pixel less on each side; white noise gives its own variance."""
    across = (x[:, 1:-1, 2:] - x[:, 1:-1, :-2]).square_()
    down = (x[:, 2:, 1:-1] - x[:, :-2, 1:-1]).square_()
    return across.add_(down).mul_(0.25)


def _diagonal(x: Tensor) -> Tensor:
    """Finest diagonal detail, one pixel less on each side; white noise keeps its variance."""
    rows = x[:, 1:-1] * 2 - x[:, :-2] - x[:, 2:]
    return (rows[..., 1:-1] * 2 - rows[..., :-2] - rows[..., 2:]).mul_(1 / 6)


def _gradient_noise(sigma: float) -> float:
    """What _gradient gives for white noise of variance 1 after _blur."""
    taps = torch.tensor(gaussian_taps(sigma, _radius(sigma)))
    spread = F.pad(taps, (2, 0)) - F.pad(taps, (0, 2))
    return 0.5 * float(spread.square().sum() * taps.square().sum())


def _cut(x: Tensor, margin: int) -> Tensor:
    return x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin]


MAP_HALO_PX = _radius(REBLUR_PX) + _radius(WINDOW_PX) + 1
