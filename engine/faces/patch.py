"""A square that was drawn upright, and how a picture shows it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .align import paste_region, sample, smoothed

Area = tuple[int, int, int, int]
"""A part of a picture as (y0, y1, x0, x1), in px."""

_BAND_PX = 1 << 20


@dataclass(frozen=True, eq=False)
class Patch:
    """A drawn square at the size that it has in the picture, or as drawn where that is less.

    to_patch: (2,3), picture px -> px of ``drawn``. drawn: (1,C,S,S); the last channel is how much
    of it shows, [0,1].
    """

    to_patch: Tensor
    drawn: Tensor

    @classmethod
    def fitted(cls, to_square: Tensor, square: Tensor) -> "Patch":
        """Shrink a (1,C,S,S) square once, where the picture shows it smaller.

        Here and not where it is pasted: there a window would smooth only the part that it sees, and
        its neighbour another part.
        """
        drawn, to_drawn = smoothed(square, to_square)
        return cls(to_drawn, drawn)

    def area(self, image_hw: tuple[int, int]) -> Area:
        """The part of a picture that the square covers; empty where it lies outside."""
        return paste_region(self.to_patch, self.drawn.shape[-1], image_hw)

    def seen(self, area: Area) -> Tensor:
        """What shows in a part of the picture, (1,C,h,w); 0 beyond the square."""
        top, bottom, left, right = area
        moved = self.to_patch.clone()
        moved[:, 2] += moved[:, 0] * left + moved[:, 1] * top
        return sample(self.drawn, moved, (bottom - top, right - left))


def slices(area: Area) -> tuple[slice, slice]:
    """An area as rows and columns."""
    return slice(area[0], area[1]), slice(area[2], area[3])


def is_empty(area: Area) -> bool:
    """Whether an area has no pixel."""
    return area[1] <= area[0] or area[3] <= area[2]


def bands(area: Area) -> list[Area]:
    """An area in bands of about a megapixel, so that memory does not grow with it."""
    top, bottom, left, right = area
    if is_empty(area):
        return []
    rows = max(1, _BAND_PX // (right - left))
    return [(y, min(bottom, y + rows), left, right) for y in range(top, bottom, rows)]


def paste_masks(patches: list[Patch], mask_hw: Tensor) -> None:
    """Write how much of patches shows into (H,W), the larger value where two overlap."""
    for patch in patches:
        alpha = Patch(patch.to_patch, patch.drawn[:, -1:])
        for band in bands(patch.area((mask_hw.shape[0], mask_hw.shape[1]))):
            part = mask_hw[slices(band)]
            torch.maximum(part, alpha.seen(band)[0, 0].to(part), out=part)
