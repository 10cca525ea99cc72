"""Cutting a face out upright, and finding the way back.

Positions are (x, y) in pixels with the centre of the first pixel at (0, 0), as OpenCV has it. A
transform is a (2,3) float64 matrix M on the CPU: ``M[:, :2] @ (x, y) + M[:, 2]``.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

DCTNET_TEMPLATE_288 = torch.tensor(
    [
        [111.782, 137.629],
        [179.740, 137.253],
        [145.977, 176.278],
        [118.059, 216.062],
        [174.336, 215.751],
    ],
    dtype=torch.float64,
)
"""Eyes, nose and corners of the mouth in DCT-Net's head crop of 288 px."""

_GPEN_POINTS_96X112 = torch.tensor(
    [
        [30.29459953, 51.69630051],
        [65.53179932, 51.50139999],
        [48.02519989, 71.73660278],
        [33.54930115, 92.3655014],
        [62.72990036, 92.20410156],
    ],
    dtype=torch.float64,
)


def gpen_template(size_px: int) -> Tensor:
    """Eyes, nose and corners of the mouth, (5,2), in GPEN's square crop of ``size_px``.

    Source: yangxy/GPEN @2c73670, ``align_faces.py``: a crop of 96x112 widened to a square and by a
    quarter on every side.
    """
    square = _GPEN_POINTS_96X112 + torch.tensor([8.0, 0.0], dtype=torch.float64)
    return (square + 28.0) * (size_px / 168.0)


def similarity(src_points: Tensor, dst_points: Tensor) -> Tensor:
    """The rotation, scale and shift that takes ``src_points`` closest to ``dst_points``.

    Both (N,2), any dtype. Returns: (2,3). Points that all coincide give a plain shift.
    Source: Umeyama 1991; in the plane its best rotation without a reflection has a closed form.
    """
    src, dst = (points.detach().to("cpu", torch.float64) for points in (src_points, dst_points))
    src_mean, dst_mean = src.mean(0), dst.mean(0)
    src, dst = src - src_mean, dst - dst_mean
    spread = float((src * src).sum())
    cosine = float((src * dst).sum())
    sine = float((src[:, 0] * dst[:, 1] - src[:, 1] * dst[:, 0]).sum())
    if spread < 1e-12 or math.hypot(cosine, sine) < 1e-12:
        cosine, sine, spread = 1.0, 0.0, 1.0
    turn = src.new_tensor([[cosine, -sine], [sine, cosine]]) / spread
    return torch.cat((turn, (dst_mean - turn @ src_mean)[:, None]), 1)


def invert(matrix_23: Tensor) -> Tensor:
    """The transform that undoes ``matrix_23``; (2,3) both."""
    turn = torch.linalg.inv(matrix_23[:, :2])
    return torch.cat((turn, -(turn @ matrix_23[:, 2:])), 1)


def warp(
    image_bchw: Tensor, matrix_23: Tensor, out_hw: tuple[int, int], *, border: float | None = 0.0
) -> Tensor:
    """Cut a part out of a picture, smoothed where it shrinks.

    image_bchw: (B,C,H,W) float. matrix_23: from a pixel of the result to one of the picture.
    out_hw: size of the result. border: the value beyond the picture, which mixes in at the edge;
    None repeats the picture's own edge.
    Only the part that the result shows is read. Returns: (B,C,*out_hw), dtype of the picture.
    """
    height, width = image_bchw.shape[-2:]
    left, top, right, bottom = _bounds(matrix_23, out_hw)
    margin = math.ceil(_shrinkage(matrix_23)) + 1
    x0, x1 = max(0, left - margin), min(width, right + margin + 1)
    y0, y1 = max(0, top - margin), min(height, bottom + margin + 1)
    if x1 <= x0 or y1 <= y0:
        return image_bchw.new_full((*image_bchw.shape[:2], *out_hw), border or 0.0)
    matrix = matrix_23.clone()
    matrix[:, 2] -= matrix.new_tensor([x0, y0])
    return sample(*smoothed(image_bchw[..., y0:y1, x0:x1], matrix), out_hw, border=border)


