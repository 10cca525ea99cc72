"""Pictures in and out: what LoadImage would get wrong is put right before the upload, and what
comes back is written as the file's ending says, with its caption and workflow inside."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from .errors import UserError

_PNG = b"\x89PNG\r\n\x1a\n"
_PLAIN_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# An APP1 segment holds 65,533 bytes, six of which say 'Exif'; tables take some more.
_JPEG_EXIF_BYTES = 65_000
_MAX_PIXELS = 400_000_000
_FOREIGN = (".heic", ".heif", ".avif", ".jxl", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf")
CAPTION = "Description"
# Under "parameters" older front ends take a picture for another program's and drop its workflow.
QUALITY = 95


@dataclass(frozen=True)
class Upload:
    """A picture that ComfyUI's LoadImage reads as a person sees it."""

    name: str
    data: bytes
    width: int
    height: int


def load(path: Path) -> Upload:
    """Read a photo: upright, first frame, 8 bits a channel, RGB with or without alpha.

    The file itself is sent where it is like that already.
    Raises: UserError if it is no picture.
    """
    Image.MAX_IMAGE_PIXELS = _MAX_PIXELS // 2
    try:
        raw = path.read_bytes()
        with Image.open(io.BytesIO(raw)) as opened:
            _check_pixels(path, opened.size)
            as_it_is = _is_plain(opened)
            opened.load()
            picture = opened if as_it_is else _normal(opened)
            data = raw if as_it_is else _png(picture)
            return Upload(_name(path, as_it_is), data, *picture.size)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path.name} is too large ({error})", "give a smaller picture") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise _no_picture(path, error) from error


def _no_picture(path: Path, error: Exception) -> UserError:
    if path.suffix.lower() in _FOREIGN:
        return UserError(
            f"{path.name} is a {path.suffix.lower()} file, which is not read here",
            "save the photo as JPG or PNG and give that file",
        )
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path.name} is not a picture", "give a JPG, PNG or WebP file")
    return UserError(f"{path.name} is damaged ({error})", "give another copy of the picture")


def _check_pixels(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > _MAX_PIXELS:
        raise UserError(
            f"{path.name} has {size[0]}×{size[1]} pixels, more than {_MAX_PIXELS // 10**6} million",
            "give a smaller picture",
        )


def _name(path: Path, as_it_is: bool) -> str:
    # Servers differ in what they take in a name; the ending decides how it is served again.
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in path.stem)[:80] or "photo"
    return stem + (path.suffix.lower() if as_it_is else ".png")


def _is_plain(opened: Image.Image) -> bool:
    upright = opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
    one = getattr(opened, "n_frames", 1) == 1
    kind = opened.format in _PLAIN_FORMATS and opened.mode in ("RGB", "RGBA", "L")
    return upright and one and kind and not _foreign_colours(opened)


def _foreign_colours(opened: Image.Image) -> bytes | None:
    """An embedded profile that is not sRGB."""
    profile = opened.info.get("icc_profile")
    if not profile:
        return None
    try:
        name = ImageCms.getProfileDescription(io.BytesIO(profile))
    except (ImageCms.PyCMSError, OSError):
        return None
    return None if "srgb" in name.lower() else profile


def _normal(opened: Image.Image) -> Image.Image:
    if getattr(opened, "n_frames", 1) > 1:
        opened.seek(0)
    profile = _foreign_colours(opened)
    picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):
        # 16 bits: Pillow's own conversion clips instead of scaling.
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    elif picture.mode == "F":
        low, high = picture.getextrema()
        scale = 255.0 / (high - low) if high > low else 0.0
        picture = picture.point(lambda value: value * scale - low * scale).convert("L")
    if profile is not None:
        picture = _to_srgb(picture, profile)
    has_alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    return picture.convert("RGBA" if has_alpha else "RGB")


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    if picture.mode not in ("RGB", "CMYK", "L"):
        return picture
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, source, target, outputMode="RGB") or picture
    except (ImageCms.PyCMSError, OSError, ValueError):
        # A broken profile: the plain conversion is the better picture.
        return picture


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def astronaut() -> Upload:
    """scikit-image's astronaut (NASA, public domain), which lies in its wheel."""
    from skimage import data

    picture = Image.fromarray(data.astronaut())
    return Upload("astronaut.png", _png(picture), *picture.size)


