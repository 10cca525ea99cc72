"""Calls to pip, in the environment that they are for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .console import say
from .errors import UserError

# `realtoon` must be built for nothing: only wheels and plain requirements pass through here.
_QUIET = ["--disable-pip-version-check", "--no-input"]


def last_error(output: str) -> str:
    """The one line of pip's output that says why."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.upper().startswith("ERROR")]
    if any(sign in output for sign in ("Failed to establish", "timed out", "Max retries")):
        return "the package index does not answer"
    chosen = (errors or lines or ["pip said nothing"])[-1]
    return chosen.removeprefix("ERROR:").strip()[:300]


def venv_python(folder: Path) -> Path:
    if sys.platform == "win32":
        return folder / "Scripts" / "python.exe"
    return folder / "bin" / "python"


def make_venv(base_python: Path, folder: Path) -> None:
    """A virtual environment with pip, made by base_python.

    Raises: UserError where the system's Python comes without the parts for it.
    """
    result = subprocess.run(
        [str(base_python), "-m", "venv", "--clear", str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode == 0:
        return
    output = result.stdout + result.stderr
    if "ensurepip" in output or "No module named venv" in output:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise UserError(
            f"{base_python} cannot make virtual environments",
            f"on Debian and Ubuntu `sudo apt install python{version}-venv`, elsewhere use the "
            "Python from python.org",
        )
    raise UserError(
        f"no virtual environment could be made in {folder} ({last_error(output)})",
        "check that the folder takes new files, or name another one in REALTOON_CACHE",
    )


def some_python_with_pip(cache: Path) -> Path:
    """This interpreter if it has pip, else a small environment of our own."""
    if find_spec("pip") is not None:
        return Path(sys.executable)
    folder = cache / "envs" / "tools"
    if not venv_python(folder).is_file():
        make_venv(Path(sys.executable), folder)
    return venv_python(folder)


def install(
    python: Path,
    requirements: Sequence[str],
    *,
    constraints: Path | None = None,
    options: Sequence[str] = (),
) -> None:
    """pip install, its own progress shown.

    Raises: UserError. What was installed until then stays, so the next run goes on from there.
    """
    if _nothing_to_do(python, requirements):
        return
    command = [str(python), "-m", "pip", "install", *_QUIET, *options]
    if constraints is not None:
        command += ["--constraint", str(constraints)]
    command += ["--", *requirements]
    if _shown(command) != 0:
        shown = ", ".join(requirements[:3]) + (" …" if len(requirements) > 3 else "")
        raise UserError(
            f"pip could not install {shown} (its reason stands above)",
            "check the network and the free disk space and run the same command again; "
            "what has arrived is kept",
        )


def _shown(command: list[str]) -> int:
    """Run pip with its output shown; in a log without the pages of what is there already."""
    if sys.stdout.isatty():
        # Through a pipe pip would not draw its bars.
        return subprocess.run(command, env=_environment(), stdin=subprocess.DEVNULL).returncode
    with subprocess.Popen(
        command,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            if not line.startswith("Requirement already satisfied"):
                say(line.rstrip())
    return process.returncode


def _nothing_to_do(python: Path, requirements: Sequence[str]) -> bool:
    """Whether all is there, asked without the network and without pages of 'already satisfied'."""
    command = [str(python), "-m", "pip", "install", "--dry-run", "--no-index", "--quiet", *_QUIET]
    environment = {
        key: value for key, value in _environment().items() if not key.startswith("PIP_")
    }
    result = subprocess.run(
        [*command, "--", *requirements],
        env={**environment, "PIP_CONFIG_FILE": os.devnull},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return result.returncode == 0


def _environment() -> dict[str, str]:
    # A user's settings for pip stay (mirrors, proxies); what would install elsewhere does not.
    dropped = ("PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV", "PYTHONHOME")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return {**kept, "PIP_USER": "0"}
