"""The ComfyUI that figures about nodes are taken on, each in a process of its own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import _pack
from _child import measured

_pack.load()

from realtoon.host import paths, sources  # noqa: E402

NO_COMFY = "set COMFYUI_PATH to a ComfyUI"
_CASES = "../tests/host"


def folder() -> Path | None:
    """Where ComfyUI lies: COMFYUI_PATH, the one around the pack, or the one in the cache."""
    found = sources.find_local(os.environ.get("COMFYUI_PATH"), paths.cache_folder(), _pack.ROOT)
    return None if found is None else found.folder


def cases(script: str, comfy: Path) -> dict[str, Any]:
    """What one of the host tests' scripts finds in a ComfyUI's own process.

    Raises: ChildError.
    """
    with tempfile.TemporaryDirectory() as base:
        return measured(f"{_CASES}/{script}", [comfy, base])
