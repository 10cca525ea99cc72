"""A picture at many sizes, without a second copy of it.

Coordinates are pixel edges: pixel i covers [i, i+1], whatever the size. Every reduction is the
exact mean over the area that a target pixel covers; every enlargement is bilinear, which is the
same mean over an area one source pixel wide.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# A halved copy is kept from this size down. All of them together take 4/3 of 12 bytes a pixel.
_KEPT_PX = 3_200_000
_STRIP_PX = 500_000
_SMALLEST_COPY_PX = 96
_CROP_BYTES = 8_000_000


@dataclass(frozen=True)
class Taps:
    """What to read along one axis: source positions and their weights, (taps, length) each."""

    index: Tensor
    weight: Tensor

    @property
    def start(self) -> int:
        return int(self.index.min())

    @property
    def stop(self) -> int:
        return int(self.index.max()) + 1


def _taps(first: int, stop: int, ratio: float, length: int) -> Taps:
    """Taps of the target pixels first..stop-1, each ``ratio`` source pixels wide."""
    half = max(ratio, 1.0) / 2
    centre = (torch.arange(first, stop, dtype=torch.float64) + 0.5) * ratio
    position = (centre - half).floor() + torch.arange(math.ceil(2 * half) + 1)[:, None]
    weight = _coverage(centre, half, position)
    index = position.clamp(0, length - 1).long()
    return Taps(index, weight.float())


def _coverage(centre: Tensor, half: float | Tensor, position: Tensor) -> Tensor:
    """Share of [centre-half, centre+half] that lies in the pixel [position, position+1]."""
    low = torch.maximum(centre - half, position)
    high = torch.minimum(centre + half, position + 1)
    return (high - low).clamp_(min=0) / (2 * half)


def _finite(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device, torch.float32).nan_to_num(nan=0.0).clamp_(0, 1)


class Pyramid:
    """Reads a picture at any smaller size, region by region.

    image_hwc: (H,W,3) float RGB in [0,1], any float dtype, any device; NaN reads as black, other
    values are clamped. Copies and results are float32 on ``device``. ``check`` is called between
    steps and may raise to stop the work.
    """

    def __init__(self, image_hwc: Tensor, device: torch.device, check: Callable[[], None]) -> None:
        self._image = image_hwc
        self._device = device
        self._check = check
        self.height, self.width = image_hwc.shape[:2]
        self._copies: dict[int, Tensor] = {}
        factor = 2
        while self.height * self.width > _KEPT_PX * factor * factor:
            factor *= 2
        if max(self.height, self.width) >= _SMALLEST_COPY_PX * factor:
            self._copies[factor] = self._reduced(factor)
        while max(self.height, self.width) >= _SMALLEST_COPY_PX * factor * 2:
            larger = self._copies[factor].permute(2, 0, 1)[None]
            factor *= 2
            halved = F.avg_pool2d(larger, 2, 2, ceil_mode=True)
            self._copies[factor] = halved[0].permute(1, 2, 0).contiguous()

    def _reduced(self, factor: int) -> Tensor:
        """The picture reduced by a whole factor, made from strips of rows."""
        rows = math.ceil(self.height / factor)
        copy = torch.empty(rows, math.ceil(self.width / factor), 3, device=self._device)
        step = max(1, _STRIP_PX // (self.width * factor))
        for first in range(0, rows, step):
            self._check()
            strip = self._image[first * factor : (first + step) * factor]
            strip = _finite(strip, self._device).permute(2, 0, 1)[None]
            pooled = F.avg_pool2d(strip, factor, factor, ceil_mode=True)
            copy[first : first + step] = pooled[0].permute(1, 2, 0)
        return copy

    def _factor_for(self, ratio: float) -> int:
        """The strongest reduction at hand that is not stronger than ``ratio``."""
        return max((f for f in self._copies if f <= ratio), default=1)

    def working_ratio(self, ratio: float) -> float:
        """Source pixels along one side of a target pixel that :meth:`tile` will read."""
        return ratio / self._factor_for(ratio)

    def tile(self, size_hw: tuple[int, int], rows: slice, columns: slice) -> Tensor:
        """A part of the picture resized to ``size_hw``: (3,h,w) in [0,1]."""
        ratio_y, ratio_x = self.height / size_hw[0], self.width / size_hw[1]
        factor = self._factor_for(min(ratio_y, ratio_x))
        source = self._copies.get(factor, self._image)
        y = _taps(rows.start, rows.stop, ratio_y / factor, source.shape[0])
        x = _taps(columns.start, columns.stop, ratio_x / factor, source.shape[1])
        region = source[y.start : y.stop, x.start : x.stop]
        if factor == 1:
            region = _finite(region, self._device)
        shrunk = _weighted_sum(region, 0, y)
        return _weighted_sum(shrunk, 1, x).permute(2, 0, 1)

    def crops(self, boxes: Tensor, size: int) -> Tensor:
        """Square boxes, each resized to ``size``; what lies outside the picture is black.

        boxes: (N,4) float64 on the CPU, N at least 1. Returns (N,3,size,size) in [0,1]. Each crop
        is read from the copy that holds it with the fewest pixels but at least ``size``.
        """
        result = torch.empty(len(boxes), 3, size, size, device=self._device)
        side = boxes[:, 2] - boxes[:, 0]
        factors = torch.tensor([self._factor_for(ratio / size) for ratio in side.tolist()])
        for factor in sorted(set(factors.tolist())):
            members = (factors == factor).nonzero()[:, 0]
            members = members[torch.argsort(side[members], stable=True)]
            reach = int(float(side[members].max()) / factor) + 3
            for part in members.split(max(1, _CROP_BYTES // (reach * reach * 12))):
                self._check()
                result[part.to(self._device)] = self._crop_batch(boxes[part], size, factor)
        return result

    def _crop_batch(self, boxes: Tensor, size: int, factor: int) -> Tensor:
        source = self._copies.get(factor, self._image)
        index_y, weight_y = _crop_taps(boxes[:, 1::2] / factor, size, source.shape[0])
        index_x, weight_x = _crop_taps(boxes[:, 0::2] / factor, size, source.shape[1])
        index_y, index_x = index_y.to(source.device), index_x.to(source.device)
        patch = source[index_y[:, :, None], index_x[:, None, :]]
        if factor == 1:
            patch = _finite(patch, self._device)
        count, tall, wide, _ = patch.shape
        shrunk = torch.bmm(weight_y.to(self._device), patch.reshape(count, tall, wide * 3))
        shrunk = shrunk.view(count, size, wide, 3).permute(0, 3, 1, 2)
        shrunk = shrunk.reshape(count, 3 * size, wide)
        crop = torch.bmm(shrunk, weight_x.to(self._device).transpose(1, 2))
        return crop.view(count, 3, size, size)


def _weighted_sum(source: Tensor, dim: int, taps: Taps) -> Tensor:
    shape = [1, 1, 1]
    shape[dim] = -1
    index = (taps.index - taps.start).to(source.device)
    weight = taps.weight.to(source.device)
    total = source.index_select(dim, index[0]).mul_(weight[0].view(shape))
    for tap in range(1, len(index)):
        total.addcmul_(source.index_select(dim, index[tap]), weight[tap].view(shape))
    return total


def _crop_taps(edges: Tensor, size: int, length: int) -> tuple[Tensor, Tensor]:
    """Positions (N,P) that N crops read along one axis, and weights (N,size,P).

    edges: (N,2) in source pixels. Positions outside the source weigh nothing.
    """
    ratio = (edges[:, 1:] - edges[:, :1]) / size
    centre = edges[:, :1] + (torch.arange(size, dtype=torch.float64) + 0.5) * ratio
    half = ratio.clamp(min=1.0) / 2
    first = (centre[:, :1] - half).floor()
    reach = int((centre[:, -1:] + half - first).max().ceil())
    position = first + torch.arange(reach)
    weight = _coverage(centre[:, :, None], half[:, :, None], position[:, None, :])
    inside = (position >= 0) & (position < length)
    weight = torch.where(inside[:, None, :], weight, 0.0)
    return position.clamp(0, length - 1).long(), weight.float()