def smoothed(image_bchw: Tensor, matrix_23: Tensor) -> tuple[Tensor, Tensor]:
    """What ``sample`` needs to shrink a picture without aliasing: a smaller one, and its matrix.

    matrix_23: from a pixel of a later result to one of the picture. Where it does not shrink, both
    come back as they are.
    """
    shrink = _shrinkage(matrix_23)
    if shrink <= 1.0:
        return image_bchw, matrix_23
    height, width = image_bchw.shape[-2:]
    small = max(1, round(height / shrink)), max(1, round(width / shrink))
    scale = matrix_23.new_tensor([[small[1] / width], [small[0] / height]])
    matrix = matrix_23 * scale
    matrix[:, 2:] += 0.5 * scale - 0.5
    shrunk = F.interpolate(
        _at_least_float32(image_bchw), size=small, mode="bilinear", antialias=True
    )
    return shrunk.to(image_bchw.dtype), matrix


def sample(
    image_bchw: Tensor, matrix_23: Tensor, out_hw: tuple[int, int], *, border: float | None = 0.0
) -> Tensor:
    """Sample a picture bilinearly; arguments as for ``warp``, the whole picture is read.

    A result does not depend on the part of it that is asked for: the same positions give the same
    values.
    """
    # Zeros lie beyond what grid_sample reads, so the border becomes zero for the while.
    source = _at_least_float32(image_bchw)
    shifted = source - border if border else source
    grid = _grid(matrix_23, out_hw, (image_bchw.shape[2], image_bchw.shape[3]))
    grid = grid.to(source).expand(len(source), -1, -1, -1)
    beyond = "border" if border is None else "zeros"
    sampled = F.grid_sample(
        shifted, grid, mode="bilinear", padding_mode=beyond, align_corners=False
    )
    return (sampled + border if border else sampled).to(image_bchw.dtype)


def _at_least_float32(image_bchw: Tensor) -> Tensor:
    # A position in half precision is a pixel off from 2048 px on, and overflows in between.
    return image_bchw if image_bchw.dtype == torch.float64 else image_bchw.float()


def _shrinkage(matrix_23: Tensor) -> float:
    """How many pixels of the source one pixel of the result stands for, along a side."""
    return math.sqrt(abs(float(torch.linalg.det(matrix_23[:, :2]))))


def paste_region(
    matrix_23: Tensor, size_px: int, canvas_hw: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Which part of a canvas an aligned square covers, clipped to the canvas.

    matrix_23: from the canvas to the square of ``size_px``. Returns: (y0, y1, x0, x1), empty
    (y1 <= y0 or x1 <= x0) where the square lies outside.
    """
    left, top, right, bottom = _bounds(invert(matrix_23), (size_px, size_px), reach=1.0)
    height, width = canvas_hw
    return max(0, top), min(height, bottom + 1), max(0, left), min(width, right + 1)


def _bounds(matrix: Tensor, hw: tuple[int, int], reach: float = 0.0) -> tuple[int, int, int, int]:
    """The box around a mapped rectangle of pixel centres, ``reach`` px wider: x0, y0, x1, y1."""
    low, right, bottom = -reach, hw[1] - 1 + reach, hw[0] - 1 + reach
    corners = matrix.new_tensor([[low, low], [right, low], [low, bottom], [right, bottom]])
    mapped = corners @ matrix[:, :2].T + matrix[:, 2]
    (x0, y0), (x1, y1) = mapped.amin(0).tolist(), mapped.amax(0).tolist()
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


def _grid(matrix: Tensor, out_hw: tuple[int, int], in_hw: tuple[int, int]) -> Tensor:
    """grid_sample's grid, (1,h,w,2), for ``align_corners=False``."""
    rows = torch.arange(out_hw[0], dtype=torch.float64)[:, None, None]
    columns = torch.arange(out_hw[1], dtype=torch.float64)[None, :, None]
    position = columns * matrix[:, 0] + rows * matrix[:, 1] + matrix[:, 2]
    size = matrix.new_tensor([in_hw[1], in_hw[0]])
    return ((2.0 * position + 1.0) / size - 1.0)[None]
