"""run.py's first half: arguments, checks, host and environment with the standard library alone.

The second half (inside.py) is the same run.py started again by the environment's Python.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from . import arguments, environment, locks, paths, sources
from .console import Stages, make_streams_safe, say, warn
from .errors import UserError
from .sources import Host

_HANDOVER = "--handover"
_EXTRAS = {"test": ["test"], "bench": ["test"]}


def main(argv: list[str]) -> int:
    """Run a command line. Returns: the exit code; every mistake is one line on stderr."""
    make_streams_safe()
    _end_like_ctrl_c()
    try:
        if argv[:1] == [_HANDOVER]:
            from . import inside

            return inside.main(json.loads(argv[1]), argv[2:])
        return _outside(argv)
    except UserError as error:
        warn(str(error))
        return 1
    except KeyboardInterrupt:
        warn("Stopped.")
        return 130
    except Exception as error:
        warn(_unexpected(error))
        return 1


def _end_like_ctrl_c() -> None:
    # So that a host that we started is ended by the same path, whoever ends us.
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _unexpected(error: Exception) -> str:
    """One line; the traceback goes to a file that a report can quote."""
    name = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    log = paths.cache_folder() / "logs" / f"error-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc(), "utf-8")
    except OSError as problem:
        return str(UserError(name, f"check the cache folder ({problem})"))
    if isinstance(error, OSError):
        return str(UserError(name, f"check the disk and its permissions; details are in {log}"))
    return str(UserError(f"unexpected {name}", f"report it with the file {log}"))


def parse(argv: list[str]) -> argparse.Namespace:
    """Parsed arguments; what `test` and `bench` do not know is for pytest or the benchmark."""
    parser = arguments.build()
    if not argv:
        raise UserError("no verb was given", "try `python run.py cartoon`, or --help")
    args, rest = parser.parse_known_args(argv)
    if args.verb in _EXTRAS:
        args.rest = rest
    elif rest:
        parser.error(f"unknown argument {rest[0]!r}")
    return args


def _outside(argv: list[str]) -> int:
    args = parse(argv)
    arguments.check(args)
    cache = paths.cache_folder()
    if args.verb == "weights" and args.action in (None, "list", "download"):
        from . import weights

        return weights.main(args, cache)
    if args.verb == "plan":
        from . import plan

        return plan.main(args)
    if args.verb == "restore":
        from . import gpen_weights

        # Before an environment is made for nothing.
        gpen_weights.require(sources.find_local(args.comfyui, cache, paths.PACK_ROOT), cache)
    if args.verb == "realistic" and not args.tiny:
        from . import qwen_weights

        qwen_weights.require(sources.find_local(args.comfyui, cache, paths.PACK_ROOT), cache)
    _check_cache(cache)
    stages = Stages()
    host: Host | None = None
    if args.verb == "queue" and args.server:
        with stages.time("environment"):
            made = environment.ensure_client(cache)
    else:
        with stages.time("host"), locks.only_one(cache / "locks" / "host.lock", "ComfyUI"):
            host = sources.find(args.comfyui, cache)
        with stages.time("environment"):
            made = environment.ensure(host, _extras(args), cache)
    handover = {
        "cache": str(cache),
        "host": host.to_json() if host else None,
        "seconds": stages.seconds,
    }
    return _go_on(made.python, handover, argv)


def _extras(args: argparse.Namespace) -> list[str]:
    if args.verb in arguments.PICTURE_VERBS and args.photo is None:
        return ["demo"]
    return _EXTRAS.get(args.verb, [])


def _check_cache(cache: Path) -> None:
    try:
        (cache / "models").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {cache} cannot be made ({error.strerror or error})",
            "name another one in REALTOON_CACHE",
        ) from error
    if not os.access(cache, os.W_OK | os.X_OK):
        raise UserError(
            f"the cache folder {cache} does not take new files",
            "name another one in REALTOON_CACHE",
        )


def _go_on(python: Path, handover: dict, argv: list[str]) -> int:
    """Start run.py again in the environment."""
    script = str(paths.PACK_ROOT / "run.py")
    command = [str(python), script, _HANDOVER, json.dumps(handover), *argv]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        # In place of this process: signals and the exit code need no passing on.
        os.execv(command[0], command)
    # exec on Windows returns to the shell at once; both get Ctrl-C, so we only wait.
    child = subprocess.Popen(command)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            say("Ending.")
