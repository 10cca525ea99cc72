"""A lock between processes that the system frees when its holder dies."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .console import say


def _try_lock(handle: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def only_one(path: Path, what: str, poll_s: float = 0.5) -> Iterator[None]:
    """Hold the lock file at path; wait for another process that has it, saying so once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as handle:
        waited = False
        while not _try_lock(handle):
            if not waited:
                say(f"Another run is busy with {what}; waiting for it.")
                waited = True
            time.sleep(poll_s)
        # Closing the file frees the lock on every platform.
        yield


def is_free(path: Path) -> bool:
    """Whether no process holds the lock file at path."""
    try:
        with path.open("r+b") as handle:
            return _try_lock(handle)
    except OSError:
        return False
