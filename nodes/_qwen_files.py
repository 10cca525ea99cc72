"""What QwenEditLoader offers to choose from, and what a choice stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..weights_loader import qwen_folder, qwen_image
from ..weights_loader.errors import WeightsError
from ..weights_loader.qwen_image import Base, Part
from . import _host
from ._tensors import InputError

FROM_FOLDER = "from the folder"
BASES, FOLDERS, TEXTS, VAES = "diffusion_models", "diffusers", "text_encoders", "vae"

_accepted: dict[tuple[Any, ...], bool] = {}


def bases() -> dict[str, Path]:
    """Name -> DiT file or official folder; a folder's name ends in a slash.

    A folder whose parts are missing is offered, so that loading it says which.
    """
    files = _offered(BASES, qwen_image.describe_base)
    return {**dict(_folders()), **files}


def texts() -> dict[str, Path]:
    """Name -> text encoder's file."""
    return _offered(TEXTS, qwen_image.describe_text)


def vaes() -> dict[str, Path]:
    """Name -> VAE's file."""
    return _offered(VAES, qwen_image.describe_vae)


def base_of(name: str) -> Base:
    """Describe a base by its name. Raises: InputError, WeightsError."""
    return qwen_image.describe_base(_chosen("base", name, bases()))


def text_of(name: str, base: Base) -> Part:
    """Describe a text encoder by its name. Raises: InputError, WeightsError."""
    return _part("text_encoder", name, base.text, texts, qwen_image.describe_text)


def vae_of(name: str, base: Base) -> Part:
    """Describe a VAE by its name. Raises: InputError, WeightsError."""
    return _part("vae", name, base.vae, vaes, qwen_image.describe_vae)


def state_of(part: Part) -> tuple[Any, ...]:
    """Changes when one of a part's files does, or what its config says."""
    return (part.config, *(_host.file_state(file) for file in part.files))


def fingerprint(base: str, text_encoder: str, vae: str) -> str:
    """Changes when a file does that one of these names stands for."""
    chosen = [
        found.get(name) for name, found in ((base, bases()), (text_encoder, texts()), (vae, vaes()))
    ]
    files = [file for path in chosen if path is not None for file in _files_of(path)]
    return repr([_host.file_state(file) for file in files])


def missing() -> str:
    """What to say where there is no base at all."""
    return (
        "base: expected Qwen-Image-Edit in models/diffusion_models, or its official folder in"
        " models/diffusers, got none. Next step: put one there, then refresh (R); the node's help"
        " says where to get it"
    )


def _offered(folder: str, describe: Callable[[Path], object]) -> dict[str, Path]:
    return {
        name: path
        for name, path in _host.model_files(folder).items()
        if path.suffix == ".safetensors" and _accepts(path, describe)
    }


def _accepts(path: Path, describe: Callable[[Path], object]) -> bool:
    """Whether a header says that it is one; asked once for each state of the file."""
    try:
        state = (describe.__name__, *_host.file_state(path))
        if state not in _accepted:
            _accepted[state] = _is_described(path, describe)
        return _accepted[state]
    except OSError:
        return False


def _is_described(path: Path, describe: Callable[[Path], object]) -> bool:
    try:
        describe(path)
    except WeightsError:
        return False
    return True


def _folders() -> Iterator[tuple[str, Path]]:
    for root in _host.model_folders(FOLDERS):
        for pattern in ("*/model_index.json", "*/*/model_index.json"):
            for index in sorted(root.glob(pattern)):
                if _accepts(index, _describe_index):
                    yield f"{index.parent.relative_to(root).as_posix()}/", index.parent


def _describe_index(index: Path) -> object:
    return qwen_folder.read_pipeline(index.parent)


def _chosen(name: str, value: str, found: dict[str, Path]) -> Path:
    if value not in found:
        known = ", ".join(found) or "nothing of the kind in the model folders"
        step = "choose another, or put the file back and refresh (R)"
        raise InputError(name, f"one of {known}", repr(value), step)
    return found[value]


def _part(
    name: str,
    value: str,
    own: Part | None,
    files: Callable[[], dict[str, Path]],
    describe: Callable[[Path], Part],
) -> Part:
    if value != FROM_FOLDER:
        return describe(_chosen(name, value, files()))
    if own is None:
        step = "choose a file, or an official folder as base that holds one"
        raise InputError(name, "a file where the base is one", FROM_FOLDER, step)
    return own


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [*path.glob("*.json"), *path.glob("*/*.json"), *path.glob("*/*.safetensors")]
    return sorted(found)
