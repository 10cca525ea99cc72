"""Whether there are GPEN weights, known before anything is made: standard library only."""

from __future__ import annotations

from pathlib import Path

from ..weights_loader import catalog
from . import server
from .errors import UserError
from .sources import Host

FOLDERS = ("gpen", "facerestore_models")
ENDINGS = (".pth", ".pt", ".safetensors", ".onnx")
USUAL = "gpen-512"


def may_be_there(host: Host | None, cache: Path) -> bool:
    """Whether the node could list weights. What its files hold is the node's to find out."""
    if host is not None and (host.folder / "extra_model_paths.yaml").is_file():
        # The host reads more folders than we know of.
        return True
    places = [cache / "models"] if host is None else server.model_places(host, cache)
    return any(
        path.suffix.lower() in ENDINGS
        for place in places
        for folder in FOLDERS
        for path in (place / folder).rglob("*")
    )


def require(host: Host | None, cache: Path) -> None:
    """Raises: UserError if there are none."""
    if not may_be_there(host, cache):
        raise missing(host, cache)


def missing(host: Host | None, cache: Path) -> UserError:
    """What to say where there are none."""
    models = cache / "models" if host is None or host.owned else host.folder / "models"
    return UserError(
        f"there are no GPEN weights in {models / FOLDERS[0]}",
        f"run `python run.py weights download {USUAL}` (for academic and non-commercial use only)",
    )


def file_name(wanted: str) -> str:
    """The file that an id of the catalogue is saved as; anything else as it is."""
    entry = catalog.find(wanted)
    return entry.files[0].save_as if entry is not None and entry.kind == "gpen" else wanted
