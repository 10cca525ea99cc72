"""What a phase of a run takes of memory, from its beginning to its end. Names no host module."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import psutil
import torch

from ..engine import vram_words

_PAUSE_S = 0.1
_LEAST_SHARE = 0.05
_process = psutil.Process()


@dataclass(frozen=True)
class Reading:
    """Bytes at a moment, or the most of several. used: by tensors, on a CPU by this process.
    reserved: by torch's allocator. others: by other processes on the device. predicted: what a
    card was to have for this phase, 0 where no plan is known."""

    used: int = 0
    reserved: int = 0
    others: int = 0
    predicted: int = 0

    def most(self, other: Reading) -> Reading:
        """The larger of each."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Reading(*(max(pair) for pair in pairs))


def reading(device: torch.device, paged: int = 0, peak: bool = False) -> Reading:
    """What is taken now.

    paged: bytes of weights on the device that the host holds beside torch's allocator. peak: on a
    CUDA device, the most since its counter was reset.
    """
    if device.type != "cuda":
        own = _process.memory_info().rss
        memory = psutil.virtual_memory()
        return Reading(own, own, max(0, memory.total - memory.available - own))
    free, total = torch.cuda.mem_get_info(device)
    now = torch.cuda.memory_reserved(device)
    others = max(0, total - free - now - paged)
    if not peak:
        return Reading(torch.cuda.memory_allocated(device) + paged, now + paged, others)
    most = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return Reading(most[0] + paged, most[1] + paged, others)


@contextlib.contextmanager
def polled(see: Callable[[], None]) -> Iterator[None]:
    """Call ``see`` every 100 ms, from a thread of its own, while this is entered."""
    done = threading.Event()

    def poll() -> None:
        while not done.wait(_PAUSE_S):
            see()

    thread = threading.Thread(target=poll, name="VRAM Guard", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def ceiling(device: torch.device, available: int | None) -> Iterator[None]:
    """Torch takes no more of a card than this while it is entered; None leaves it as it is."""
    if available is None:
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    before = _share(device)
    share = max(_LEAST_SHARE, available / total)
    torch.cuda.set_per_process_memory_fraction(min(before, share), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def _share(device: torch.device) -> float:
    """What torch may take now. Older ones and some of its allocators do not tell."""
    try:
        return torch.cuda.get_per_process_memory_fraction(device)
    except (AttributeError, RuntimeError):
        return 1.0


def told(measured: Mapping[str, Reading], device: torch.device) -> list[str]:
    """What was measured, in lines, each with what was predicted."""
    return [f"measured, {phase}: {_told(each, device)}" for phase, each in measured.items()]


def _told(each: Reading, device: torch.device) -> str:
    size = vram_words.size
    if device.type != "cuda":
        text = f"{size(each.used)} of main memory in this process"
        return text + (f" (a card: {size(each.predicted)} predicted)" if each.predicted else "")
    text = f"{size(each.used)} in tensors, {size(each.reserved)} reserved"
    text += f", {size(each.predicted)} predicted" if each.predicted else ""
    return f"{text}; {size(each.others)} by others"
