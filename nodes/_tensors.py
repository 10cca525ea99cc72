"""Between ComfyUI's wires and the engine's tensors.

On the wires pictures are BHWC (batch, rows, columns, channels), float, meant to lie in [0,1], and
masks are BHW. Inside, pictures are BCHW float32 RGB that really lies in [0,1]. Here is the only
place where the one becomes the other, where transparency meets a background colour and where
values are clamped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

BACKGROUNDS = {"white": 1.0, "black": 0.0, "grey": 0.5}
PLACEHOLDER_PX = 64
# Half a step of an 8-bit picture: less than that is rounding, not worth a word.
WORTH_SAYING = 0.5 / 255
BAND_BYTES = 64 << 20


class InputError(ValueError):
    """A picture or mask on a wire is not one; the text names what came and what was expected."""

    def __init__(self, name: str, expected: str, got: str, next_step: str) -> None:
        super().__init__(f"{name}: expected {expected}, got {got}. Next step: {next_step}.")


class Pictures:
    """The pictures of an IMAGE, handed out clean, a few rows at a time.

    image: (B,H,W,C) or (H,W,C), any float type and device; C = 1 grey, 2 grey and alpha, 3 RGB,
        4 RGB and straight (not premultiplied) alpha.
    mask: transparency as LoadImage gives it (1 = transparent), see fit_mask; multiplies with an
        alpha that the image carries itself. None: nothing more is transparent.
    background: a name in BACKGROUNDS, the colour that shows where the picture is transparent and
        where a pixel holds NaN.
    Nothing is copied until rows are read. What was mended is in notes() afterwards.
    Raises: InputError.
    """

    def __init__(
        self, image: Tensor, mask: Tensor | None = None, background: str = "white"
    ) -> None:
        if background not in BACKGROUNDS:
            raise InputError(
                "background",
                f"one of {', '.join(BACKGROUNDS)}",
                repr(background),
                "pick one of them",
            )
        self._image_bhwc = _checked_image(image)
        self._background = background
        self._mask_b1hw = None
        if mask is not None and bool(_checked_mask(mask, "mask").any()):
            self._mask_b1hw = fit_mask(mask, len(self), self.hw)
        self._nan_pixels = 0
        self._transparent = False
        self._clamped = False

    def __len__(self) -> int:
        return self._image_bhwc.shape[0]

    @property
    def hw(self) -> tuple[int, int]:
        """(height, width) in pixels, the same for the whole batch."""
        return self._image_bhwc.shape[1], self._image_bhwc.shape[2]

    @property
    def wire_dtype(self) -> torch.dtype:
        """The type of the pictures that go out: float16 stays, everything else becomes float32.

        A host that runs its pictures in float16 asked for that; bfloat16 holds fewer steps than an
        8-bit picture and cannot be saved, and float64 helps nobody.
        """
        half = self._image_bhwc.dtype == torch.float16
        return torch.float16 if half else torch.float32

    @property
    def image_bhwc(self) -> Tensor:
        """The pictures as they came, (B,H,W,C)."""
        return self._image_bhwc

    def reader(self, index: int) -> Callable[[int, int], Tensor]:
        """A function (first, end) -> (3, end - first, W) float32 RGB in [0,1] of one picture."""
        return lambda first, end: self._clean_rows(index, first, end)

    def notes(self) -> list[str]:
        """What was done to the pixels, in words; rows count as they are read, so read each once."""
        notes = []
        if self._transparent:
            notes.append(f"alpha onto {self._background}")
        if self._nan_pixels:
            noun = "pixel" if self._nan_pixels == 1 else "pixels"
            notes.append(f"{self._nan_pixels} broken {noun} (NaN) filled with {self._background}")
        if self._clamped:
            notes.append("values outside 0–1 clamped")
        return notes

    def _clean_rows(self, index: int, first: int, end: int) -> Tensor:
        rows_hwc = self._image_bhwc[index, first:end]
        colours = 1 if rows_hwc.shape[-1] < 3 else 3
        rgb = rows_hwc[..., :colours].permute(2, 0, 1).float()
        alpha = self._alpha_rows(index, first, end)
        # Of the rows as they lie in memory: of a permuted view it would take a copy of them.
        low, high = (float(x) for x in torch.aminmax(rows_hwc[..., :colours]))
        # aminmax hands NaN through, and a comparison with NaN is False.
        if low >= 0 and high <= 1 and alpha is None:
            return rgb.expand(3, -1, -1)
        broken = rgb.isnan().any(dim=0, keepdim=True)
        if alpha is not None:
            broken = broken | alpha.isnan()
        self._note(rgb, alpha, broken)
        colour = rgb.new_tensor(BACKGROUNDS[self._background])
        rgb = rgb.clamp(0, 1)
        if alpha is not None:
            rgb = torch.lerp(colour, rgb, alpha.clamp(0, 1))
        return torch.where(broken, colour, rgb).expand(3, -1, -1)

    def _alpha_rows(self, index: int, first: int, end: int) -> Tensor | None:
        alpha = None
        if self._image_bhwc.shape[-1] in (2, 4):
            alpha = self._image_bhwc[index, first:end, :, -1][None].float()
        if self._mask_b1hw is not None:
            one_mask = len(self._mask_b1hw) == 1
            opaque = 1 - self._mask_b1hw[0 if one_mask else index, :, first:end]
            alpha = opaque if alpha is None else alpha * opaque
        return alpha

    def _note(self, rgb: Tensor, alpha: Tensor | None, broken: Tensor) -> None:
        self._nan_pixels += int(broken.sum())
        if alpha is not None:
            self._transparent |= bool((alpha < 1 - WORTH_SAYING).any())
        over = torch.maximum(rgb - 1, -rgb)
        self._clamped |= bool((over > WORTH_SAYING).any())


def to_bchw(image: Tensor, mask: Tensor | None = None, background: str = "white") -> Tensor:
    """An IMAGE as the engine takes it.

    Arguments as in Pictures. Returns: (B,3,H,W) float32 RGB in [0,1] on the image's device; a view
    of the image where that is all this already (so do not write into it), else a clean copy with
    channels last in memory.
    Raises: InputError.
    """
    return clean_bchw(Pictures(image, mask, background))


def clean_bchw(pictures: Pictures) -> Tensor:
    """As to_bchw, for pictures whose notes are wanted."""
    image_bhwc = pictures.image_bhwc
    (height, width), out = pictures.hw, None
    step = max(1, BAND_BYTES // (width * 3 * 4))
    if image_bhwc.shape[-1] != 3 or image_bhwc.dtype != torch.float32:
        out = new_bchw(pictures, pictures.hw, torch.float32)
    for index in range(len(pictures)):
        read = pictures.reader(index)
        for first in range(0, height, step):
            end = min(first + step, height)
            rows = read(first, end)
            # Rows that needed no mending come as a view of the image itself.
            if out is None and rows.data_ptr() != image_bhwc[index, first].data_ptr():
                out = image_bhwc.clone().permute(0, 3, 1, 2)
            if out is not None:
                out[index, :, first:end] = rows
    return image_bhwc.permute(0, 3, 1, 2) if out is None else out


def new_bchw(pictures: Pictures, hw: tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
    """Room for as many RGB pictures of another size: (B,3,*hw), laid out so that to_bhwc is free.

    dtype: pictures.wire_dtype if None.
    """
    image = pictures.image_bhwc
    dtype = pictures.wire_dtype if dtype is None else dtype
    room = torch.empty((len(pictures), *hw, 3), dtype=dtype, device=image.device)
    return room.permute(0, 3, 1, 2)


def to_bhwc(image_bchw: Tensor) -> Tensor:
    """The engine's (B,C,H,W) in [0,1] as an IMAGE: (B,H,W,C), contiguous, same type and device."""
    return image_bchw.permute(0, 2, 3, 1).contiguous()


