"""Draw the pictures that stand beside the workflows in ComfyUI's template list.

    python workflows/make_thumbnails.py

Photos of scikit-image go through `run.py queue` and the shipped cartoon_1024. Photos stand on the
left and cartoons on the right, in a square. What restoring does to a photo depends on weights that
cannot be shipped, so restore_portrait shows what it works on instead: a face, the square that is
cut out around it, what of it goes back, and the square upright. The same holds for the realistic
workflows: they show art, the noise that a picture begins as, in squares as large as the model's,
and a dot for each step; compare_loras shows a photo at three strengths of the style. Needs pillow,
scikit-image, torch and the face detector (`run.py weights faces`).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from skimage import data

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "benchmarks"))

import _detector  # noqa: E402  (brings the pack in as realtoon)
import torch  # noqa: E402
from realtoon.engine import restore  # noqa: E402
from realtoon.engine.faces import detect, invert, warp  # noqa: E402

SIDE = 512
LINE_PX = 6
QUALITY = 88
PHOTOS = {"astronaut": data.astronaut, "chelsea": data.chelsea, "coffee": data.coffee}
# What is shown, in each photo's own pixels: left, top, right, bottom.
SINGLE = (48, 0, 400, 352)
ROWS = {
    "astronaut": (60, 0, 390, 216),
    "chelsea": (0, 2, 451, 297),
    "coffee": (0, 3, 600, 396),
}

# restore_portrait: the side of the upright face, its place, and how dark all else is.
UPRIGHT_PX = 208
UPRIGHT_AT = (SIDE - UPRIGHT_PX - 20, SIDE - UPRIGHT_PX - 20)
DIMMED = 0.45
FINE = 4

# The realistic workflows: squares of the model at 1024 pixels as they appear on the thumbnail, and
# name -> steps.
PATCH_PX = 16 * SIDE // 1024
STEPS = {"realistic_1024": 40, "realistic_1024_lightning": 4}
INK = (24, 26, 34)

# compare_loras: the strength of each version, and the part of the photo that all show.
VERSIONS = {"A": 0.0, "B": 0.5, "C": 1.0}
FACE = (164, 18, 276, 328)
BAR_PX = 52

Pair = tuple[Image.Image, Image.Image]


def draw_all(folder: Path) -> dict[str, Pair]:
    """(photo, cartoon) of each of PHOTOS."""
    for name, load in PHOTOS.items():
        Image.fromarray(load()).save(folder / f"{name}.png")
    inputs = [str(folder / f"{name}.png") for name in PHOTOS]
    run = [sys.executable, str(HERE.parent / "run.py"), "queue"]
    workflow = str(HERE / "api" / "cartoon_1024.json")
    out = folder / "out"
    subprocess.run([*run, workflow, "--out", str(out), "--input", *inputs], check=True)
    pairs = {}
    for name in PHOTOS:
        [drawn] = out.glob(f"{name}_*.png")
        pairs[name] = (Image.open(folder / f"{name}.png"), Image.open(drawn))
    return pairs


def scaled(pair: Pair, box: tuple[int, int, int, int], size: tuple[int, int]) -> Pair:
    """The same part of both at a size."""
    before, after = (each.resize(size, Image.Resampling.LANCZOS, box) for each in pair)
    return before, after


def side_by_side(pair: Pair, width: int, height: int) -> Image.Image:
    """Before and after with a white line between them."""
    out = Image.new("RGB", (width, height), "white")
    out.paste(pair[0], (0, 0))
    out.paste(pair[1], (width - pair[1].width, 0))
    return out


def split(pair: Pair) -> Image.Image:
    """One picture, before on the left and after on the right, cut at a slant."""
    width, height = size = pair[0].size
    top_x, bottom_x = width // 2 + height // 8, width // 2 - height // 8
    # Four times as large, so that the slanted edge comes out smooth.
    large = (width * 4, height * 4)
    mask, line = Image.new("L", large), Image.new("L", large)
    ends = [(top_x * 4, 0), (bottom_x * 4, height * 4)]
    ImageDraw.Draw(mask).polygon([(0, 0), *ends, (0, height * 4)], fill=255)
    ImageDraw.Draw(line).line(ends, fill=255, width=LINE_PX * 4)
    out = Image.composite(*pair, mask.resize(size, Image.Resampling.LANCZOS))
    out.paste("white", (0, 0), line.resize(size, Image.Resampling.LANCZOS))
    return out


def restored_part() -> Image.Image:
    """The astronaut with the square around its face, what of it goes back, and it upright."""
    detector = _detector.detector(None)
    if detector is None:
        raise SystemExit("make_thumbnails.py: no face detector. Next step: run.py weights faces")
    photo_hwc = torch.from_numpy(data.astronaut()).float() / 255
    [face, *_] = detect(detector, photo_hwc, min_face_px=20)
    photo = photo_hwc.permute(2, 0, 1)[None]
    to_square = restore.face_square(face, SIDE)
    mask = warp(restore.face_mask(SIDE), to_square, (SIDE, SIDE), border=0.0)
    shown = photo * (DIMMED + (1 - DIMMED) * mask)
    upright = restore.cut(photo, restore.face_square(face, UPRIGHT_PX), UPRIGHT_PX)
    out = _picture(shown)
    lines = Image.new("L", (SIDE * FINE, SIDE * FINE))
    draw = ImageDraw.Draw(lines)
    corners = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    corners[:, :2] *= SIDE
    outline = corners.double() @ invert(to_square).double().T * FINE
    points = [tuple(corner) for corner in outline.tolist()]
    draw.line([*points, points[0], points[1]], fill=255, width=3 * FINE, joint="curve")
    for x, y in (face.points * FINE).tolist():
        draw.ellipse((x - 3 * FINE, y - 3 * FINE, x + 3 * FINE, y + 3 * FINE), fill=255)
    left, top = (value * FINE for value in UPRIGHT_AT)
    # From the square's lower right corner to the upright one's upper left.
    draw.line([points[2], (left, top)], fill=255, width=3 * FINE)
    out.paste("white", (0, 0), lines.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    frame = Image.new("RGB", (UPRIGHT_PX + 6, UPRIGHT_PX + 6), "white")
    frame.paste(_picture(upright), (3, 3))
    out.paste(frame, (UPRIGHT_AT[0] - 3, UPRIGHT_AT[1] - 3))
    return out


def out_of_noise(art: Image.Image, steps: int) -> Image.Image:
    """Art that turns into noise towards the right, square by square, and the steps as dots."""
    draw = torch.Generator().manual_seed(steps)
    count = SIDE // PATCH_PX
    grid = torch.linspace(0, 1, count)
    # How much of a square is noise: none on the left, all on the right, a slant between.
    share = ((grid[None, :] - 0.25 * grid[:, None] + 0.125 - 0.52) / 0.4).clamp(0, 1)
    is_noise = torch.rand(count, count, generator=draw) < share**1.5
    colours = (torch.randn(3, count, count, generator=draw) * 0.2 + 0.5).clamp(0, 1)
    noise = _picture(colours[None]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    mask = Image.fromarray(is_noise.byte().mul(255).numpy()).resize((SIDE, SIDE), 0)
    out = Image.composite(noise, art, mask)
    _draw_steps(out, steps)
    return out


def three_versions(pair: Pair) -> Image.Image:
    """The same part of a photo at three strengths of the style, side by side, each with its
    letter on a dark bar below."""
    width, height = (SIDE - 2 * LINE_PX) // 3, SIDE - BAR_PX
    before, after = (each.convert("RGB") for each in scaled(pair, FACE, (width, height)))
    out = Image.new("RGB", (SIDE, SIDE), "white")
    font = ImageFont.load_default(30)
    for index, (letter, strength) in enumerate(VERSIONS.items()):
        part = Image.new("RGB", (width, SIDE), INK)
        part.paste(Image.blend(before, after, strength), (0, 0))
        centre = (width / 2, height + BAR_PX / 2)
        ImageDraw.Draw(part).text(centre, letter, fill="white", font=font, anchor="mm")
        # The last one ends where the square does.
        out.paste(part, (SIDE - width if index == 2 else index * (width + LINE_PX), 0))
    return out


def _draw_steps(out: Image.Image, steps: int) -> None:
    """A dark bar with a dot a step, the last one bright."""
    height, radius = BAR_PX, 4.0 if steps > 10 else 11.0
    bar = Image.new("RGB", (SIDE * FINE, height * FINE), INK)
    draw = ImageDraw.Draw(bar)
    gap = SIDE / (steps + 1)
    for step in range(steps):
        x, y, r = (gap * (step + 1)) * FINE, height * FINE / 2, radius * FINE
        light = int(90 + 165 * (step + 1) / steps)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(light, light, light))
    out.paste(bar.resize((SIDE, height), Image.Resampling.LANCZOS), (0, SIDE - height))


def _picture(image_bchw: torch.Tensor) -> Image.Image:
    rounded = image_bchw[0].permute(1, 2, 0).mul(255).round().clamp(0, 255)
    return Image.fromarray(rounded.byte().numpy())


def main() -> None:
    restored_part().save(HERE / "restore_portrait.jpg", quality=QUALITY, optimize=True)
    with tempfile.TemporaryDirectory(prefix="realtoon-") as folder:
        pairs = draw_all(Path(folder))
        single = split(scaled(pairs["astronaut"], SINGLE, (SIDE, SIDE)))
        batch = Image.new("RGB", (SIDE, SIDE), "white")
        width, height = (SIDE - LINE_PX) // 2, (SIDE - 2 * LINE_PX) // 3
        for index, (name, box) in enumerate(ROWS.items()):
            row = side_by_side(scaled(pairs[name], box, (width, height)), SIDE, height)
            batch.paste(row, (0, index * (height + LINE_PX)))
        art = scaled(pairs["astronaut"], SINGLE, (SIDE, SIDE))[1].convert("RGB")
        for name, steps in STEPS.items():
            drawn = out_of_noise(art, steps)
            drawn.save(HERE / f"{name}.jpg", quality=QUALITY, optimize=True)
        versions = three_versions(pairs["astronaut"])
        versions.save(HERE / "compare_loras.jpg", quality=QUALITY, optimize=True)
        single.save(HERE / "cartoon_1024.jpg", quality=QUALITY, optimize=True)
        batch.save(HERE / "cartoon_batch.jpg", quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
