"""Photos as LoadImage must get them, and results as their ending says, texts kept."""

import io
import json
import os
import stat
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin
from realtoon.host import pictures
from realtoon.host.errors import UserError

PROMPT = json.dumps({"1": {"class_type": "LoadImage", "inputs": {"image": "é.png"}}})
WORKFLOW = json.dumps({"nodes": [], "version": 0.4})


def gradient(mode="RGB", size=(40, 30)):
    wide = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (wide, wide.rotate(180), wide)).convert(mode)


def result_png(size=(40, 30), mode="RGB", **texts):
    info = PngImagePlugin.PngInfo()
    for key, value in (texts or {"prompt": PROMPT, "workflow": WORKFLOW}).items():
        info.add_text(key, value)
    out = io.BytesIO()
    gradient(mode, size).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def opened(upload):
    return Image.open(io.BytesIO(upload.data))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_plain_photo_is_sent_as_it_is(tmp_path, ending):
    path = tmp_path / f"my photo.{ending}"
    gradient().save(path)
    upload = pictures.load(path)
    assert upload.data == path.read_bytes()
    assert (upload.name, upload.width, upload.height) == (f"my_photo.{ending}", 40, 30)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_photo_is_sent_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "turned.png"
    gradient().save(path, exif=exif)
    upload = pictures.load(path)
    assert opened(upload).size == ((40, 30) if orientation < 5 else (30, 40))
    assert opened(upload).getexif().get(ExifTags.Base.Orientation, 1) == 1
    flips = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180}
    if orientation in flips:
        assert opened(upload).tobytes() == gradient().transpose(flips[orientation]).tobytes()


@pytest.mark.parametrize(
    ("mode", "ending", "expected"),
    [("P", "png", "RGB"), ("1", "png", "RGB"), ("LA", "png", "RGBA"), ("CMYK", "jpg", "RGB")],
)
def test_other_modes_become_rgb(tmp_path, mode, ending, expected):
    path = tmp_path / f"odd.{ending}"
    gradient().convert(mode).save(path)
    upload = pictures.load(path)
    assert opened(upload).mode == expected
    assert opened(upload).size == (40, 30)


def test_transparency_of_a_palette_is_kept(tmp_path):
    picture = gradient().convert("P")
    path = tmp_path / "palette.png"
    picture.save(path, transparency=picture.getpixel((0, 0)))
    assert opened(pictures.load(path)).convert("RGBA").getpixel((0, 0))[3] == 0


def test_16_bits_are_scaled_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    values = [0, 257, 128 * 257, 65535]
    picture = Image.new("I;16", (4, 1))
    for x, value in enumerate(values):
        picture.putpixel((x, 0), value)
    picture.save(path)
    got = [opened(pictures.load(path)).getpixel((x, 0))[0] for x in range(4)]
    assert got == [0, 1, 128, 255]


def test_an_animation_is_its_first_frame(tmp_path):
    path = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    first = opened(pictures.load(path))
    assert (first.size, first.convert("RGB").getpixel((0, 0))) == ((9, 7), (255, 0, 0))


def test_a_wide_gamut_photo_becomes_srgb(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    path = tmp_path / "profile.png"
    gradient().save(path, icc_profile=profile.tobytes())
    # A profile that does not fit the mode is ignored, not fatal.
    assert opened(pictures.load(path)).size == (40, 30)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"hello", "is not a picture"),
        ("empty.jpg", b"", "is not a picture"),
        ("phone.heic", b"\0\0\0\x18ftypheic", r"\.heic file.*save the photo as JPG"),
        ("cut.png", result_png()[:200], "is damaged"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        pictures.load(path)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_MAX_PIXELS", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "big.png"
    gradient(size=(40, 30)).save(path)
    with pytest.raises(UserError, match="40×30 pixels|too large"):
        pictures.load(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300), ending=st.sampled_from(["png", "jpg", "gif", "tif", "webp"]))
def test_no_bytes_end_in_a_traceback(tmp_path, data, ending):
    path = tmp_path / f"any.{ending}"
    path.write_bytes(data)
    with pytest.raises(UserError):
        pictures.load(path)


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "PNG", "JPG"])
def test_the_ending_decides_and_the_texts_stay(tmp_path, ending):
    target = tmp_path / "new" / f"out.{ending}"
    assert pictures.save(result_png(), target, caption="Style: cel, ünï") == []
    with Image.open(target) as got:
        kinds = {"png": "PNG", "webp": "WEBP"}
        assert got.format == kinds.get(ending.lower(), "JPEG")
        assert got.size == (40, 30)
    texts = pictures.texts_of(target.read_bytes())
    assert texts["prompt"] == PROMPT
    assert texts["workflow"] == WORKFLOW
    if ending.lower() == "png":
        assert texts["Description"] == "Style: cel, ünï"
    assert list(target.parent.iterdir()) == [target]


def test_a_png_keeps_its_pixels_bit_by_bit(tmp_path):
    source = result_png()
    pictures.save(source, tmp_path / "out.png", caption="c")
    with Image.open(io.BytesIO(source)) as a, Image.open(tmp_path / "out.png") as b:
        assert a.tobytes() == b.tobytes()


def test_the_user_comment_holds_the_caption(tmp_path):
    pictures.save(result_png(), tmp_path / "out.jpg", caption="Style: cel, ü")
    with Image.open(tmp_path / "out.jpg") as got:
        comment = got.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment == b"UNICODE\0" + "Style: cel, ü".encode("utf-16-be")


def test_a_jpg_says_what_has_no_room(tmp_path):
    huge = result_png(prompt=PROMPT, workflow="x" * 70_000)
    assert pictures.save(huge, tmp_path / "out.jpg") == ["workflow"]
    assert pictures.texts_of((tmp_path / "out.jpg").read_bytes())["prompt"] == PROMPT
    assert pictures.save(huge, tmp_path / "out.webp") == []
    assert len(pictures.texts_of((tmp_path / "out.webp").read_bytes())["workflow"]) == 70_000


def test_alpha_meets_white_in_a_jpg(tmp_path):
    out = io.BytesIO()
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(out, "PNG")
    pictures.save(out.getvalue(), tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as got:
        assert got.getpixel((4, 4)) == (255, 255, 255)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*unused):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.Path, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        pictures.save(result_png(), tmp_path / "out.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="file modes are POSIX")
def test_the_result_has_ordinary_permissions(tmp_path):
    mask = os.umask(0o022)
    try:
        pictures.save(result_png(), tmp_path / "out.png")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out.png").stat().st_mode) == 0o644


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_caption_keeps_letters_that_are_not_ascii(tmp_path, ending):
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    target = tmp_path / f"a.{ending}"
    assert pictures.save(data.getvalue(), target, "58×96 | 写实") == []
    assert pictures.texts_of(target.read_bytes())["Description"] == "58×96 | 写实"
