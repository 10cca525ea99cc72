"""The virtual environment in our cache folder: made once, resumed when interrupted, then only used.

A torch that is already there (in the ComfyUI's own environment, in the Python that started us, in
an earlier environment of ours) is not installed again: its folders are appended to the new
environment's path, behind its own packages.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import locks, pip, requirements, torch_choice
from .console import say, warn
from .errors import UserError
from .sources import Host

_STATE = "realtoon.json"
_DONOR_FILE = "realtoon_donor.pth"
_OWN_TORCH_BYTES = 8_000_000_000
_REUSED_TORCH_BYTES = 2_000_000_000
_CLIENT_BYTES = 300_000_000


@dataclass(frozen=True)
class Environment:
    """python: what runs the host and the second half of run.py. folder: None if it is not ours."""

    python: Path
    folder: Path | None


@dataclass
class _State:
    """What is known about an environment. done: names of finished steps."""

    owner: str
    host: str
    donor: list[str] = field(default_factory=list)
    torch: str = ""
    done: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> _State | None:
        try:
            return cls(**json.loads((folder / _STATE).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        temporary = folder / (_STATE + ".new")
        temporary.write_text(json.dumps(self.__dict__, indent=1), "utf-8")
        temporary.replace(folder / _STATE)

    def usable(self, folder: Path) -> bool:
        """Its Python and the folders that it borrows are still there."""
        borrowed = all(Path(entry).is_dir() for entry in self.donor)
        return pip.venv_python(folder).exists() and borrowed


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def ensure(host: Host, extras: Sequence[str], cache: Path) -> Environment:
    """The environment that runs this host, with the named extras of pyproject.

    Makes what is missing; touches neither network nor pip when nothing is.
    Raises: UserError.
    """
    wanted = requirements.of_host(host.folder)
    owner = "" if host.owned else str(host.folder)
    own = None if host.owned else torch_choice.own_python(host.folder)
    if own is not None and not own.can_make_venv:
        return _as_it_is(own, extras)
    with locks.only_one(cache / "locks" / "environment.lock", "the environment"):
        folder = _find(cache, owner, _digest(wanted)) or (
            cache / "envs" / f"{_tag()}-{_digest([owner, *wanted])}"
        )
        state = _State.read(folder)
        if state is None or not state.usable(folder) or "host" not in state.done:
            state = _make(folder, state, own, owner, wanted, cache)
        for extra in extras:
            _add_extra(folder, state, extra)
    return Environment(pip.venv_python(folder), folder)


def ensure_client(cache: Path) -> Environment:
    """A small environment that can talk to a server elsewhere: any of ours, else one without torch.

    Raises: UserError.
    """
    for folder, state in _all(cache):
        if state.usable(folder) and state.done:
            return Environment(pip.venv_python(folder), folder)
    with locks.only_one(cache / "locks" / "environment.lock", "the environment"):
        folder = cache / "envs" / f"{_tag()}-client"
        state = _State.read(folder)
        if state is None or not state.usable(folder) or "client" not in state.done:
            _check_disk(cache, _CLIENT_BYTES)
            say(f"Making a small environment in {folder}.")
            state = _State(owner="-", host="-")
            _start_venv(folder, Path(sys.executable), state)
            pip.install(pip.venv_python(folder), requirements.CLIENT)
            state.done["client"] = _digest(requirements.CLIENT)
            state.write(folder)
    return Environment(pip.venv_python(folder), folder)


def _tag() -> str:
    return f"py{sys.version_info[0]}{sys.version_info[1]}"


def _all(cache: Path) -> list[tuple[Path, _State]]:
    folders = sorted((cache / "envs").glob(f"*/{_STATE}"))
    found = [(note.parent, _State.read(note.parent)) for note in folders]
    return [(folder, state) for folder, state in found if state is not None]


def _find(cache: Path, owner: str, digest: str) -> Path | None:
    """A finished environment for the same host, whichever Python it was made with."""
    for folder, state in _all(cache):
        same = state.owner == owner and state.host == digest
        if same and "host" in state.done and state.usable(folder):
            return folder
    return None


def _as_it_is(own: torch_choice.Python, extras: Sequence[str]) -> Environment:
    # The Windows portable build: no venv module, but all that the host needs.
    missing = [name for name in ("aiohttp", "tqdm", "PIL") if name not in own.modules]
    wanted = [extra for extra in extras if not (extra == "demo" and "skimage" in own.modules)]
    if missing or wanted:
        what = "give the path of a photo" if wanted == ["demo"] else "leave --comfyui out"
        raise UserError(
            f"{own.path} cannot make virtual environments and lacks "
            f"{', '.join(missing) or 'what ' + ' and '.join(wanted) + ' needs'}",
            f"{what} or start run.py with a Python from python.org",
        )
    return Environment(own.path, None)


def _make(
    folder: Path,
    state: _State | None,
    own: torch_choice.Python | None,
    owner: str,
    wanted: list[str],
    cache: Path,
) -> _State:
    """Make or resume the environment up to the host's requirements."""
    resumable = state is not None and state.usable(folder) and state.host == _digest(wanted)
    if state is None or not resumable:
        donor = torch_choice.choose(own, _ours(cache, folder))
        _check_disk(cache, _OWN_TORCH_BYTES if donor is None else _REUSED_TORCH_BYTES)
        state = _State(owner=owner, host=_digest(wanted))
        _say_making(folder, donor)
        _start_venv(folder, donor.path if donor else Path(sys.executable), state, donor)
    else:
        say(f"Going on with the environment in {folder}.")
    if "torch" not in state.done:
        state = _torch_step(folder, state)
    python = pip.venv_python(folder)
    pip.install(python, wanted, constraints=_constraints(folder, state))
    state.done["host"] = state.host
    state.write(folder)
    return state


