"""A caption drawn on a strip below a picture, and pictures side by side."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from ..engine.captions import wrap

# Of a picture's side, were it square.
_LETTER_SHARE = 0.022
_LEAST_PX = 10
# Between pictures, of the first one's side, were it square.
_GAP_SHARE = 0.016
_LEAST_GAP_PX = 4
_PAPER, _INK = (250, 250, 250), (30, 30, 30)
# Pillow's own font has little more than ASCII; what looks the same is drawn with that.
_ALIKE = str.maketrans({"×": "x", "–": "-", "—": "-", "’": "'", "“": '"', "”": '"', "\u00a0": " "})
# Fonts with Chinese, Japanese and Korean, as systems name their files; last, one with Cyrillic.
SYSTEM_FONTS = (
    "msyh.ttc",
    "simhei.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "NotoSansCJK-Regular.ttc",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "malgun.ttf",
    "DejaVuSans.ttf",
    "arial.ttf",
)
Picture = Image.Image
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def below(
    picture: Image.Image, text: str, system_fonts: Sequence[str] = SYSTEM_FONTS
) -> tuple[Image.Image, str]:
    """The picture, untouched, with the text on a strip below it.

    picture: RGB. The letters grow with the picture, and the strip has as many lines as it takes.
    Returns: an RGB picture as wide as before, and the letters that no font here has ('' for none);
    a question mark stands for each of them.
    """
    width, height = picture.size
    size = max(_LEAST_PX, round(min(_LETTER_SHARE * math.sqrt(width * height), width / 20)))
    font, text, missing = _readable(text, size, tuple(system_fonts))
    margin = max(2, min(round(size * 0.6), width // 16))
    lines = wrap(text, width - 2 * margin, font.getlength)
    pitch = round(size * 1.35)
    out = Image.new("RGB", (width, height + len(lines) * pitch + 2 * margin), _PAPER)
    out.paste(picture, (0, 0))
    draw = ImageDraw.Draw(out)
    for number, line in enumerate(lines):
        draw.text((margin, height + margin + number * pitch), line, fill=_INK, font=font)
    return out, missing


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """RGB pictures from left to right, their tops in one line, white between and below them.

    A single one comes back as it is.
    """
    first, *more = pictures
    if not more:
        return first
    gap = max(_LEAST_GAP_PX, round(_GAP_SHARE * math.sqrt(first.width * first.height)))
    width = sum(each.width for each in pictures) + gap * len(more)
    out = Image.new("RGB", (width, max(each.height for each in pictures)), "white")
    left = 0
    for each in pictures:
        out.paste(each, (left, 0))
        left += each.width + gap
    return out


def _readable(text: str, size: int, system_fonts: tuple[str, ...]) -> tuple[Font, str, str]:
    """A font, the text as it can be drawn with it, and the letters that are lost."""
    own = ImageFont.load_default(size)
    plain = text.translate(_ALIKE)
    lost = _lacking(own, plain)
    if not lost:
        return own, plain, ""
    for name in system_fonts:
        font = _system_font(name, size)
        if font is not None and not _lacking(font, text):
            return font, text, ""
    bare = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    lost = _lacking(own, bare)
    return own, "".join("?" if letter in lost else letter for letter in bare), lost


def _lacking(font: Font, text: str) -> str:
    """The letters of a text that a font draws as its box for unknown ones."""
    unknown = _drawn(font, "\U0010ffff")
    letters = sorted({letter for letter in text if not letter.isspace()})
    return "".join(letter for letter in letters if _drawn(font, letter) == unknown)


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter, mode="L")
    return mask.size, bytes(mask)


@lru_cache(maxsize=32)
def _system_font(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
