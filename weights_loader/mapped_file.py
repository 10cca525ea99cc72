"""Tensors that are views of a file: a network larger than memory is opened without being read.

The mappings are private, so what is written into such a tensor stays in this process. They cover
windows of a file, not all of it: Linux refuses a private mapping larger than its memory, and each
mapping of Python holds a file descriptor, of which a process has about a thousand.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import torch

from . import files
from .errors import WeightsError

WINDOW_BYTES = 1 << 30
SMALL_BYTES = 1 << 15
"""Tensors below this are read: a page for each bias would cost more than it spares."""

# Older torch lacks some of them, such as float8_e8m0fnu and uint16.
DTYPES = {
    name: getattr(torch, dtype)
    for name, dtype in {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
        "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16",
        "U32": "uint32", "U64": "uint64", "BOOL": "bool", "C64": "complex64",
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    }.items()
    if hasattr(torch, dtype)
}  # fmt: skip


class MappedFile:
    """One file whose tensors are mapped window by window, each at its first tensor.

    A window is given back to the system with the last tensor that lies in it.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._lock = threading.Lock()
        self._open: list[int] | None = None
        self._windows: dict[int, weakref.ref[mmap.mmap]] = {}

    def loader(
        self, name: str, dtype: str, shape: tuple[int, ...], span: tuple[int, int]
    ) -> Callable[[], torch.Tensor]:
        """How to load a tensor at `span` (offset, length), both in bytes of the file.

        To be called in the order in which the tensors lie in the file, which makes the windows.
        Returns: a function that gives it in its stored dtype and shape, and raises WeightsError.
        """
        offset, length = span
        window = self._place(offset, length) if length >= SMALL_BYTES else None

        def load() -> torch.Tensor:
            if dtype not in DTYPES:
                raise WeightsError(
                    self._path,
                    f"a dtype of {name} that torch {torch.__version__} knows",
                    dtype,
                    "use a file of another dtype, or a newer torch",
                )
            kind = DTYPES[dtype]
            if not length:
                return torch.empty(shape, dtype=kind)
            self._unchanged()
            if window is None:
                data = bytearray(files.read_at(self._path, offset, length))
                return torch.frombuffer(data, dtype=kind).reshape(shape)
            begin, end = window
            buffer = self._window(begin, end)
            # Not by way of a view of bytes: it refuses tensors that lie off their boundaries, as
            # some writers leave them, and a copy of each of those could fill the memory.
            tensor = torch.frombuffer(
                buffer, dtype=kind, count=length // kind.itemsize, offset=offset - begin
            )
            return tensor.reshape(shape)

        return load

    def _place(self, offset: int, length: int) -> list[int]:
        """The window of a tensor, [begin, end): its neighbours share the list and make it grow."""
        if self._open is None or offset + length - self._open[0] > WINDOW_BYTES:
            self._open = [offset - offset % mmap.ALLOCATIONGRANULARITY, 0]
        self._open[1] = offset + length
        return self._open

    def _window(self, begin: int, end: int) -> mmap.mmap:
        with self._lock:
            reference = self._windows.get(begin)
            found = reference() if reference is not None else None
            if found is not None:
                return found
            try:
                with self._path.open("rb") as file:
                    made = mmap.mmap(
                        file.fileno(), end - begin, access=mmap.ACCESS_COPY, offset=begin
                    )
            except (OSError, ValueError) as error:
                raise WeightsError(
                    self._path,
                    "a file that can be mapped into memory",
                    str(error),
                    "put it on a local disk and close other programs",
                ) from None
            self._windows[begin] = weakref.ref(made)
            return made

    def _unchanged(self) -> None:
        # A page past the end of a mapped file cannot be refused later: it ends the process.
        size = files.check(self._path, 1 << 62)
        if size != self._size:
            raise WeightsError(
                self._path,
                f"the {self._size:,} bytes it had when it was opened",
                f"{size:,}",
                "wait until it is written, then run again",
            )
