"""docs/benchmarks.md: a head for all, and a section of its own for each benchmark."""

from __future__ import annotations

import re
from pathlib import Path

HEAD = """# Benchmarks

Each section is written by its own command, such as `python run.py bench cartoon --markdown
docs/benchmarks.md`, and leaves the others as they are. Every row of a table comes from one run on
one machine, which should have nothing else to do: on a busy one the sides lose unequally. "met" and
"SHORT" hold a figure to the bound in its row.

Times against a peer: the same weights, picture and threads; after a warm-up the two take turns, and
the ratio is the median of the rounds' own ratios. Nothing of ours is compiled.
"""


def write(path: Path, title: str, text: str) -> None:
    """Put a section into the page; the other sections stay, in the order of their titles."""
    sections = read(path) if path.exists() else {}
    sections[title] = text.strip() + "\n"
    parts = [f"## {name}\n\n{sections[name]}" for name in sorted(sections)]
    path.write_text("\n".join([HEAD, *parts]), encoding="utf-8")


def read(path: Path) -> dict[str, str]:
    """Title of each section -> its text, without blank lines around it."""
    parts = re.split(r"^## (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        title.strip(): text.strip() + "\n"
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }
