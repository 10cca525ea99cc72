"""All that the command line writes, and the clock that times its stages."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def make_streams_safe() -> None:
    """Never let a character that a terminal cannot show end the run."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def say(text: str = "") -> None:
    """One line on stdout, at once (output may be piped)."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def human_size(size_bytes: float) -> str:
    """1536 -> '1.5 kB'."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


class Stages:
    """Seconds of each named stage, in the order of their first use."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def line(self) -> str:
        """'environment 0.1 s, host 0.0 s, … = 20.3 s'"""
        parts = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        return f"{parts} = {sum(self.seconds.values()):.1f} s"


class TextProgress:
    """A progress line without any package, for downloads before the environment exists."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = -1

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        live = sys.stderr.isatty()
        step = 1 if live else 25
        percent = int(100 * done_bytes / total_bytes) // step * step if total_bytes else -1
        if percent == self._shown and total_bytes:
            return
        self._shown = percent
        amount = human_size(done_bytes)
        text = f"{self._label}: {amount}"
        if total_bytes:
            text = f"{self._label}: {percent} % of {human_size(total_bytes)}"
        if live:
            sys.stderr.write(f"\r{text}   " + ("\n" if done_bytes == total_bytes else ""))
            sys.stderr.flush()
        elif total_bytes:
            warn(text)
