"""A figure, and the table of them, as text on a terminal and as Markdown in docs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

HEADER = ("what", "ours", "peer", "ratio", "bound", "")


@dataclass(frozen=True)
class Row:
    """One measured figure.

    met: None where there is nothing to hold it to, or where what it needs is missing.
    """

    what: str
    ours: str
    peer: str = ""
    ratio: str = ""
    bound: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "SHORT", None: "-"}[self.met]

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.what, self.ours, self.peer, self.ratio, self.bound, self.verdict)


def missing(what: str, needs: str, bound: str = "") -> Row:
    """A figure that could not be taken here, and what it needs."""
    return Row(what, f"not measured: {needs}", bound=bound)


class Table:
    """Shows rows as they are measured (they take seconds to minutes) and keeps them."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        self.rows.append(row)
        beside = f" | {row.peer} {row.ratio}".rstrip() if row.peer or row.ratio else ""
        bound = f" (must be {row.bound})" if row.bound else ""
        _write(f"{row.verdict:>5}  {row.what}: {row.ours}{beside}{bound}\n")

    @property
    def short(self) -> list[Row]:
        return [row for row in self.rows if row.met is False]

    def show(self) -> None:
        """The whole table, aligned, with a last line that counts."""
        lines = [HEADER, *(row.cells for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
        _write(f"\n{self.title}\n")
        for index, line in enumerate(lines):
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            _write("  ".join(cells).rstrip() + "\n")
            if index == 0:
                _write("  ".join("-" * width for width in widths) + "\n")
        met = sum(row.met is True for row in self.rows)
        not_measured = sum(row.ours.startswith("not measured") for row in self.rows)
        _write(f"\n{met} met, {len(self.short)} short, {not_measured} not measured\n")

    def markdown(self) -> str:
        """The rows as a Markdown table."""
        return "\n".join(
            [_markdown_line(HEADER), _markdown_line(["---"] * len(HEADER))]
            + [_markdown_line(row.cells) for row in self.rows]
        )


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
