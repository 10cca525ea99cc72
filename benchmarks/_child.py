"""A measurement in a process of its own, where nothing that ran before takes memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class ChildError(RuntimeError):
    """The process failed; the text is the last line that it wrote."""


def measured(script: str, arguments: Sequence[object]) -> dict[str, Any]:
    """Run a script beside this one. Returns: its last line on stdout, which is JSON.

    Raises: ChildError.
    """
    line = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, encoding="utf-8")
    if done.returncode != 0:
        raise ChildError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout.splitlines()[-1])
