"""Arithmetic on boxes: (N,4) float64 tensors of x0,y0,x1,y1, the edges of the box in pixels."""

from typing import Literal

import torch
from torch import Tensor

_BLOCK = 512


def overlaps(first: Tensor, second: Tensor, by: Literal["union", "smaller"]) -> Tensor:
    """Shared area of each pair of boxes over their union, or over the smaller box.

    first: (N,4), second: (M,4). Returns (N,M) in [0,1].
    """
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clamp_(min=0).prod(dim=2)
    area_1 = (first[:, 2:] - first[:, :2]).prod(dim=1)[:, None]
    area_2 = (second[:, 2:] - second[:, :2]).prod(dim=1)[None]
    base = torch.minimum(area_1, area_2) if by == "smaller" else area_1 + area_2 - shared
    return shared / base.clamp(min=1e-12)


def non_maximum_suppression(
    boxes: Tensor, scores: Tensor, threshold: float, by: Literal["union", "smaller"] = "union"
) -> Tensor:
    """Indices of the boxes that no better box covers, best first; equal scores keep their order.

    boxes: (N,4); scores: (N,). A box falls to a kept one whose overlap with it is more than
    ``threshold``. Works in blocks, so memory grows with N and not with its square.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    kept: list[Tensor] = []
    for block in order.split(_BLOCK):
        for earlier in kept:
            covered = overlaps(boxes[earlier], boxes[block], by) > threshold
            block = block[~covered.any(dim=0)]
        kept.append(block[_survivors(boxes[block], threshold, by)])
    return torch.cat(kept) if kept else order


def _survivors(boxes: Tensor, threshold: float, by: Literal["union", "smaller"]) -> Tensor:
    """Which of the boxes, sorted best first, stay. (N,) bool."""
    beats = (overlaps(boxes, boxes, by) > threshold).triu_(diagonal=1)
    alive = torch.ones(len(boxes), dtype=torch.bool)
    # A box's fate is settled once all that beat it are: at most N rounds, in practice a few.
    while True:
        settled = ~(beats & alive[:, None]).any(dim=0)
        if torch.equal(settled, alive):
            return alive
        alive = settled


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
