"""What the benchmarks' commands share: arguments, the run over all groups, the written page."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import _docs
import _pack
from _measure import machine, threads_here
from _table import Row, Table

Group = Callable[[SimpleNamespace], Iterator[Row]]


@dataclass(frozen=True)
class Benchmark:
    """One command.

    title: its section in docs/benchmarks.md. told: what its table is called on a terminal. notes:
    Markdown, how its figures are taken. groups: in the order in which they are measured. folders:
    options that name a file or a folder -> (environment variable, help). takes_part: distributions
    whose versions are told. apart: groups that take so long that they run only when they are named,
    and whose figures have a section of their own.
    """

    title: str
    told: str
    description: str
    notes: str
    groups: Mapping[str, Group]
    folders: Mapping[str, tuple[str, str]]
    takes_part: Sequence[str]
    apart: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.title.lower()


class _Parser(argparse.ArgumentParser):
    """A mistake is one line and exit code 1, as with run.py's own arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{message}. Next step: see `python {self.prog} --help`.\n")


def group(module: str, name: str) -> Group:
    """A group's function, imported when it is its turn."""

    def run(settings: SimpleNamespace) -> Iterator[Row]:
        return getattr(importlib.import_module(module), name)(settings)

    return run


def parse(benchmark: Benchmark, argv: Sequence[str]) -> SimpleNamespace:
    """The command line's settings."""
    groups = benchmark.groups
    prog = f"run.py bench {benchmark.name}"
    parser = _Parser(prog=prog, description=benchmark.description)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    parser.add_argument("--rounds", type=int, help="rounds of each timing (default 7, quick 3)")
    parser.add_argument("--threads", type=int, default=threads_here(), help="for us and for peers")
    for name, (variable, told) in benchmark.folders.items():
        default = os.environ.get(variable) or None
        parser.add_argument(
            f"--{name}", type=Path, default=default, help=f"{told} (default: {variable})"
        )
    parser.add_argument("--only", help=_only(benchmark))
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    settings = SimpleNamespace(**vars(parser.parse_args(argv)))
    settings.rounds = settings.rounds or (3 if settings.quick else 7)
    for name in benchmark.folders:
        value = getattr(settings, name)
        if value is not None and not Path(value).exists():
            parser.error(f"--{name}: {value} does not exist")
        setattr(settings, name, Path(value) if value is not None else None)
    unknown = set((settings.only or "").split(",")) - {""} - set(groups)
    if unknown:
        parser.error(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    return settings


def _only(benchmark: Benchmark) -> str:
    told = "comma-separated: " + ", ".join(benchmark.groups)
    return told + (f" (only so: {', '.join(benchmark.apart)})" if benchmark.apart else "")


def run(benchmark: Benchmark, argv: Sequence[str]) -> int:
    """Measure, show, and tell by the exit code whether every bound is met."""
    settings = parse(benchmark, argv)
    _pack.load()
    import torch

    torch.set_num_threads(settings.threads)
    table = Table(f"{benchmark.title}: {benchmark.told}")
    measured_on = f"{machine()}. {_versions(benchmark.takes_part)}."
    sys.stdout.write(f"{measured_on}\n")
    sys.stdout.flush()
    usual = [name for name in benchmark.groups if name not in benchmark.apart]
    chosen = settings.only.split(",") if settings.only else usual
    for name in chosen:
        _measure(name, benchmark.groups[name], settings, table)
    table.show()
    if settings.markdown is not None:
        title, parts = benchmark.title, [f"Measured on: {measured_on}", table.markdown()]
        if set(chosen) <= set(benchmark.apart):
            # How it is measured stands in the benchmark's own section, which sorts before this.
            title = f"{title}: {', '.join(chosen)}"
        else:
            parts.insert(0, benchmark.notes.strip())
        _docs.write(settings.markdown, title, "\n\n".join(parts))
    return 1 if table.short else 0


def _measure(name: str, group: Group, settings: SimpleNamespace, table: Table) -> None:
    """Add a group's rows. A figure that breaks is short; the others are still measured."""
    try:
        for row in group(settings):
            table.add(row)
    except Exception as error:
        sys.stderr.write(traceback.format_exc())
        table.add(Row(name, f"failed: {type(error).__name__}: {error}", met=False))


def _versions(names: Sequence[str]) -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
