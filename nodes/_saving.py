"""Pictures into ComfyUI's output folder, as its SaveImage names them and with what it writes into
them: the workflow, the prompt, and a caption. Holds on ComfyUI 0.3.75 and on 0.33."""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.cli_args import args
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ._tensors import InputError

FORMATS = ("png", "jpg", "webp")
QUALITY = 95
# Not "parameters": front ends that find that text in a PNG look no further for the workflow.
_CAPTION_KEY = "Description"
# What a format can hold in one direction.
_MOST_PX = {"jpg": 65_500, "webp": 16_383}
# An APP1 segment holds 65,533 bytes, six of which say 'Exif'; tables take some more.
_JPEG_EXIF_BYTES = 65_000


def as_picture(rgb_chw: Tensor) -> Image.Image:
    """(3,H,W) float in [0,1] as 8 bits, cut off and not rounded, as the host's SaveImage does."""
    values = (rgb_chw * 255).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def as_image(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size as (B,H,W,3) float in [0,1], ComfyUI's IMAGE."""
    rows = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in pictures]
    width, height = pictures[0].size
    return torch.stack(rows).reshape(-1, height, width, 3).float() / 255


@dataclass(frozen=True)
class Inside:
    """What a file says of itself. texts: ComfyUI's own (prompt, workflow, …), as JSON."""

    caption: str
    texts: Mapping[str, str]


def inside(caption: str, prompt: object, extra_pnginfo: Mapping[str, Any] | None) -> Inside | None:
    """prompt, extra_pnginfo: the host's hidden inputs, None where the API gave none.

    Returns: None where the host was told to write no metadata.
    """
    if args.disable_metadata:
        return None
    given = {"prompt": prompt, **(extra_pnginfo or {})}
    return Inside(caption, {name: json.dumps(v) for name, v in given.items() if v is not None})


def encoded(picture: Image.Image, kind: str, about: Inside | None) -> tuple[bytes, list[str]]:
    """An RGB picture as a file of a kind in FORMATS.

    Returns: its bytes, and the names of texts for which a JPG has no room.
    Raises: InputError if the picture is larger than the format can be.
    """
    if max(picture.size) > _MOST_PX.get(kind, math.inf):
        raise InputError(
            "format",
            f"a picture of at most {_MOST_PX[kind]} px a side for {kind}",
            f"{picture.width}×{picture.height}",
            "choose png",
        )
    out = io.BytesIO()
    dropped: list[str] = []
    if kind == "png":
        picture.save(out, "PNG", compress_level=4, pnginfo=_png_texts(about))
    elif kind == "webp":
        picture.save(out, "WEBP", quality=QUALITY, method=4, exif=_exif(about))
    else:
        while about and len(_exif(about)) > _JPEG_EXIF_BYTES:
            largest = max(about.texts, key=lambda name: len(about.texts[name]))
            dropped.append(largest)
            rest = {name: text for name, text in about.texts.items() if name != largest}
            about = Inside(about.caption, rest)
        picture.save(out, "JPEG", quality=QUALITY, subsampling=0, exif=_exif(about))
    return out.getvalue(), dropped


def _png_texts(about: Inside | None) -> PngInfo | None:
    if about is None:
        return None
    chunks = PngInfo()
    for name, text in {**about.texts, _CAPTION_KEY: about.caption}.items():
        chunks.add_text(name, text)
    return chunks


def _exif(about: Inside | None) -> bytes:
    """ComfyUI's own convention for WebP: Model 'prompt:{…}', Make 'workflow:{…}', the tags below
    it for what other packs add, but for the caption's."""
    if about is None:
        return b""
    exif = Image.Exif()
    free = iter([ExifTags.Base.Make, *range(ExifTags.Base.ImageDescription - 1, 0x100, -1)])
    for name, text in about.texts.items():
        exif[ExifTags.Base.Model if name == "prompt" else next(free)] = f"{name}:{text}"
    # This one is ASCII; the whole text stands in the comment.
    exif[ExifTags.Base.ImageDescription] = about.caption.replace("×", "x")
    comment = b"UNICODE\x00" + about.caption.encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    exif[ExifTags.Base.Software] = "ComfyUI, RealToon"
    return exif.tobytes()


class Folder:
    """A run's files in the output folder: counted on from what is there, nothing overwritten.

    prefix: as for SaveImage, with folders and %date% and so on in it. hw: of the pictures.
    Raises: the host's own exception if prefix leads out of the output folder.
    """

    def __init__(self, prefix: str, hw: tuple[int, int]) -> None:
        root = folder_paths.get_output_directory()
        folder, self._name, self._counter, self._below, _ = folder_paths.get_save_image_path(
            prefix, root, hw[1], hw[0]
        )
        self._folder = Path(folder)

    def write(self, data: bytes, kind: str, batch_number: int) -> dict[str, str]:
        """The next file. It is complete or not there. Returns: it, as the front end shows it."""
        stem = self._name.replace("%batch_num%", str(batch_number))
        descriptor, temporary = tempfile.mkstemp(prefix=".realtoon-", dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as out:
                out.write(data)
            target = self._reserve(stem, kind)
            # mkstemp makes private files; this one gets what the user's umask says.
            Path(temporary).chmod(target.stat().st_mode)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return {"filename": target.name, "subfolder": self._below, "type": "output"}

    def _reserve(self, stem: str, kind: str) -> Path:
        """An empty file of the next free number: another ComfyUI may count in the same folder."""
        while True:
            target = self._folder / f"{stem}_{self._counter:05}_.{kind}"
            self._counter += 1
            try:
                target.touch(exist_ok=False)
            except FileExistsError:
                continue
            return target
