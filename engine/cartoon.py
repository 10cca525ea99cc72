"""The person cartoon: the whole picture drawn once, then each face again at its own scale.

Source of the pipeline: menyifang/DCT-Net @147e4f2, ``source/cartoonize.py``. It differs in that
the picture keeps its size, that faces are pasted with their own area only, and that nothing is
rounded to 8 bit on the way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from .dctnet import HALO_PX, DCTNet
from .faces.align import DCTNET_TEMPLATE_288, invert, similarity, warp
from .faces.detect import Face
from .faces.patch import Patch, is_empty, paste_masks, slices
from .style_mix import LINE_RADIUS_PX, mix
from .tiles import Window, plan

HEAD_PX = 288
_LINE_HALO_PX = -(-LINE_RADIUS_PX // 4) * 4


@dataclass(frozen=True)
class Look:
    """What ``style_mix.mix`` takes: strength in [0,1], crispness in [0,2]."""

    strength: float = 0.75
    crispness: float = 1.0


def max_area(height: int, width: int, device_type: str) -> int:
    """Pixels of one window, of memory enough. Sizes in px; device_type as torch has it."""
    if device_type != "cpu":
        return 4_600_000
    # A processor gains nothing from larger windows. One that is to be followed by others shares
    # its memory with what they leave behind and with the finder of faces.
    return 1_150_000 if height * width <= 1_150_000 else 450_000


def plan_windows(height: int, width: int, look: Look, max_area: int) -> list[Window]:
    """The windows in which ``draw`` works. Sizes in px, ``max_area`` in px of one window."""
    halo = HALO_PX + (_LINE_HALO_PX if look.crispness != 1.0 else 0)
    return plan(height, width, max_area=max_area, halo=halo)


@dataclass(frozen=True, eq=False)
class Style:
    """The network for whole pictures and the one for aligned heads; they may be the same."""

    whole: DCTNet
    head: DCTNet


def draw_heads(
    net: DCTNet, image_bchw: Tensor, faces: Sequence[Face], check: Callable[[], None]
) -> list[Patch]:
    """Align each face of one picture to 288 px and draw it; the smallest first.

    net: the head model. image_bchw: (1,3,H,W) RGB in [0,1]. check: called between steps; it stops
    the run by raising.
    """
    heads = []
    for face in sorted(faces, key=lambda face: face.size_px):
        to_head = similarity(face.points, DCTNET_TEMPLATE_288)
        crop = warp(image_bchw, invert(to_head), (HEAD_PX, HEAD_PX), border=1.0)
        drawn = net(crop, check)
        heads.append(Patch.fitted(to_head, torch.cat((drawn, head_alpha().to(drawn)), 1)))
    return heads


def count_steps(
    style: Style, windows: Sequence[Window], image_hw: tuple[int, int], faces: int
) -> int:
    """How often ``draw_heads`` and ``draw`` call their ``check``, for a progress bar."""
    side = (0, HEAD_PX, 0, HEAD_PX)
    head = style.head.steps(Window(side, side), (HEAD_PX, HEAD_PX))
    return sum(style.whole.steps(window, image_hw) for window in windows) + faces * head


def draw(
    net: DCTNet,
    image_bchw: Tensor,
    heads: Sequence[Sequence[Patch]],
    look: Look,
    mask: Tensor | None,
    windows: Sequence[Window],
    out_bchw: Tensor,
    check: Callable[[], None],
) -> None:
    """Draw a batch of pictures of one size, window by window.

    image_bchw: (B,3,H,W) RGB in [0,1], any device. heads: of each picture, from ``draw_heads``.
    mask: (B or 1,1,H,W) in [0,1], where to draw. windows: from ``plan_windows``.
    out_bchw: (B,3,H,W), filled. check: called between steps; it stops the run by raising.
    """
    height, width = image_bchw.shape[-2:]
    margin = _LINE_HALO_PX if look.crispness != 1.0 else 0
    for window in windows:
        wide = _widened(window, margin, height, width)
        drawn = net.window(image_bchw, wide, check)
        for index, found in enumerate(heads):
            for head in found:
                _paste(head, drawn[index : index + 1], wide)
        area = (..., *slices(wide.inner))
        source = image_bchw[area].to(drawn)
        where = None if mask is None else mask[area].to(drawn)
        mixed = mix(source, drawn, strength=look.strength, crispness=look.crispness, mask=where)
        kept = (..., *Window(window.inner, wide.inner).kept)
        out_bchw[(..., *slices(window.inner))] = mixed[kept].to(out_bchw)


def add_face_masks(faces: Sequence[Face], mask_hw: Tensor) -> None:
    """Write where faces are drawn into ``mask_hw``, (H,W), the larger value where two overlap."""
    to_heads = [similarity(face.points, DCTNET_TEMPLATE_288) for face in faces]
    paste_masks([Patch.fitted(to_head, head_alpha()) for to_head in to_heads], mask_hw)


@lru_cache(maxsize=1)
def head_alpha() -> Tensor:
    """How much of the drawn head shows: (1,1,288,288), an ellipse that fades over 43 px.

    Upstream's stand-in for ``alpha.jpg``: semi-axes 0.4 and 0.49 of the side, the distance to the
    outside divided by 0.15 of the side.
    """
    centre = HEAD_PX // 2
    offset = torch.arange(HEAD_PX, dtype=torch.float32) - centre
    rows, columns = offset[:, None] / int(HEAD_PX * 0.49), offset[None, :] / int(HEAD_PX * 0.4)
    inside = rows**2 + columns**2 <= 1.0
    outside = torch.nonzero(~inside & _touches(inside)).float()
    within = torch.nonzero(inside)
    distance = torch.cdist(within.float(), outside).amin(1)
    alpha = torch.zeros(HEAD_PX, HEAD_PX)
    alpha[within[:, 0], within[:, 1]] = (distance / (0.15 * HEAD_PX)).clamp(max=1.0)
    return alpha[None, None]


def _touches(inside: Tensor) -> Tensor:
    """The ring of pixels next to ``inside``: the nearest outside pixel is always one of them."""
    x = inside[None, None].float()
    return F.max_pool2d(x, 3, stride=1, padding=1)[0, 0] > 0


def _paste(head: Patch, drawn: Tensor, window: Window) -> None:
    """Blend a head into a window's inner part, (1,3,h,w), changed in place."""
    y0, y1, x0, x1 = window.inner
    top, bottom, left, right = head.area((y1, x1))
    area = max(top, y0), bottom, max(left, x0), right
    if is_empty(area):
        return
    part = drawn[(..., *Window(area, window.inner).kept)]
    seen = head.seen(area).to(part)
    part.lerp_(seen[:, :3], seen[:, 3:])


def _widened(window: Window, margin: int, height: int, width: int) -> Window:
    y0, y1, x0, x1 = window.inner
    inner = (
        max(0, y0 - margin),
        min(height, y1 + margin),
        max(0, x0 - margin),
        min(width, x1 + margin),
    )
    return Window(inner, window.outer)
