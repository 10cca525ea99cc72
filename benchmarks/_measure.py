"""Times and memory, taken so that a busy machine disturbs both sides alike."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

MIB = 1 << 20

T = TypeVar("T")


def threads_here() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> str:
    """One line: processor, cores, memory, system, Python."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f", {total / 2**30:.0f} GiB"
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{name}, {threads_here()} cores{memory}, {system}, Python {platform.python_version()}"


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, settle_s: float = 0.2
) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one warm-up of each.

    Every round runs every call once, starting with another one each time. The pause lets a
    runtime's spinning worker threads go to sleep before the next one's turn.
    """
    for call in calls.values():
        call()
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(settle_s)
            started = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of each round's own ratio, so that a slow spell of the machine cancels out."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def median_seconds(call: Callable[[], object], rounds: int) -> float:
    """The median over `rounds` calls after one warm-up."""
    return statistics.median(interleaved({"": call}, rounds)[""])


class Clock:
    """Seconds by stage; ``around`` a function adds what its calls take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def around(self, name: str, call: Callable[..., T]) -> Callable[..., T]:
        def timed(*arguments: object, **named: object) -> T:
            with self.stage(name):
                return call(*arguments, **named)

        return timed


class PeakMemory:
    """Highest resident memory while a block ran, in bytes. `resident_before` is taken on entry.

    On Linux the kernel's own high-water mark is reset and read, so nothing is missed between
    samples; elsewhere psutil is asked every few milliseconds.
    """

    def __init__(self) -> None:
        self.resident_before = 0
        self.peak = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        gc.collect()
        if sys.platform == "linux" and _reset_high_water():
            self.resident_before = _status_bytes("VmRSS")
            yield
            self.peak = _status_bytes("VmHWM")
        else:
            with self._sampled():
                yield

    @contextmanager
    def _sampled(self) -> Iterator[None]:
        import psutil

        process = psutil.Process()
        stop = threading.Event()
        self.resident_before = self.peak = process.memory_info().rss

        def sample() -> None:
            while not stop.wait(0.005):
                self.peak = max(self.peak, process.memory_info().rss)

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    @property
    def growth(self) -> int:
        return self.peak - self.resident_before


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")
