"""Faces restored and put back: what lies around GPEN's network.

Source of the pipeline: yangxy/GPEN @2c73670, ``face_enhancement.py``. It differs in that the
picture keeps its size and is touched inside its faces alone, that beyond a picture's border its
edge is repeated instead of black, that a face which is shown smaller is shrunk once and smoothly
(there a 3x3 blur stands in for that), and that nothing is rounded to 8 bit on the way.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from .blur import gaussian_blur
from .faces.align import gpen_template, invert, similarity, warp
from .faces.detect import Face
from .faces.patch import Area, Patch, bands, slices

BORDER_SHARE = 26 / 512
"""How far from its border a restored square shows nothing."""
MASK_SIGMA_SHARE = 4 * math.sqrt(2) / 512
"""Softness of its edge: the published two Gaussian blurs of 4 px, in one."""
DETAIL_SIGMA_SHARE = 3 / 512
"""What counts as skin detail: changes finer than this."""
_BLUR_REACH = 3
_ENERGY_FLOOR = 1e-6
_LUMA = (0.299, 0.587, 0.114)

Network = Callable[[Tensor], Tensor]
"""(B,3,S,S) in [-1,1] -> the same shape, not clamped."""


@dataclass(frozen=True, eq=False)
class Restored:
    """What the networks made of one square of a picture.

    to_square: (2,3), picture px -> square px. square: (1,3,S,S) RGB in [0,1]. shown: (1,1,S,S),
    how much of it shows.
    """

    to_square: Tensor
    square: Tensor
    shown: Tensor

    @property
    def bytes(self) -> int:
        """Memory of its pixels."""
        return 4 * (self.square.numel() + self.shown.numel())


def face_square(face: Face, size_px: int) -> Tensor:
    """Where a face lies upright in GPEN's crop: (2,3), picture px -> px of the crop."""
    return similarity(face.points, gpen_template(size_px))


def tile_squares(
    height: int, width: int, size_px: int, tile_px: int, overlap_px: int
) -> list[Tensor]:
    """Even squares of ``tile_px`` over a picture, each as (2,3) to a crop of ``size_px``.

    overlap_px: the least that neighbours share; smaller than ``tile_px``. A picture that is
    smaller than a tile lies in its middle.
    Raises: ValueError for an overlap that leaves no step.
    """
    if not 0 <= overlap_px < tile_px:
        raise ValueError(f"overlap_px: expected 0 to {tile_px - 1}, got {overlap_px}")
    scale = size_px / tile_px
    squares = []
    for top in _starts(height, tile_px, overlap_px):
        for left in _starts(width, tile_px, overlap_px):
            # Pixel centres lie at integers, corners half a pixel before them.
            shift = [0.5 * scale - 0.5 - scale * left, 0.5 * scale - 0.5 - scale * top]
            squares.append(
                torch.tensor([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]], dtype=torch.float64)
            )
    return squares