def _ours(cache: Path, but: Path) -> list[Path]:
    return [
        pip.venv_python(folder)
        for folder, state in _all(cache)
        if folder != but and "torch" in state.done and state.usable(folder)
    ]


def _say_making(folder: Path, donor: torch_choice.Python | None) -> None:
    if donor is not None:
        say(f"Making an environment in {folder}; torch {donor.torch} of {donor.path} is reused.")
        return
    say(f"Making an environment in {folder}; torch is downloaded too, this happens once.")
    if sys.platform == "win32" and shutil.which("nvidia-smi"):
        say("To use your NVIDIA card name your own ComfyUI with --comfyui: PyPI's torch has none.")


def _start_venv(
    folder: Path, base: Path, state: _State, donor: torch_choice.Python | None = None
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Unmarked folders are rests of an interrupted run: --clear empties them.
    pip.make_venv(base, folder)
    if donor is not None:
        state.donor, state.torch = list(donor.site), donor.torch
        lines = [f"import site; site.addsitedir({entry!r})\n" for entry in donor.site]
        (_site_packages(folder) / _DONOR_FILE).write_text("".join(lines), "utf-8")
    state.write(folder)


def _site_packages(folder: Path) -> Path:
    if sys.platform == "win32":
        return folder / "Lib" / "site-packages"
    found = sorted((folder / "lib").glob("python3*/site-packages"))
    if not found:
        raise UserError(f"{folder} is no virtual environment", "delete it and try again")
    return found[0]


def _torch_step(folder: Path, state: _State) -> _State:
    """torch, torchvision and torchaudio that belong together and import."""
    python = pip.venv_python(folder)
    if state.donor:
        try:
            options = torch_choice.index_for(state.torch)
            pinned = _constraints(folder, state)
            pip.install(python, ["torchvision", "torchaudio"], constraints=pinned, options=options)
            problem = torch_choice.import_problem(python)
        except UserError as error:
            problem = error.what
        if problem:
            say(f"The torch that is there cannot be used ({problem}); installing one of our own.")
            _check_disk(folder.parent, _OWN_TORCH_BYTES)
            (_site_packages(folder) / _DONOR_FILE).unlink(missing_ok=True)
            state.donor, state.torch = [], ""
    if not state.donor:
        options = torch_choice.index_for_new()
        pip.install(python, ["torch", "torchvision", "torchaudio"], options=options)
        problem = torch_choice.import_problem(python)
        if problem:
            raise UserError(
                f"torch was installed but does not start ({problem})",
                f"delete {folder} and try again with another Python",
            )
        state.torch = torch_choice.describe(python).torch
    state.done["torch"] = state.torch
    state.write(folder)
    return state


def _constraints(folder: Path, state: _State) -> Path:
    """What the host's requirements must not replace."""
    path = folder / "constraints.txt"
    path.write_text(f"torch=={state.torch}\n" if state.torch else "", "utf-8")
    return path


def _add_extra(folder: Path, state: _State, extra: str) -> None:
    python = pip.venv_python(folder)
    lines = requirements.of_extra(extra, python)
    if state.done.get(f"extra {extra}") == _digest(lines):
        return
    _check_disk(folder.parent, _REUSED_TORCH_BYTES)
    say(f"Adding what `{extra}` needs to the environment.")
    constraints = _constraints(folder, state)
    must, may = requirements.split_optional(lines)
    if must:
        pip.install(python, must, constraints=constraints)
    for line in may:
        # Each alone: without a wheel for this Python or platform, only its own tests are skipped.
        try:
            pip.install(python, [line], constraints=constraints, options=["--only-binary", ":all:"])
        except UserError:
            name = re.split(r"[\s;<>=!~\[]", line, maxsplit=1)[0]
            where = f"Python {platform.python_version()} on {platform.machine()}"
            warn(f"{name} cannot be had for {where}; what compares with it is skipped.")
    state.done[f"extra {extra}"] = _digest(lines)
    state.write(folder)


def _check_disk(folder: Path, need_bytes: int) -> None:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < need_bytes:
        raise UserError(
            f"{existing} has {free / 1e9:.1f} GB free, about {need_bytes / 1e9:.0f} GB are needed",
            "free some space, or name a folder on another disk in REALTOON_CACHE",
        )