def size_of(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as opened:
        return opened.size


def texts_of(data: bytes) -> dict[str, str]:
    """The text chunks of a PNG, or what ComfyUI's convention keeps in the EXIF of others."""
    with Image.open(io.BytesIO(data)) as opened:
        if opened.format == "PNG":
            opened.load()
            return {str(key): str(value) for key, value in getattr(opened, "text", {}).items()}
        found = {}
        for tag in (ExifTags.Base.Make, ExifTags.Base.Model):
            name, colon, value = str(opened.getexif().get(tag, "")).partition(":")
            if colon:
                found[name] = value
        caption = _caption_in(opened.getexif())
        return {**found, CAPTION: caption} if caption else found


def _caption_in(exif: Image.Exif) -> str:
    """The comment that keeps every letter, else the description, which has ASCII only."""
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        return comment[8:].decode("utf-16-be", errors="replace")
    return str(exif.get(ExifTags.Base.ImageDescription, ""))


def save(data: bytes, target: Path, caption: str = "", quality: int = QUALITY) -> list[str]:
    """Write a picture from the server to target, in the format that its ending says.

    The texts inside (prompt, workflow, …) and caption stay in the file. A PNG that stays a PNG is
    not decoded. target is whole or not there.
    Returns: names of texts that the format has no room for. Raises: UserError.
    """
    try:
        if target.suffix.lower() == ".png" and data.startswith(_PNG):
            _write(target, with_text(data, {CAPTION: caption} if caption else {}))
            return []
        texts = texts_of(data)
        if caption:
            texts[CAPTION] = caption
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            return _convert(opened, texts, target, quality)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror or error})",
            "check the folder and the free disk space, or name another file with --out",
        ) from error


def _convert(picture: Image.Image, texts: dict[str, str], target: Path, quality: int) -> list[str]:
    ending = target.suffix.lower()
    out = io.BytesIO()
    options: dict[str, object] = {}
    if profile := picture.info.get("icc_profile"):
        options["icc_profile"] = profile
    dropped: list[str] = []
    if ending == ".png":
        picture.save(out, "PNG", compress_level=4, **options)
        _write(target, with_text(out.getvalue(), texts))
        return dropped
    if ending == ".webp":
        exif = _exif(texts)
        picture.save(out, "WEBP", quality=quality, method=4, exif=exif, **options)
    else:
        exif, dropped = _exif_that_fits(texts)
        flat = _on_white(picture)
        flat.save(out, "JPEG", quality=quality, subsampling=0, exif=exif, **options)
    _write(target, out.getvalue())
    return dropped


def _on_white(picture: Image.Image) -> Image.Image:
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _exif(texts: dict[str, str]) -> bytes:
    """ComfyUI's own convention for WebP: Make 'workflow:{…}', Model 'prompt:{…}'."""
    exif = Image.Exif()
    if "workflow" in texts:
        exif[ExifTags.Base.Make] = f"workflow:{texts['workflow']}"
    if "prompt" in texts:
        exif[ExifTags.Base.Model] = f"prompt:{texts['prompt']}"
    if CAPTION in texts:
        exif[ExifTags.Base.ImageDescription] = texts[CAPTION]
        comment = b"UNICODE\x00" + texts[CAPTION].encode("utf-16-be")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    exif[ExifTags.Base.Software] = "ComfyUI, RealToon"
    return exif.tobytes()


def _exif_that_fits(texts: dict[str, str]) -> tuple[bytes, list[str]]:
    kept = dict(texts)
    dropped = []
    for name in ("workflow", "prompt"):
        if len(_exif(kept)) > _JPEG_EXIF_BYTES and name in kept:
            del kept[name]
            dropped.append(name)
    return _exif(kept), dropped


def with_text(png: bytes, texts: dict[str, str]) -> bytes:
    """The same PNG with iTXt chunks added behind its header."""
    header_end = len(_PNG) + 25
    chunks = b"".join(
        _chunk(b"iTXt", key.encode("latin-1", "replace") + b"\0\0\0\0\0" + value.encode())
        for key, value in texts.items()
    )
    return png[:header_end] + chunks + png[header_end:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def _write(target: Path, data: bytes) -> None:
    write_whole(target, data)


def write_whole(target: Path, data: bytes) -> None:
    """Write a file so that it is complete or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.stem}-", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
        if os.name != "nt":
            # mkstemp makes private files; a picture gets what the user's umask says.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