def fit_mask(mask: Tensor, batch: int, hw: tuple[int, int], name: str = "mask") -> Tensor:
    """A MASK as the engine takes it.

    mask: (H,W), (B,H,W), (B,1,H,W) or (B,H,W,1), float or bool, [0,1]; one mask serves a whole
        batch. Another size with the picture's aspect is resized, NaN counts as 1.
    Returns: (B or 1,1,*hw) float32 in [0,1].
    Raises: InputError if the aspect, the number of masks or the type does not fit.
    """
    mask_b1hw = _checked_mask(mask, name)
    count, (height, width) = mask_b1hw.shape[0], mask_b1hw.shape[2:]
    if count not in (1, batch):
        raise InputError(
            name,
            f"1 mask or {batch}, one for each picture",
            f"{count}",
            "take the mask from the node that the pictures come from",
        )
    mask_b1hw = torch.nan_to_num(mask_b1hw.float(), nan=1.0).clamp(0, 1)
    if (height, width) == hw:
        return mask_b1hw
    if not _same_aspect((height, width), hw):
        raise InputError(
            name,
            f"{hw[1]}×{hw[0]} as the picture, or that aspect",
            f"{width}×{height}",
            "take the mask from the node that the picture comes from, or disconnect it",
        )
    fitted = functional.interpolate(mask_b1hw, size=hw, mode="bilinear", antialias=True)
    return fitted.clamp(0, 1)


