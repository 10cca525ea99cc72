"""The folder that a host works in: this pack linked into custom_nodes/, and its own in and out."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import locks, paths
from .errors import UserError

_IN_USE = ".in_use"
_PARTS = ("custom_nodes", "input", "output", "models", "user", "temp")
# What a copied pack does not need.
_NOT_COPIED = shutil.ignore_patterns(".git", "__pycache__", "tests", "training", "docs", ".*_cache")


def prepare(folder: Path, pack_root: Path = paths.PACK_ROOT) -> Path:
    """Make what `--base-directory` expects, with the pack in custom_nodes/.

    Raises: UserError.
    """
    try:
        for part in _PARTS:
            (folder / part).mkdir(parents=True, exist_ok=True)
        link_pack(folder / "custom_nodes" / paths.LINK_NAME, pack_root)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be prepared ({error.strerror or error})",
            "free some space, or name another folder in REALTOON_CACHE",
        ) from error
    return folder


def link_pack(link: Path, pack_root: Path) -> str:
    """Make link show pack_root: 'symlink', a Windows 'junction', or where both fail a 'copy'."""
    remove_link(link)
    try:
        link.symlink_to(pack_root, target_is_directory=True)
        return "symlink"
    except OSError:
        # Windows without developer mode, or a disk that knows no links.
        pass
    if sys.platform == "win32":
        import _winapi

        try:
            _winapi.CreateJunction(str(pack_root), str(link))
            return "junction"
        except OSError:
            pass
    shutil.copytree(pack_root, link, ignore=_NOT_COPIED)
    return "copy"


def remove_link(link: Path) -> None:
    """Take the link or copy away, never what a link points to."""
    if link.is_symlink():
        link.unlink()
    elif sys.platform == "win32" and link.exists() and _is_junction(link):
        link.rmdir()
    elif link.exists():
        shutil.rmtree(link)


def _is_junction(link: Path) -> bool:
    # Path.is_junction() is there from Python 3.12; a junction resolves to somewhere else.
    return link.resolve() != link.parent.resolve() / link.name


def remove(folder: Path) -> None:
    """Delete a base folder of one run, without following its link into the pack."""
    remove_link(folder / "custom_nodes" / paths.LINK_NAME)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Mark a base folder as that of a living process."""
    with locks.only_one(folder / _IN_USE, f"the folder {folder}"):
        yield


def remove_abandoned(runs: Path) -> None:
    """Delete the base folders of runs that were killed."""
    for folder in runs.glob("*"):
        # A folder that is just being made has no mark yet.
        if (folder / _IN_USE).exists() and locks.is_free(folder / _IN_USE):
            remove(folder)


def write_model_paths(target: Path, model_folders: Iterable[Path]) -> Path:
    """A file for --extra-model-paths-config that adds every subfolder of model_folders.

    JSON, which YAML contains.
    """
    config: dict[str, dict[str, str]] = {}
    for index, folder in enumerate(model_folders):
        names = sorted({child.name for child in folder.glob("*") if child.is_dir()})
        if names:
            config[f"realtoon_{index}"] = {"base_path": str(folder), **{n: n for n in names}}
    target.write_text(json.dumps(config, indent=1), "utf-8")
    return target
