"""Results that are kept for the next run, within a limit, by what they were made of."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

_HASHED_AT_ONCE = 16 << 20
_HASHERS = 4


class Kept:
    """The results used last, at most ``limit_bytes`` of them."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Memory of all that is kept."""
        return sum(size for _, size in self._entries.values())

    def find(self, key: Hashable) -> Any:  # noqa: ANN401
        """What was kept under a key, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def keep(self, key: Hashable, value: object, size: int) -> None:
        """Keep a value of ``size`` bytes; the ones not used for longest make room."""
        self._entries.pop(key, None)
        if size > self.limit_bytes:
            return
        self._entries[key] = (value, size)
        total = self.bytes
        while total > self.limit_bytes:
            _, (_, gone) = self._entries.popitem(last=False)
            total -= gone

    def clear(self) -> None:
        """Let all of it go."""
        self._entries.clear()


def content_key(image_bchw: Tensor) -> tuple[Any, ...]:
    """Two pictures have the same key if their numbers are the same.

    image_bchw: (1,C,H,W), fastest where BHWC is how it lies in memory.
    """
    rows_hwc = image_bchw[0].permute(1, 2, 0)
    step = max(1, _HASHED_AT_ONCE // max(1, rows_hwc[0].numel() * rows_hwc.element_size()))

    def digest(top: int) -> bytes:
        part = rows_hwc[top : top + step].contiguous().cpu()
        # Processors have instructions for it, and hashing lets other threads run.
        return hashlib.sha256(part.numpy().data).digest()

    tops = range(0, len(rows_hwc), step)
    with ThreadPoolExecutor(max_workers=_HASHERS) as hashers:
        digests = b"".join(hashers.map(digest, tops))
    whole = hashlib.sha256(digests).hexdigest()
    return (tuple(image_bchw.shape), str(image_bchw.dtype), whole)
