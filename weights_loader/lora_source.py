"""A LoRA file's tensors: described by its header, then lent as views of one mapping or one buffer.

A safetensors file is mapped as a whole: a fresh buffer of 320 MB costs more to take from the
system than the bytes cost to copy, and who moves adapters to a device copies them there anyway. On
Windows it is read into one buffer with one call instead, since a mapped file cannot be replaced
there while a model uses it.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch

from . import files, loading, safetensors_file, torch_file
from .errors import WeightsError
from .mapped_file import DTYPES

LIMIT_BYTES = 16 << 30
LIMIT_HEADER_BYTES = 8 * files.MIB
"""Trainers keep their settings in the metadata, some a list of all pictures."""
MAX_TENSORS = 32_768
"""Five times the largest kind: every module of 60 blocks with six tensors each."""

MAX_OPS = 250_000
"""Of a pickle: 846 modules with alpha take about 115,000."""

_INFINITY = {
    "F64": 0x7FF << 52, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E5M2": 0x7C,
    "F8_E4M3": 0x7F,
}  # fmt: skip
"""Bits of the smallest number that is not finite, sign left out."""
FLOATS = tuple(_INFINITY)
_CHUNK_BYTES = 1 << 19
_WRITTEN = "wait until it is written, then run again"


@dataclass(frozen=True)
class Source:
    """A described file. entries: key -> dtype, shape and more. size: of the file, in bytes."""

    path: Path
    size: int
    entries: Mapping[str, tuple[str, tuple[int, ...]] | safetensors_file.Entry]
    metadata: Mapping[str, str]
    _header: safetensors_file.Header | None = None
    _stored: Mapping[str, files.Stored] = field(default_factory=dict)

    def load(self, keys: Iterable[str], mapped: bool | None = None) -> dict[str, torch.Tensor]:
        """Tensors in their stored dtypes and shapes; every number is known to be finite.

        mapped: whether they are views of the file (see above); None: but on Windows.
        Raises: WeightsError for a file that was changed since it was described, for NaN and
        infinity.
        """
        header = self._header
        if header is None:
            return {key: self._loaded(key) for key in keys}
        wanted = sorted(keys, key=lambda key: header.entries[key][2])
        if mapped is None:
            mapped = sys.platform != "win32"
        return _lend(self.path, header, wanted, mapped)

    def _loaded(self, key: str) -> torch.Tensor:
        tensor = self._stored[key].load()
        if tensor.is_floating_point() and tensor.numel() and not loading.is_finite(tensor):
            _not_finite(self.path, key)
        return tensor


def open_source(path: Path) -> Source:
    """Describe a file; no number is read. Raises: WeightsError."""
    size = files.check(path, LIMIT_BYTES)
    kind = files.sniff(path, size)
    if kind == "safetensors":
        header = safetensors_file.read_header(
            path, LIMIT_BYTES, header_bytes=LIMIT_HEADER_BYTES, max_tensors=MAX_TENSORS
        )
        return Source(path, size, header.entries, header.metadata, header)
    if kind == "graph":
        raise WeightsError(
            path,
            "a LoRA (.safetensors, .pt, .bin)",
            "bytes of an unknown format",
            "use the file that the LoRA's page offers",
        )
    contents = torch_file.scan(
        path, kind, LIMIT_BYTES, inside=("state_dict",), storage_bytes=LIMIT_BYTES, max_ops=MAX_OPS
    )
    entries = {key: (stored.dtype, stored.shape) for key, stored in contents.tensors.items()}
    return Source(path, size, entries, {}, None, contents.tensors)


def _lend(
    path: Path, header: safetensors_file.Header, wanted: list[str], mapped: bool
) -> dict[str, torch.Tensor]:
    spans = {key: header.entries[key] for key in wanted}
    base = header.start + spans[wanted[0]][2][0]
    end = header.start + max(stop for _, _, (_, stop) in spans.values())
    base -= base % mmap.ALLOCATIONGRANULARITY
    buffer = _buffer(path, header.size, base, end, mapped)
    shift = header.start - base
    _check_finite(path, spans, buffer, shift)
    tensors: dict[str, torch.Tensor] = {}
    for key, (dtype, shape, (begin, stop)) in spans.items():
        kind = DTYPES[dtype]
        # Not by way of a view of bytes, which refuses tensors that lie off their boundaries.
        flat = torch.frombuffer(
            buffer, dtype=kind, count=(stop - begin) // kind.itemsize, offset=shift + begin
        )
        tensors[key] = flat if len(shape) == 1 else flat.reshape(shape)
    return tensors


def _buffer(path: Path, size: int, base: int, end: int, mapped: bool) -> mmap.mmap | memoryview:
    try:
        with path.open("rb", buffering=0) as file:
            # A page past the end of a mapped file cannot be refused later: it ends the process.
            now = os.fstat(file.fileno()).st_size
            if now != size:
                raise WeightsError(path, f"the {size:,} bytes it had", f"{now:,}", _WRITTEN)
            if mapped:
                return mmap.mmap(file.fileno(), end - base, access=mmap.ACCESS_COPY, offset=base)
            # Not a bytearray, which is filled with zeros first.
            array = torch.empty(end - base, dtype=torch.uint8).numpy()
            buffer = memoryview(array)  # type: ignore[arg-type]
            file.seek(base)
            at = 0
            while at < len(buffer):
                got = file.readinto(buffer[at:])
                if not got:
                    raise WeightsError(path, f"{end:,} bytes", f"{base + at:,}", _WRITTEN)
                at += got
            return buffer
    except (OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            path,
            "a file that can be read",
            str(error),
            "put it on a local disk and free memory",
        ) from None


def _check_finite(
    path: Path,
    spans: Mapping[str, safetensors_file.Entry],
    buffer: mmap.mmap | memoryview,
    shift: int,
) -> None:
    """Look at each run of neighbours of one dtype at once: single tensors would cost as much again
    in calls."""
    runs: list[tuple[str, int, int]] = []
    for dtype, _, (begin, stop) in spans.values():
        if runs and runs[-1][0] == dtype and runs[-1][2] == begin:
            runs[-1] = (dtype, runs[-1][1], stop)
        else:
            runs.append((dtype, begin, stop))
    if all(_finite(buffer, dtype, shift + begin, shift + stop) for dtype, begin, stop in runs):
        return
    for key, (dtype, _, (begin, stop)) in spans.items():
        if not _finite(buffer, dtype, shift + begin, shift + stop):
            _not_finite(path, key)


def _finite(buffer: mmap.mmap | memoryview, dtype: str, begin: int, end: int) -> bool:
    """Judged by bits, in the processor's cache: as signed integers the largest positive number is
    the one next to infinity, as unsigned ones the most negative."""
    infinity = _INFINITY.get(dtype)
    if infinity is None:
        return True
    size = DTYPES[dtype].itemsize
    # numpy's largest of integers runs on this thread alone: torch's wakes a pool for each piece.
    data = torch.frombuffer(buffer, dtype=torch.uint8, count=end - begin, offset=begin).numpy()
    for start in range(0, end - begin, _CHUNK_BYTES):
        piece = data[start : start + _CHUNK_BYTES]
        if piece.view(f"i{size}").max() >= infinity:
            return False
        if piece.view(f"u{size}").max() >= infinity | 1 << (8 * size - 1):
            return False
    return True


def _not_finite(path: Path, key: str) -> NoReturn:
    next_step = "use another version of this LoRA: its training broke off"
    raise WeightsError(path, f"finite numbers in {key}", "NaN or infinity", next_step)
