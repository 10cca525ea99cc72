"""Draw the pictures that stand beside the workflows in ComfyUI's template list.

    python workflows/make_thumbnails.py

Photos of scikit-image go through `run.py queue` and the shipped cartoon_1024. Photos stand on the
left and cartoons on the right, in a square. Needs pillow and scikit-image.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw
from skimage import data

HERE = Path(__file__).resolve().parent
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


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="realtoon-") as folder:
        pairs = draw_all(Path(folder))
        single = split(scaled(pairs["astronaut"], SINGLE, (SIDE, SIDE)))
        batch = Image.new("RGB", (SIDE, SIDE), "white")
        width, height = (SIDE - LINE_PX) // 2, (SIDE - 2 * LINE_PX) // 3
        for index, (name, box) in enumerate(ROWS.items()):
            row = side_by_side(scaled(pairs[name], box, (width, height)), SIDE, height)
            batch.paste(row, (0, index * (height + LINE_PX)))
        single.save(HERE / "cartoon_1024.jpg", quality=QUALITY, optimize=True)
        batch.save(HERE / "cartoon_batch.jpg", quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
