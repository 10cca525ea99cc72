"""The one error that every reader of this package raises for a file it will not take."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

_LONG = 400


class WeightsError(ValueError):
    """A weights file that is refused, and why.

    path: the file; its name alone appears in the message, the whole path in the attribute.
    expected, got: short noun phrases that read well after "expected" and "got".
    next_step: what the person can do about it, a sentence without a full stop.
    """

    def __init__(self, path: str | PathLike[str], expected: str, got: str, next_step: str) -> None:
        super().__init__(path, expected, got, next_step)
        self.path = Path(path)
        self.expected = _one_line(expected)
        self.got = _one_line(got)
        self.next_step = next_step

    def __str__(self) -> str:
        name = _one_line(self.path.name or str(self.path))
        return f"{name}: expected {self.expected}, got {self.got}. Next step: {self.next_step}."


def listed(names: list[str], what: str) -> str:
    """How many names there are and the first of them, such as "5 missing: a, b, c, …"."""
    shown = ", ".join(name[:80] for name in names[:3])
    return f"{len(names)} {what}: {shown}{', …' if len(names) > 3 else ''}"


def _one_line(text: str) -> str:
    """Names come out of hostile files: no control characters, no megabytes."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in text[:_LONG])
    return clean if len(text) <= _LONG else clean + "…"
