"""Pictures for the built-in style: where they come from, how they are varied, where targets lie.

All pictures travel inside packages on PyPI. Those of installed packages are read where they are;
`face_recognition` (source archive) and `thumbor` are never installed, only their archives are
opened: ``pip download --no-deps face_recognition==1.2.3 thumbor==7.8.0``. docs/cel_style.md lists
every picture with its licence.
"""

from __future__ import annotations

import importlib.util
import io
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.draw import ellipse, polygon
from skimage.filters import gaussian


@dataclass(frozen=True)
class Picture:
    """One picture, and what to look at in it.

    package: an importable package, or the beginning of an archive's file name.
    member: path inside the package's folder, or the end of a path inside the archive.
    focus: (x, y) of the face or subject as fractions of the picture.
    share: how many variants it gets, beside the others' 1.0.
    """

    package: str
    member: str
    focus: tuple[float, float]
    share: float = 1.0


PICTURES = (
    Picture("skimage", "data/chelsea.png", (0.45, 0.40)),
    Picture("skimage", "data/coffee.png", (0.50, 0.50)),
    Picture("skimage", "data/rocket.jpg", (0.50, 0.50), 0.5),
    Picture("sklearn", "datasets/images/china.jpg", (0.50, 0.40), 0.7),
    Picture("sklearn", "datasets/images/flower.jpg", (0.50, 0.40), 0.6),
    Picture("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", (0.50, 0.35), 1.5),
    Picture("face_recognition", "test_images/biden.jpg", (0.47, 0.12), 1.5),
    Picture("face_recognition", "test_images/obama.jpg", (0.53, 0.22), 2.0),
    Picture("face_recognition", "test_images/obama2.jpg", (0.55, 0.33), 1.5),
    Picture("face_recognition", "test_images/obama3.jpg", (0.54, 0.22), 1.2),
    Picture("thumbor", "filters/800px-Katherine_Maher.jpg", (0.52, 0.50), 2.5),
    Picture("thumbor", "filters/800px-Guido-portrait-2014.jpg", (0.48, 0.42), 2.0),
    Picture("thumbor", "filters/800px-Christophe_Henner_-_June_2016.jpg", (0.35, 0.40), 2.0),
    Picture("thumbor", "filters/Giunchedi%2C_Filippo_January_2015_01.jpg", (0.50, 0.40), 2.0),
)
HELD_OUT = Picture("skimage", "data/astronaut.png", (0.44, 0.23))
DRAWN_SHARE = 0.12


def _archive_member(archive: Path, ending: str) -> bytes | None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if name.endswith(ending):
                    return opened.read(name)
        return None
    with tarfile.open(archive) as opened:
        for item in opened:
            if item.name.endswith(ending) and (stream := opened.extractfile(item)):
                return stream.read()
    return None


def _bytes(picture: Picture, archives: Path | None) -> bytes:
    for archive in sorted(archives.glob(f"{picture.package}-*")) if archives else ():
        if (found := _archive_member(archive, picture.member)) is not None:
            return found
    spec = importlib.util.find_spec(picture.package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / picture.member
        if path.is_file():
            return path.read_bytes()
    raise FileNotFoundError(
        f"{picture.member}: expected in the package {picture.package} or in one of its archives "
        f"under {archives}. Next step: pip install it, or pip download --no-deps it into the folder"
        " named by --archives."
    )


def load(picture: Picture, archives: Path | None = None) -> Image.Image:
    """Open a picture as RGB. Raises FileNotFoundError when neither package nor archive has it."""
    return Image.open(io.BytesIO(_bytes(picture, archives))).convert("RGB")


def _recolour(image_hwc: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another exposure, contrast, white balance and saturation of the same scene."""
    result = np.power(image_hwc, np.exp(rng.normal(0, 0.28)))
    result = result * np.exp(rng.normal(0, 0.07, 3))
    grey = result.mean(-1, keepdims=True)
    result = grey + (result - grey) * np.clip(np.exp(rng.normal(0, 0.28)), 0, 2)
    if rng.random() < 0.06:
        result = np.repeat(grey, 3, -1)
    result = 0.5 + (result - 0.5) * np.exp(rng.normal(0.03, 0.13)) + rng.normal(0, 0.03)
    return np.clip(result, 0, 1).astype(np.float32)


def _view(image: Image.Image, focus: tuple[float, float], side: int, rng: np.random.Generator):
    """A square of `side` px out of the picture at a random scale, often around its subject."""
    longest, shortest = max(image.size), min(image.size)
    smallest = max(300.0, side * longest / shortest)
    largest = max(min(1500.0, 2.2 * longest), smallest * 1.05)
    scale = np.exp(rng.uniform(np.log(smallest), np.log(largest))) / longest
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    near = rng.random() < 0.65
    corner = []
    for length, centre in zip(size, focus, strict=True):
        middle = (centre + rng.normal(0, 0.05) if near else rng.random()) * length
        corner.append(int(np.clip(middle - side / 2, 0, length - side)))
    resized = image.resize(size, Image.Resampling.LANCZOS)
    return resized.crop((*corner, corner[0] + side, corner[1] + side))


def _drawn(side: int, rng: np.random.Generator) -> np.ndarray:
    """Gradients, ovals and polygons: flat areas must stay flat, and edges of any contrast occur."""
    y, x = np.mgrid[0:side, 0:side] / side
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * x + np.sin(angle) * y)[..., None]
    image = rng.random(3) + (rng.random(3) - 0.5) * 1.5 * ramp
    for _ in range(rng.integers(6, 22)):
        radii = rng.uniform(0.02, 0.3, 2) * side
        centre = rng.random(2) * side
        if rng.random() < 0.6:
            rows, columns = ellipse(*centre, *radii, (side, side), rng.uniform(0, np.pi))
        else:
            corners = rng.normal(0, 1, (4, 2)) * radii + centre
            rows, columns = polygon(corners[:, 0], corners[:, 1], (side, side))
        shade = rng.random(3) + (rng.random(3) - 0.5) * ramp[rows, columns]
        cover = rng.uniform(0.3, 1)
        image[rows, columns] = (1 - cover) * image[rows, columns] + cover * shade
    return np.clip(gaussian(image, rng.uniform(0.4, 1.6), channel_axis=-1), 0, 1)


def _jpeg(image_hwc: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray((image_hwc * 255).round().astype(np.uint8)).save(
        stream, "JPEG", quality=quality
    )
    return np.asarray(Image.open(stream), np.float32) / 255


def views(
    count: int, side: int, seed: int, archives: Path | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (index, clean, worn): float32 (side,side,3) RGB in [0,1].

    clean is what the target is drawn from; worn is what the network sees: sometimes through JPEG.
    The same seed yields the same pictures, and view number i does not depend on `count`.
    """
    images = [load(picture, archives) for picture in PICTURES]
    shares = np.array([picture.share for picture in PICTURES])
    shares = shares / shares.sum() * (1 - DRAWN_SHARE)
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        which = rng.choice(len(PICTURES) + 1, p=[*shares, 1 - shares.sum()])
        if which == len(PICTURES):
            clean = _drawn(side, rng).astype(np.float32)
        else:
            view = _view(images[which], PICTURES[which].focus, side, rng)
            clean = _recolour(np.asarray(view, np.float32) / 255, rng)
        worn = _jpeg(clean, int(rng.integers(55, 96))) if rng.random() < 0.4 else clean
        yield index, clean, worn
