"""A photo through the cartoon pipeline without a host, stage by stage, as the node runs it."""

from __future__ import annotations

import _pack
import torch
from torch import Tensor

_pack.load()

from realtoon.engine import cartoon  # noqa: E402
from realtoon.engine.dctnet import DCTNet  # noqa: E402
from realtoon.engine.faces import MTCNN, Face, detect, select  # noqa: E402

MIN_FACE_PX = 40
MAX_FACES = 10


def nothing() -> None:
    """The check of a run that nobody interrupts."""


def find_faces(model: MTCNN | None, image_bchw: Tensor) -> list[list[Face]]:
    """The faces of each picture, with the node's defaults."""
    if model is None:
        return [[] for _ in image_bchw]
    return [
        select(
            detect(model, picture.permute(1, 2, 0), min_face_px=MIN_FACE_PX), MAX_FACES, MIN_FACE_PX
        )
        for picture in image_bchw
    ]


@torch.inference_mode()
def draw(
    net: DCTNet,
    image_bchw: Tensor,
    faces: list[list[Face]] | None = None,
    look: cartoon.Look | None = None,
    max_area: int = 0,
) -> Tensor:
    """The pictures drawn, (B,3,H,W), laid out so that BHWC is a view.

    max_area: px of one window; 0 takes the node's own.
    """
    look = look or cartoon.Look()
    batch, _, height, width = image_bchw.shape
    out_bchw = torch.empty(batch, height, width, 3).permute(0, 3, 1, 2)
    heads = [
        cartoon.draw_heads(net, image_bchw[index : index + 1], found, nothing)
        for index, found in enumerate(faces or [[] for _ in range(batch)])
    ]
    max_area = max_area or cartoon.max_area(height, width, image_bchw.device.type)
    windows = cartoon.plan_windows(height, width, look, max_area)
    cartoon.draw(net, image_bchw, heads, look, None, windows, out_bchw, nothing)
    return out_bchw
