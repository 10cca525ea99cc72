"""`run.py serve`: ComfyUI in the browser with the pack and its workflows."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

from . import arguments, base_folder, face_weights, paths, server, torch_choice
from .console import say
from .inside import Run

_NOTE = ".shipped.json"


def run(run: Run) -> int:
    """Serve until Ctrl-C. Returns: the exit code. Raises: UserError."""
    base = base_folder.prepare(run.cache / "serve")
    copy_workflows(paths.PACK_ROOT / "workflows", base / "user" / "default" / "workflows")
    face_weights.ensure(run.host, run.cache)
    comfy = server.ComfyServer(
        run.host,
        Path(sys.executable),
        base,
        run.cache / "logs" / "serve.log",
        cpu=torch_choice.needs_cpu_flag(Path(sys.executable)),
        port=run.args.port or arguments.free_port(8188),
        model_folders=server.model_places(run.host, run.cache),
    )
    try:
        with comfy:
            say(f"ComfyUI: {comfy.url}")
            say("Workflows: in the sidebar's Workflows, folder RealToon")
            say(f"Results: {base / 'output'}")
            say(f"Models: {run.cache / 'models'}")
            say("Ctrl-C ends it.")
            while True:
                comfy.raise_if_dead()
                time.sleep(0.5)
    except KeyboardInterrupt:
        say("Ended.")
    return 0


def copy_workflows(source: Path, user_folder: Path) -> list[str]:
    """Put the shipped workflows into the browser's list; a file that was edited there stays.

    Returns: the names that were written.
    """
    folder = user_folder / "RealToon"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / _NOTE
    shipped: dict[str, str] = json.loads(note.read_text("utf-8")) if note.is_file() else {}
    written = []
    for file in sorted(source.glob("*.json")):
        target = folder / file.name
        new = file.read_bytes()
        if target.exists() and _hash(target.read_bytes()) != shipped.get(file.name):
            continue
        target.write_bytes(new)
        shipped[file.name] = _hash(new)
        written.append(file.name)
    note.write_text(json.dumps(shipped), "utf-8")
    return written


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