def is_placeholder(mask: Tensor) -> bool:
    """True for the 64×64 zeros that LoadImage hands out for a picture without alpha."""
    return tuple(mask.shape[-2:]) == (PLACEHOLDER_PX, PLACEHOLDER_PX) and not bool(mask.any())


def mask_to_wire(mask_b1hw: Tensor) -> Tensor:
    """The engine's (B,1,H,W) as a MASK: (B,H,W) float32, contiguous."""
    return mask_b1hw[:, 0].float().contiguous()


def _shape(tensor: Tensor) -> str:
    return f"a tensor of shape {tuple(tensor.shape)}"


def _checked_image(image: Tensor) -> Tensor:
    what, step = "pictures as (batch, height, width, 1 to 4 channels)", "join an IMAGE output here"
    if not isinstance(image, Tensor):
        raise InputError("image", what, type(image).__name__, step)
    image_bhwc = image[None] if image.ndim == 3 else image
    if image_bhwc.ndim != 4 or image_bhwc.shape[-1] not in (1, 2, 3, 4):
        raise InputError("image", what, _shape(image), step)
    if 0 in image_bhwc.shape:
        raise InputError("image", "at least one picture of 1×1", _shape(image), step)
    if not image_bhwc.is_floating_point():
        raise InputError("image", "float values in 0–1", f"{image.dtype}", step)
    return image_bhwc


def _checked_mask(mask: Tensor, name: str) -> Tensor:
    what, step = "a mask as (batch, height, width)", "join a MASK output here"
    if not isinstance(mask, Tensor):
        raise InputError(name, what, type(mask).__name__, step)
    if not (mask.is_floating_point() or mask.dtype == torch.bool):
        raise InputError(name, "float values in 0–1", f"{mask.dtype}", step)
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask_b1hw = mask
    elif mask.ndim == 4 and mask.shape[3] == 1:
        mask_b1hw = mask.permute(0, 3, 1, 2)
    elif mask.ndim in (2, 3):
        mask_b1hw = mask.reshape(-1, 1, *mask.shape[-2:])
    else:
        raise InputError(name, what, _shape(mask), step)
    if 0 in mask_b1hw.shape:
        raise InputError(name, what, _shape(mask), step)
    return mask_b1hw


def _same_aspect(mask_hw: tuple[int, int], picture_hw: tuple[int, int]) -> bool:
    """True if the one is the other scaled and rounded to whole pixels."""
    (small_h, small_w), (large_h, large_w) = sorted(
        (mask_hw, picture_hw), key=lambda hw: hw[0] * hw[1]
    )
    return abs(small_w - small_h * large_w / large_h) <= 1 or (
        abs(small_h - small_w * large_h / large_w) <= 1
    )
