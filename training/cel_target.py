"""The classical picture that the built-in style "cel" learns to draw.

A photograph goes in, a cel drawing comes out, by filters alone:

1. edge tangents from a smoothed colour structure tensor;
2. a bilateral filter that runs along and across those tangents flattens skin and cloth but keeps
   eyes, lips and outlines;
3. soft tone steps in the lightness of CIELAB, richer chroma, cool shadows;
4. ink from differences of Gaussians taken across the tangents and gathered along them, so that
   strokes are continuous and taper off.

Every step is local and free of statistics over the whole picture: the same patch is drawn in the
same way wherever it stands. What lies further away than the network can see (45 px) hardly counts.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from skimage.color import lab2rgb, rgb2lab
from torch import Tensor


@dataclass(frozen=True)
class CelLook:
    """What the drawing looks like. Lengths are in pixels, lightness and chroma in CIELAB units."""

    tensor_sigma_px: float = 2.4
    smooth_passes: int = 4
    smooth_sigma_px: float = 3.2
    smooth_range_lab: float = 4.6
    tone_step: float = 15.0
    tone_softness: float = 0.045
    tone_amount: float = 0.9
    detail_gain: float = 0.45
    ink_sigma_px: float = 1.0
    ink_ratio: float = 1.6
    ink_reach_px: float = 9.0
    ink_threshold: float = 0.85
    ink_slope: float = 1.6
    ink_amount: float = 0.92
    ink_dark_gain: float = 0.6
    chroma_gain: float = 1.24
    shade_chroma: float = 0.3
    lift: float = 0.24


def _blur(image_bchw: Tensor, sigma_px: float) -> Tensor:
    radius = max(1, int(3 * sigma_px + 0.5))
    offsets = torch.arange(-radius, radius + 1, dtype=image_bchw.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    kernel = kernel / kernel.sum()
    count = image_bchw.shape[1]
    rows = kernel.view(1, 1, -1, 1).expand(count, 1, -1, 1)
    columns = kernel.view(1, 1, 1, -1).expand(count, 1, 1, -1)
    padded = F.pad(image_bchw, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, rows, groups=count), columns, groups=count)


def _gradients(image_bchw: Tensor) -> tuple[Tensor, Tensor]:
    count = image_bchw.shape[1]
    # Rotationally even 3x3 derivative: Sobel bends tangents towards the axes.
    side, middle = 0.183, 0.634
    kernel = torch.tensor([[-side, 0.0, side], [-middle, 0.0, middle], [-side, 0.0, side]]) / 2
    padded = F.pad(image_bchw, (1, 1, 1, 1), mode="replicate")
    across = F.conv2d(padded, kernel.expand(count, 1, 3, 3), groups=count)
    down = F.conv2d(padded, kernel.t().expand(count, 1, 3, 3), groups=count)
    return across, down


def edge_tangents(lab_bchw: Tensor, sigma_px: float) -> tuple[Tensor, Tensor]:
    """Direction along the nearest edge, and how one-directional the neighbourhood is.

    lab_bchw: (1,3,H,W) float, CIELAB.
    Returns: unit tangents (1,2,H,W) as (x, y), and anisotropy (1,1,H,W) in [0,1].
    """
    across, down = _gradients(_blur(lab_bchw, 0.8))
    products = torch.cat(
        [(across * across).sum(1, True), (down * down).sum(1, True), (across * down).sum(1, True)],
        1,
    )
    # The root keeps one strong edge from dictating the direction of all its neighbours.
    products = products / (products[:, :1] + products[:, 1:2] + 1e-6).pow(0.35)
    xx, yy, xy = _blur(products, sigma_px).split(1, 1)
    root = torch.sqrt(((xx - yy) / 2) ** 2 + xy * xy + 1e-12)
    angle = 0.5 * torch.atan2(2 * xy, xx - yy) + torch.pi / 2
    anisotropy = 2 * root / (xx + yy + 1e-3)
    return torch.cat([torch.cos(angle), torch.sin(angle)], 1), anisotropy.clamp(0, 1)


class _Sampler:
    """Bilinear reads of a picture at its pixels moved by a field of pixel offsets."""

    def __init__(self, height: int, width: int) -> None:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        self.base = torch.stack([x, y], -1).float().unsqueeze(0)
        self.scale = torch.tensor([2.0 / max(width - 1, 1), 2.0 / max(height - 1, 1)])

    def read(self, image_bchw: Tensor, offset_bchw: Tensor) -> Tensor:
        grid = (self.base + offset_bchw.permute(0, 2, 3, 1)) * self.scale - 1
        return F.grid_sample(image_bchw, grid, padding_mode="border", align_corners=True)


def _bilateral_along(
    sampler: _Sampler,
    image_bchw: Tensor,
    direction: Tensor,
    sigma_px: float,
    range_lab: Tensor | float,
) -> Tensor:
    total = image_bchw.clone()
    weights = torch.ones_like(image_bchw[:, :1])
    radius = int(2 * sigma_px + 0.5)
    for step in range(1, radius + 1):
        near = float(np.exp(-0.5 * (step / sigma_px) ** 2))
        for sign in (-1, 1):
            values = sampler.read(image_bchw, direction * (sign * step))
            distance = ((values - image_bchw) ** 2).sum(1, True)
            weight = near * torch.exp(-distance / (2 * range_lab * range_lab))
            total += weight * values
            weights += weight
    return total / weights


def flatten(lab_bchw: Tensor, look: CelLook) -> Tensor:
    """Smooth along and across the edges, never over them. (1,3,H,W) CIELAB in and out."""
    sampler = _Sampler(lab_bchw.shape[2], lab_bchw.shape[3])
    result = lab_bchw
    for index in range(look.smooth_passes):
        tangents, _ = edge_tangents(result, look.tensor_sigma_px)
        normals = torch.cat([-tangents[:, 1:], tangents[:, :1]], 1)
        range_lab = look.smooth_range_lab * (1.25 if index == 0 else 1.0)
        result = _bilateral_along(sampler, result, normals, look.smooth_sigma_px * 0.7, range_lab)
        result = _bilateral_along(sampler, result, tangents, look.smooth_sigma_px, range_lab)
    return result


def flatten_tones(lab_bchw: Tensor, look: CelLook) -> Tensor:
    """Lightness, (1,1,H,W), smoothed once more where it changes slowly."""
    height, width = lab_bchw.shape[2:]
    # Half the size: the result is smooth, and this is the dearest step.
    result = F.interpolate(lab_bchw, size=((height + 1) // 2, (width + 1) // 2), mode="area")
    sampler = _Sampler(result.shape[2], result.shape[3])
    for _ in range(2):
        tangents, _ = edge_tangents(result, look.tensor_sigma_px)
        normals = torch.cat([-tangents[:, 1:], tangents[:, :1]], 1)
        result = _bilateral_along(sampler, result, normals, 2.2, 9.0)
        result = _bilateral_along(sampler, result, tangents, 2.2, 9.0)
    return F.interpolate(result[:, :1], size=(height, width), mode="bilinear", align_corners=False)


def tone_steps(lightness: Tensor, look: CelLook) -> Tensor:
    """Gather lightness around evenly spaced tones, with soft borders between them."""
    position = lightness / look.tone_step
    floor = torch.floor(position)
    ramp = torch.sigmoid((position - floor - 0.5) / look.tone_softness)
    low = torch.sigmoid(torch.tensor(-0.5 / look.tone_softness))
    ramp = (ramp - low) / (1 - 2 * low)
    stepped = (floor + ramp) * look.tone_step
    return lightness + look.tone_amount * (stepped - lightness)


def ink(lab_bchw: Tensor, look: CelLook) -> Tensor:
    """How much ink covers each pixel: (1,1,H,W) in [0,1]."""
    sampler = _Sampler(lab_bchw.shape[2], lab_bchw.shape[3])
    source = lab_bchw[:, :1]
    tangents, anisotropy = edge_tangents(lab_bchw, look.tensor_sigma_px)
    normals = torch.cat([-tangents[:, 1:], tangents[:, :1]], 1)
    wide = look.ink_sigma_px * look.ink_ratio
    centre = torch.zeros_like(source)
    surround = torch.zeros_like(source)
    centre_sum = surround_sum = 0.0
    radius = int(2.5 * wide + 0.5)
    for step in range(-radius, radius + 1):
        values = sampler.read(source, normals * step)
        inner = float(np.exp(-0.5 * (step / look.ink_sigma_px) ** 2))
        outer = float(np.exp(-0.5 * (step / wide) ** 2))
        centre, surround = centre + inner * values, surround + outer * values
        centre_sum, surround_sum = centre_sum + inner, surround_sum + outer
    # Equal steps of lightness look smaller in the dark: black clothes would lose their folds.
    gain = 1.0 + look.ink_dark_gain * (1 - source / 100).clamp(0, 1) ** 2
    response = gain * (surround / surround_sum - centre / centre_sum)
    gathered = _stroke(sampler, response, tangents, look.ink_reach_px)
    amount = torch.tanh(look.ink_slope * (gathered - look.ink_threshold)).clamp_min(0)
    return amount * (0.35 + 0.65 * anisotropy)


def _stroke(sampler: _Sampler, response: Tensor, tangents: Tensor, reach_px: float) -> Tensor:
    """Average along the stream line through each pixel."""
    total, weights = response.clone(), 1.0
    for sign in (-1.0, 1.0):
        offset = torch.zeros_like(tangents)
        direction = tangents * sign
        for step in range(1, int(reach_px + 0.5) + 1):
            offset = offset + direction
            weight = float(np.exp(-0.5 * (2 * step / reach_px) ** 2))
            total = total + weight * sampler.read(response, offset)
            weights += weight
            ahead = sampler.read(tangents, offset)
            turn = torch.sign((ahead * direction).sum(1, True))
            direction = ahead * torch.where(turn == 0, torch.ones_like(turn), turn)
    return total / weights


def _grade(lab_bchw: Tensor, look: CelLook) -> Tensor:
    lightness, chroma = lab_bchw[:, :1] / 100, lab_bchw[:, 1:]
    # A lift of the middle tones that leaves black and white where they are.
    lightness = lightness + look.lift * lightness * (1 - lightness) * 1.6
    # Strong colours are already strong: gaining them too would leave the gamut.
    strength = chroma.norm(dim=1, keepdim=True)
    gain = 1 + (look.chroma_gain - 1) * torch.exp(-((strength / 70) ** 2))
    # Shaded colours are painted richer than lit ones; a photograph's shade looks grey beside ink.
    gain = gain * (1 + look.shade_chroma * (1 - lightness).clamp(0, 1))
    shadow = (1 - lightness / 0.45).clamp(0, 1)
    tint = torch.tensor([3.0, -7.0]).view(1, 2, 1, 1)
    return torch.cat([100 * lightness, chroma * gain + shadow * tint], 1)


def draw(image_hwc: np.ndarray, look: CelLook | None = None) -> np.ndarray:
    """Draw a photograph as a cel.

    image_hwc: (H,W,3) float RGB in [0,1].
    Returns: (H,W,3) float32 RGB in [0,1], same size.
    Source: the order of the steps follows Winnemöller et al. 2006 and Kyprianidis and Döllner 2008.
    """
    look = look or CelLook()
    lab = torch.from_numpy(np.ascontiguousarray(rgb2lab(image_hwc), dtype=np.float32))
    lab = lab.permute(2, 0, 1).unsqueeze(0)
    with torch.inference_mode():
        flat = flatten(lab, look)
        # Borders of tones follow a softer picture: on the sharp one they break up into islands.
        soft = flatten_tones(flat, look)
        toned = torch.cat([tone_steps(soft, look) + (flat[:, :1] - soft), flat[:, 1:]], 1)
        # Small contrasts that survived the flattening are features, eyes above all.
        toned[:, :1] += look.detail_gain * (flat[:, :1] - _blur(flat[:, :1], 4.0))
        graded = _grade(toned, look)
        strokes = ink(flat * 0.7 + _blur(lab, 0.6) * 0.3, look) * look.ink_amount
        pen = graded * torch.tensor([0.16, 0.45, 0.45]).view(1, 3, 1, 1)
        drawn = graded + strokes * (pen - graded)
        result = drawn[0].permute(1, 2, 0).double().numpy()
    with warnings.catch_warnings():
        # Gained chroma may leave the gamut; it is clipped, and that needs no message per picture.
        warnings.simplefilter("ignore", UserWarning)
        rgb = lab2rgb(result)
    return np.clip(rgb, 0, 1).astype(np.float32)