def _starts(length: int, tile_px: int, overlap_px: int) -> list[int]:
    if length <= tile_px:
        return [-((tile_px - length) // 2)]
    count = math.ceil((length - overlap_px) / (tile_px - overlap_px))
    return [round(i * (length - tile_px) / (count - 1)) for i in range(count)]


def cut(image_bchw: Tensor, to_square: Tensor, size_px: int) -> Tensor:
    """A square of one picture, (1,3,S,S); beyond the picture its edge repeats."""
    return warp(image_bchw, invert(to_square), (size_px, size_px), border=None)


def run(network: Network, squares_bchw: Tensor) -> Tensor:
    """Put squares in [0,1] through the network. Returns: the same shape, clamped to [0,1]."""
    drawn = network(squares_bchw.mul(2.0).sub_(1.0))
    return drawn.mul(0.5).add_(0.5).clamp_(0.0, 1.0)


@lru_cache(maxsize=4)
def face_mask(size_px: int) -> Tensor:
    """How much of a restored face shows where no parser says more: (1,1,S,S).

    The published rectangle with its soft border, its corners rounded by an ellipse.
    """
    round_off = ((1.22 - _distance(size_px)) / 0.24).clamp(0.0, 1.0)
    rectangle = soften(torch.ones(1, 1, size_px, size_px))
    return rectangle * (round_off * round_off * (3.0 - 2.0 * round_off))


def soften(mask_bchw: Tensor) -> Tensor:
    """Clear a square mask's border and blur it, as published. (B,1,S,S) both."""
    size_px = mask_bchw.shape[-1]
    border = round(BORDER_SHARE * size_px)
    inner = F.pad(mask_bchw[..., border:-border, border:-border], (border, border, border, border))
    return _blur(inner, MASK_SIGMA_SHARE * size_px).clamp_(0.0, 1.0)


def with_detail(square: Tensor, source: Tensor, skin_smooth: float) -> Tensor:
    """Give a restored square the source's fine detail back where the restored one has less.

    square, source: (1,3,S,S) in [0,1]. skin_smooth: 1 leaves the network's skin, 0 gives all of it
    back. Where the restored square has as much fine contrast as the source, as on every edge that
    the network drew, nothing is added, so that no edge is drawn twice.
    """
    if skin_smooth >= 1.0:
        return square
    sigma = DETAIL_SIGMA_SHARE * square.shape[-1]
    fine = source - _blur(source, sigma)
    own = square - _blur(square, sigma)
    missing = 1.0 - ((_energy(own, sigma) / _energy(fine, sigma)).sqrt()).clamp(max=1.0)
    return torch.addcmul(square, fine, missing, value=1.0 - skin_smooth).clamp_(0.0, 1.0)


def _energy(fine: Tensor, sigma: float) -> Tensor:
    luma = fine.new_tensor(_LUMA)[:, None, None]
    brightness = (fine * luma).sum(1, keepdim=True)
    return _blur(brightness.square(), 2.0 * sigma).add_(_ENERGY_FLOOR)


def _blur(x: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(x, sigma, math.ceil(_BLUR_REACH * sigma))


@dataclass(frozen=True, eq=False)
class Blend:
    """How restored squares reach a picture.

    strength: [0,1]. skin_smooth: [0,1], see ``with_detail``. keep: (1,1,H,W) in [0,1] or None,
    where the picture stays as it is.
    """

    strength: float = 1.0
    skin_smooth: float = 1.0
    keep: Tensor | None = None


def finished(found: Restored, image_bchw: Tensor, skin_smooth: float) -> Tensor:
    """A restored square as it goes back, (1,3,S,S) in [0,1]."""
    if skin_smooth >= 1.0:
        return found.square
    source = cut(image_bchw, found.to_square, found.square.shape[-1]).to(found.square)
    return with_detail(found.square, source, skin_smooth)


class FaceSum:
    """Restored faces in one picture, put within their own boxes only.

    image_bchw: (1,3,H,W) in [0,1]. out_bchw: a copy of it, changed. mask_hw: (H,W) of zeros;
    becomes how much of faces shows. Where faces overlap, a pixel is the one's whose mask is
    largest there, and among equals the one's that has it nearer to its middle, whatever the order.
    """

    def __init__(self, image_bchw: Tensor, blend: Blend, out_bchw: Tensor, mask_hw: Tensor) -> None:
        self._image, self._blend, self._out, self._mask = image_bchw, blend, out_bchw, mask_hw
        self._rank = torch.zeros_like(mask_hw)

    def add(self, face: Restored, square: Tensor, check: Callable[[], None]) -> None:
        """square: of the face, from ``finished``. check: called for every megapixel or so."""
        shown = face.shown.to(square)
        rank = shown * _nearness(square.shape[-1]).to(square)
        patch = Patch.fitted(face.to_square, torch.cat((square, rank, shown), 1))
        for band in bands(patch.area((self._image.shape[2], self._image.shape[3]))):
            check()
            self._paste(patch.seen(band).to(self._out), band)

    def _paste(self, seen: Tensor, band: Area) -> None:
        rows_columns = slices(band)
        area = (..., *rows_columns)
        rank, shown = seen[0, 3].to(self._rank), seen[:, 4:]
        before, mask = self._rank[rows_columns], self._mask[rows_columns]
        mixed = torch.lerp(
            self._image[area].to(seen), seen[:, :3], _weight(shown, self._blend, area)
        )
        self._out[area] = torch.where(rank > before, mixed, self._out[area])
        torch.maximum(before, rank, out=before)
        torch.maximum(mask, shown[0, 0].to(mask), out=mask)


@lru_cache(maxsize=4)
def _nearness(size_px: int) -> Tensor:
    """1 at the border of a square and a little more towards its middle, (S,S)."""
    return 1.0 + 1e-3 * (1.5 - _distance(size_px))


def _distance(size_px: int) -> Tensor:
    """From the middle of a square, (S,S); 1 at the middle of a side."""
    offset = (torch.arange(size_px, dtype=torch.float32) + 0.5) / size_px * 2.0 - 1.0
    return (offset[:, None].square() + offset[None].square()).sqrt()


def _weight(shown: Tensor, blend: Blend, area: tuple[object, ...]) -> Tensor:
    weight = shown * blend.strength if blend.strength != 1.0 else shown
    if blend.keep is not None:
        weight = weight * (1.0 - blend.keep[area].to(weight))  # type: ignore[index]
    return weight


class TileSum:
    """Restored tiles of one picture, added up; where they overlap the one fades into the other."""

    def __init__(self, image_hw: tuple[int, int]) -> None:
        # Premultiplied colours and their weight.
        self._total = torch.zeros(1, 4, *image_hw)

    def add(self, tile: Restored, square: Tensor, check: Callable[[], None]) -> None:
        """tile: its mask from ``tile_mask``. square, check: as for ``FaceSum``."""
        shown = tile.shown.to(square)
        patch = Patch.fitted(tile.to_square, torch.cat((square * shown, shown), 1))
        for band in bands(patch.area((self._total.shape[2], self._total.shape[3]))):
            check()
            self._total[(..., *slices(band))] += patch.seen(band).to(self._total)

    def paste(self, image_bchw: Tensor, blend: Blend, out_bchw: Tensor) -> None:
        """Write the picture with the tiles over it to ``out_bchw``, (1,3,H,W) both."""
        height, width = image_bchw.shape[2:]
        for band in bands((0, height, 0, width)):
            area = (..., *slices(band))
            seen = self._total[area]
            restored = seen[:, :3] / seen[:, 3:]
            weight = _weight(torch.ones_like(seen[:, 3:]), blend, area)
            out_bchw[area] = torch.lerp(image_bchw[area].to(restored), restored, weight)


def tile_mask(
    to_square: Tensor, size_px: int, image_hw: tuple[int, int], overlap_px: int
) -> Tensor:
    """How a tile fades towards its neighbours: (1,1,S,S), linear over the overlap.

    Towards a side where the picture ends it does not fade.
    """
    to_picture = invert(to_square)
    scale = float(to_picture[0, 0])
    fades = []
    for axis, length in ((1, image_hw[0]), (0, image_hw[1])):
        position = torch.arange(size_px, dtype=torch.float64) * scale + float(to_picture[axis, 2])
        first, last = float(position[0]) - 0.5 * scale, float(position[-1]) + 0.5 * scale
        ramp = torch.ones(size_px, dtype=torch.float64)
        reach = max(1.0, float(overlap_px))
        if first > 0.0:
            ramp = torch.minimum(ramp, (position - first) / reach)
        if last < length - 1.0:
            ramp = torch.minimum(ramp, (last - position) / reach)
        # Never nothing: a pixel that only one tile covers must have its say.
        fades.append(ramp.clamp(1e-3, 1.0).float())
    return (fades[0][:, None] * fades[1][None])[None, None]
