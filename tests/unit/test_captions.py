"""Captions: the line, its breaks, and the strip below a picture."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageFont
from realtoon.engine.captions import SEPARATOR, caption, wrap


def load_strip() -> ModuleType:
    """nodes/_strip.py by itself: the package around it can only be imported inside ComfyUI."""
    path = Path(__file__).resolve().parents[2] / "nodes" / "_strip.py"
    spec = importlib.util.spec_from_file_location("realtoon.alone._strip", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


strip = load_strip()
TEXT = caption((683, 1024), 4.0, 40, "anything2real_2511_v3.safetensors", "euler/simple")


def grey(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


# --- the line -------------------------------------------------------------------------------------


def test_it_reads_as_agreed() -> None:
    line = caption((683, 1024), 4.0, 40, "real.safetensors")
    assert line == "Resolution: 1024×683 | CFG: 4.0 | Steps: 40 | Weight: real.safetensors"


def test_what_is_not_there_is_left_out() -> None:
    assert caption((5, 7)) == "Resolution: 7×5"
    assert caption((5, 7), steps=4, note="x") == "Resolution: 7×5 | Steps: 4 | x"
    assert caption((5, 7), weight="a\n b\t", note=" \n") == "Resolution: 7×5 | Weight: a b"


@pytest.mark.parametrize(
    ("cfg", "told"), [(1, "1.0"), (6.5, "6.5"), (4.25, "4.25"), (10.0, "10.0"), (6.999999, "7.0")]
)
def test_cfg_has_as_many_places_as_it_needs(cfg: float, told: str) -> None:
    assert caption((5, 7), cfg).endswith(f"CFG: {told}")


# --- its breaks -----------------------------------------------------------------------------------


def test_lines_break_between_parts_then_words_then_letters() -> None:
    assert wrap("aa: 1 | bb: 2 | cc: 3", 13, len) == ["aa: 1 | bb: 2", "cc: 3"]
    assert wrap("aa: 1 | bb: 2", 12, len) == ["aa: 1", "bb: 2"]
    assert wrap("aa: 1 | bb cc dd", 5, len) == ["aa: 1", "bb cc", "dd"]
    assert wrap("abcdefg h", 3, len) == ["abc", "def", "g h"]
    assert wrap("ab", 0, len) == ["a", "b"]


@settings(deadline=None)
@given(
    st.lists(st.text("ab c:", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=4),
    st.integers(1, 40),
)
def test_no_letter_is_lost_and_no_line_is_too_long(parts: list[str], width: int) -> None:
    text = SEPARATOR.join(parts)
    lines = wrap(text, width, len)
    assert all(0 < len(line) <= width for line in lines)
    kept = "".join(lines).replace("|", "").replace(" ", "")
    assert kept == text.replace("|", "").replace(" ", "")


# --- the strip ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(1, 1), (7, 300), (64, 64), (512, 512), (1024, 683), (2048, 2048), (6000, 200)]
)
def test_the_picture_is_kept_and_the_text_lies_within(size: tuple[int, int]) -> None:
    picture = grey(*size)
    out, missing = strip.below(picture, TEXT)
    width, height = size
    assert missing == ""
    assert out.width == width and out.height > height
    assert out.crop((0, 0, width, height)).tobytes() == picture.tobytes()
    below = out.crop((0, height, width, out.height))
    paper = Image.new("RGB", below.size, strip._PAPER)
    inked = ImageChops.difference(below, paper).getbbox()
    if width >= 7:
        assert inked is not None
        assert inked[3] < below.height
    if width >= 64:
        assert inked[0] > 0 and inked[2] < width, "nothing is cut off at the sides"


def test_letters_grow_with_the_picture() -> None:
    heights = [strip.below(grey(side, side), "Ab")[0].height - side for side in (64, 1024, 2048)]
    assert heights[0] < heights[1] < heights[2]
    assert heights[2] / heights[1] == pytest.approx(2, rel=0.1)


def test_letters_that_no_font_has_are_told_and_the_rest_is_drawn() -> None:
    out, missing = strip.below(grey(400, 100), "Weight: 写实 é×", system_fonts=())
    same, nothing = strip.below(grey(400, 100), "Weight: ?? ex", system_fonts=())
    assert (missing, nothing) == ("写实", "")
    assert out.tobytes() == same.tobytes()


def test_a_system_font_steps_in_where_it_has_the_letters(monkeypatch, tmp_path) -> None:
    """Pillow's own font as the system's, which has all but the first letter it is asked for."""
    real, asked = strip._lacking, []

    def lacking(font, text: str) -> str:
        asked.append(text)
        return "Q" if len(asked) == 1 else real(font, text)

    file = tmp_path / "own.ttf"
    file.write_bytes(ImageFont.load_default(20).font_bytes)
    monkeypatch.setattr(strip, "_lacking", lacking)
    out, missing = strip.below(grey(400, 100), "Q", (str(tmp_path / "gone.ttf"), str(file)))
    assert (missing, asked) == ("", ["Q", "Q"])
    assert out.tobytes() == strip.below(grey(400, 100), "Q", ())[0].tobytes()


# --- side by side ---------------------------------------------------------------------------------


def test_a_single_picture_is_handed_on() -> None:
    picture = grey(9, 5)
    assert strip.side_by_side([picture]) is picture


@pytest.mark.parametrize("sizes", [[(64, 40)] * 3, [(30, 60), (200, 7), (1, 1)], [(5, 5), (9, 3)]])
def test_pictures_lie_side_by_side_on_white(sizes: list[tuple[int, int]]) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [Image.new("RGB", *each) for each in zip(sizes, colours, strict=False)]
    out = strip.side_by_side(pictures)
    gap = 4
    assert out.size == (sum(w for w, _ in sizes) + gap * (len(sizes) - 1), max(h for _, h in sizes))
    expected, left = Image.new("RGB", out.size, (255, 255, 255)), 0
    for picture in pictures:
        expected.paste(picture, (left, 0))
        left += picture.width + gap
    assert out.tobytes() == expected.tobytes()


def test_the_gap_grows_with_the_first_picture() -> None:
    large, small = grey(1000, 1000), grey(10, 10)
    assert strip.side_by_side([large, small]).width == 1000 + 16 + 10
    assert strip.side_by_side([small, large]).width == 10 + 4 + 1000
