"""run.py's second half, in the environment: one function a verb."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from pathlib import Path

from . import bootstrap
from .console import Stages
from .errors import UserError
from .sources import Host

_MODULES = {
    "cartoon": "cartoon",
    "restore": "restore",
    "realistic": "realistic",
    "queue": "queue_jobs",
    "serve": "serve",
    "weights": "weights",
    "test": "checks",
    "bench": "checks",
}


@dataclass(frozen=True)
class Run:
    """What the first half hands over."""

    args: argparse.Namespace
    cache: Path
    stages: Stages
    maybe_host: Host | None

    @property
    def host(self) -> Host:
        if self.maybe_host is None:
            raise UserError("this needs a ComfyUI of our own", "leave --server out")
        return self.maybe_host


def main(handover: dict, argv: list[str]) -> int:
    """Run one verb. Returns: the exit code. Raises: UserError."""
    args = bootstrap.parse(argv)
    run = Run(
        args,
        Path(handover["cache"]),
        Stages(handover["seconds"]),
        Host.from_json(handover["host"]) if handover["host"] else None,
    )
    module = importlib.import_module(f".{_MODULES[args.verb]}", __package__)
    return module.run(run)
