"""`run.py bench cartoon`: every figure of the cartoon part, ours beside each peer, in one run.

Peers that are not installed, and figures whose weights or photos are not here, are named as not
measured. Exit code 1 where a figure falls short of its bound.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _pack  # noqa: E402
from _measure import machine, threads_here  # noqa: E402
from _table import Row, Table  # noqa: E402

DOCS = """# Benchmarks

Written by `python run.py bench cartoon --markdown docs/benchmarks.md`. Every row of a table comes
from one process run on one machine, which should have nothing else to do: on a busy one the
runtimes lose unequally. "met" and "SHORT" hold a figure to the bound in its row.

- Times against a peer: the same weights, picture and threads; after a warm-up the two take turns,
  and the ratio is the median of the rounds' own ratios. Every peer gets its best settings on a
  processor: TensorFlow the published frozen graph, OpenVINO that graph at a fixed size in float32,
  ONNX Runtime a model written for it at a fixed size with all optimisations. Nothing of ours is
  compiled.
- Parity: the uint8 pictures of our network and of the frozen graph; the largest difference of all
  runtimes, and the share of values that differ.
- Everything around the network: a 1024² photo from a file to a file; all that is not inside
  DCT-Net, which is decoding, finding and aligning faces, pasting, mixing and encoding.
- Memory: the process's high-water mark while a picture is drawn, less what it held before and less
  the output.

## Cartoon

Measured on: {machine}. {packages}.

{table}
"""


class _Parser(argparse.ArgumentParser):
    """A mistake is one line and exit code 1, as with run.py's own arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{message}. Next step: see `python {self.prog} --help`.\n")


def parse(argv: list[str]) -> SimpleNamespace:
    """The command line's settings."""
    parser = _Parser(prog="run.py bench cartoon", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    parser.add_argument("--rounds", type=int, help="rounds of each timing (default 7, quick 3)")
    parser.add_argument("--threads", type=int, default=threads_here(), help="for us and for peers")
    parser.add_argument(
        "--styles",
        type=Path,
        default=os.environ.get("REALTOON_STYLES") or None,
        help="a folder of *.safetensors styles (default: REALTOON_STYLES)",
    )
    parser.add_argument(
        "--photo",
        type=Path,
        default=os.environ.get("REALTOON_SOLVAY") or None,
        help="the Solvay conference of 1927, 29 faces (default: REALTOON_SOLVAY)",
    )
    parser.add_argument(
        "--faces",
        type=Path,
        default=os.environ.get("REALTOON_FACES") or None,
        help="face detector weights (default: REALTOON_FACES, or what run.py has fetched)",
    )
    parser.add_argument("--only", help="comma-separated: " + ", ".join(GROUPS))
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    settings = SimpleNamespace(**vars(parser.parse_args(argv)))
    settings.rounds = settings.rounds or (3 if settings.quick else 7)
    for name in ("styles", "photo", "faces"):
        value = getattr(settings, name)
        if value is not None and not Path(value).exists():
            parser.error(f"--{name}: {value} does not exist")
        setattr(settings, name, Path(value) if value is not None else None)
    unknown = set((settings.only or "").split(",")) - {""} - set(GROUPS)
    if unknown:
        parser.error(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    return settings


def _network(name: str) -> Callable[[SimpleNamespace], Iterator[Row]]:
    def run(settings: SimpleNamespace) -> Iterator[Row]:
        import _cartoon_network

        return getattr(_cartoon_network, name)(settings)

    return run


def _pipeline(name: str) -> Callable[[SimpleNamespace], Iterator[Row]]:
    def run(settings: SimpleNamespace) -> Iterator[Row]:
        import _cartoon_pipeline

        return getattr(_cartoon_pipeline, name)(settings)

    return run


# Speed first: it is the most easily disturbed by what a run leaves behind.
GROUPS: dict[str, Callable[[SimpleNamespace], Iterator[Row]]] = {
    "speed": _network("speed"),
    "around": _pipeline("around"),
    "loading": _network("loading"),
    "parity": _network("parity"),
    "strength": _pipeline("strength"),
    "batch": _pipeline("batch"),
    "tiles": _pipeline("tiles"),
    "faces": _pipeline("faces"),
    "memory": _pipeline("memory"),
    "command": _pipeline("command"),
}


def main(argv: list[str] | None = None) -> int:
    """Measure, show, and tell by the exit code whether every bound is met."""
    settings = parse(sys.argv[1:] if argv is None else argv)
    _pack.load()
    import torch

    torch.set_num_threads(settings.threads)
    table = Table("Cartoon: RealToon beside its peers")
    sys.stdout.write(f"{machine()}. {packages()}.\n")
    sys.stdout.flush()
    chosen = settings.only.split(",") if settings.only else list(GROUPS)
    for name in chosen:
        _measure(name, settings, table)
    table.show()
    if settings.markdown is not None:
        text = DOCS.format(machine=machine(), packages=packages(), table=table.markdown())
        settings.markdown.write_text(text, encoding="utf-8")
    return 1 if table.short else 0


def _measure(name: str, settings: SimpleNamespace, table: Table) -> None:
    """Add a group's rows. A figure that breaks is short; the others are still measured."""
    try:
        for row in GROUPS[name](settings):
            table.add(row)
    except Exception as error:
        sys.stderr.write(traceback.format_exc())
        table.add(Row(name, f"failed: {type(error).__name__}: {error}", met=False))


def packages() -> str:
    """Versions of what takes part."""
    from importlib.metadata import PackageNotFoundError, version

    names = ("torch", "tensorflow", "tensorflow-cpu", "openvino", "onnxruntime")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
