"""Arithmetic on boxes: (N,4) float64 tensors of x0,y0,x1,y1, the edges of the box in pixels."""

from typing import Literal

import torch
from torch import Tensor

By = Literal["union", "smaller"]

_PAIRS_AT_ONCE = 250_000


def overlaps(first: Tensor, second: Tensor, by: By = "union") -> Tensor:
    """Shared area of each pair of boxes over their union, or over the smaller box.

    first, second: (N,4), a pair a row. Returns (N,) in [0,1].
    """
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, 2:], second[:, 2:])
    shared = (high - low).clamp_(min=0).prod(dim=1)
    area_1 = (first[:, 2:] - first[:, :2]).prod(dim=1)
    area_2 = (second[:, 2:] - second[:, :2]).prod(dim=1)
    base = torch.minimum(area_1, area_2) if by == "smaller" else area_1 + area_2 - shared
    return shared / base.clamp(min=1e-12)


def non_maximum_suppression(
    boxes: Tensor, scores: Tensor, threshold: float, by: By = "union"
) -> Tensor:
    """Indices of the boxes that no better box covers, best first; equal scores keep their order.

    boxes: (N,4); scores: (N,). A box falls to a kept one whose overlap with it is more than
    ``threshold``. Time and memory go with the number of boxes that lie at the same height, not
    with the square of N.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    better, worse = _rivals(boxes[order], threshold, by)
    alive = torch.ones(len(order), dtype=torch.bool)
    # A box's fate is settled once those of all better rivals are: each round settles some.
    while True:
        settled = torch.ones_like(alive)
        settled[worse[alive[better]]] = False
        if torch.equal(settled, alive):
            return order[alive]
        alive = settled


def _rivals(boxes: Tensor, threshold: float, by: By) -> tuple[Tensor, Tensor]:
    """Each pair of rows, the lower one first, that overlap by more than the threshold."""
    by_top = torch.argsort(boxes[:, 1], stable=True)
    top = boxes[by_top, 1]
    height = boxes[by_top, 3] - top
    # Two boxes share at most the rows below the lower top, so a pair that starts further apart
    # than this cannot pass.
    reach = height if by == "smaller" else height * (1 - threshold)
    row = torch.arange(len(boxes))
    count = (torch.searchsorted(top, top + reach, right=True) - row - 1).clamp_(min=0)
    passed = count.cumsum(0)
    pairs = [torch.empty(2, 0, dtype=torch.long)]
    first = 0
    while first < len(boxes):
        limit = int(passed[first]) - int(count[first]) + _PAIRS_AT_ONCE
        stop = max(first + 1, int(torch.searchsorted(passed, limit, right=True)))
        many = count[first:stop]
        upper = row[first:stop].repeat_interleave(many)
        step = torch.arange(len(upper)) - (many.cumsum(0) - many).repeat_interleave(many)
        pair = torch.stack([by_top[upper], by_top[upper + 1 + step]])
        pairs.append(pair[:, overlaps(boxes[pair[0]], boxes[pair[1]], by) > threshold])
        first = stop
    found = torch.cat(pairs, dim=1)
    return found.amin(dim=0), found.amax(dim=0)


def refine(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Move each edge by its offset, a fraction of the box's width or height. Both (N,4)."""
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + offsets * size


def square(boxes: Tensor) -> Tensor:
    """The square around each box's centre with the longer of its sides."""
    side = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True)
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2
    return torch.cat([centre - side / 2, centre + side / 2], dim=1)


def plausible(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which boxes are finite, right way round, touch the picture and are not far larger than it."""
    size = boxes[:, 2:] - boxes[:, :2]
    limit = torch.tensor([width, height], dtype=boxes.dtype)
    return (
        boxes.isfinite().all(dim=1)
        & (size >= 1).all(dim=1)
        & (size <= 2 * max(height, width)).all(dim=1)
        & (boxes[:, 2:] > 0).all(dim=1)
        & (boxes[:, :2] < limit).all(dim=1)
    )
