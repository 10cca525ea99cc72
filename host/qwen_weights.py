"""Whether there is a Qwen-Image-Edit, known before anything is made: standard library only."""

from __future__ import annotations

from pathlib import Path

from ..weights_loader import catalog
from . import server, sources
from .console import human_size
from .errors import UserError
from .sources import Host

FOLDERS = ("diffusion_models", "unet")
OFFICIAL = "diffusers"
# ComfyUI 0.5.0 brought the way in which 2511 looks at the picture that it edits.
FIRST_FOR_2511 = (0, 5, 0)


def runs_2511(host: Host) -> bool:
    """Whether this ComfyUI can run Qwen-Image-Edit-2511."""
    return sources.numbers(host.version) >= FIRST_FOR_2511


def may_be_there(host: Host | None, cache: Path) -> bool:
    """Whether the node could list a model. What its files hold is the node's to find out."""
    if host is not None and (host.folder / "extra_model_paths.yaml").is_file():
        # The host reads more folders than we know of.
        return True
    places = [cache / "models"] if host is None else server.model_places(host, cache)
    files = (path for place in places for name in FOLDERS for path in (place / name).rglob("*"))
    if any(path.suffix.lower() == ".safetensors" for path in files):
        return True
    patterns = ("*/model_index.json", "*/*/model_index.json")
    return any(
        next((place / OFFICIAL).glob(pattern), None) for place in places for pattern in patterns
    )


def require(host: Host | None, cache: Path) -> None:
    """Raises: UserError if there is none."""
    if not may_be_there(host, cache):
        raise missing(host, cache)


def missing(host: Host | None, cache: Path) -> UserError:
    """What to say where there is none: what to fetch, how large, whence, under which licence."""
    old = host is not None and not runs_2511(host)
    names = ("qwen-edit-2509", *catalog.SETS["realistic"][1:]) if old else ("realistic",)
    commands = ", ".join(f"`python run.py weights download {name}`" for name in names)
    entries = _entries(names)
    size = human_size(sum(entry.size_bytes for entry in entries))
    told = ", ".join(
        f"{entry.folder}/{entry.files[0].save_as} ({human_size(entry.size_bytes)})"
        for entry in entries
    )
    licences = " and ".join(dict.fromkeys(entry.licence for entry in entries))
    more = (
        f" (2509, because this ComfyUI {host.version} is older than 0.5.0, which 2511 needs)"
        if host is not None and old
        else ""
    )
    return UserError(
        f"there is no Qwen-Image-Edit in {models_folder(host, cache)}",
        f"{commands} fetches {told}: {size} from huggingface.co/Comfy-Org, {licences}{more}; or "
        "try the workflow on small random weights with --tiny, which draws noise",
    )


def part_missing(name: str, host: Host, cache: Path) -> UserError:
    """What to say where one file is missing. name: the id of its entry."""
    [entry] = _entries((name,))
    return UserError(
        f"there is no {entry.files[0].save_as} in {models_folder(host, cache) / entry.folder}",
        f"run `python run.py weights download {entry.id}` ({human_size(entry.size_bytes)}, "
        f"{entry.page}, licence: {entry.licence})",
    )


def models_folder(host: Host | None, cache: Path) -> Path:
    """Where downloads go."""
    return cache / "models" if host is None or host.owned else host.folder / "models"


def _entries(names: tuple[str, ...]) -> list[catalog.Entry]:
    ids = [one for name in names for one in catalog.SETS.get(name, (name,))]
    return [entry for one in ids if (entry := catalog.find(one)) is not None]
