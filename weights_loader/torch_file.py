"""PyTorch checkpoints (both formats) and TorchScript archives, described without running them.

A checkpoint's pickle is interpreted by `pickle_reader`, which executes nothing; of a TorchScript
archive the attributes alone are read and its code is never opened. Numbers are read one tensor at a
time, once names and shapes have been judged.

Source: torch/serialization.py (`_save`, `_legacy_save`), torch/csrc/jit/serialization/export.cpp.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import files, pickle_reader
from .errors import WeightsError
from .pickle_reader import PickleError, Storage, TensorView, Thing

LIMIT_PICKLE_BYTES = files.MIB
# PyTorch's own names take about 110 bytes a member.
LIMIT_DIRECTORY_BYTES = files.MIB
MAX_MEMBERS = 4096
MAX_STORAGE_BYTES = 16 * files.MIB
MAX_ATTRIBUTES = 4096
MAX_DEPTH = 32
INSIDE = ("netG", "state_dict", "model_state_dict", "generator", "params")
"""Where a training checkpoint keeps its generator, first that is there."""

_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ZIP_ERRORS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, OSError,
    NotImplementedError, RuntimeError, ValueError, KeyError, IndexError, OverflowError,
)  # fmt: skip
_RESAVE = (
    "open it in PyTorch only if you trust where it comes from, save its generator's state_dict "
    "alone, and use that file"
)

Reader = Callable[[Storage], bytes]


@dataclass(frozen=True)
class _Wanted:
    """What a reader asks of a file: see `scan`."""

    texts: tuple[str, ...]
    inside: tuple[str, ...]
    storage_bytes: int
    max_ops: int


def scan(
    path: Path,
    kind: str,
    limit_bytes: int,
    texts: tuple[str, ...] = (),
    *,
    inside: tuple[str, ...] = INSIDE,
    storage_bytes: int = MAX_STORAGE_BYTES,
    max_ops: int = pickle_reader.MAX_OPS,
) -> files.Contents:
    """Describe the tensors of a checkpoint or archive. Takes time by their number, not their size.

    kind: what `files.sniff` said: "zip", "torch legacy" or "pickle".
    texts: names under which a file may carry metadata: a text beside the tensors of a checkpoint,
        or an extra file of a TorchScript archive.
    inside: keys under which a training checkpoint may keep the network; the first that is there is
        described, else the top level.
    storage_bytes: what one run of numbers may take once a tensor of it is loaded.
    max_ops: steps of its pickle, about 45 for each tensor.
    Raises: WeightsError.
    """
    size = files.check(path, limit_bytes)
    wanted = _Wanted(texts, inside, storage_bytes, max_ops)
    if kind == "zip":
        return _scan_zip(path, limit_bytes, wanted)
    if kind == "torch legacy":
        return _scan_legacy(path, size, wanted)
    stream = io.BytesIO(files.read_at(path, 0, min(size, LIMIT_PICKLE_BYTES)))
    _unpickle(path, stream)
    _refuse(path, "a PyTorch checkpoint", "a bare pickle without tensors")


def _scan_zip(path: Path, limit_bytes: int, wanted: _Wanted) -> files.Contents:
    try:
        with _Directory(path) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
    except _CrowdError:
        _refuse(path, f"an archive of at most {MAX_MEMBERS:,} members", "more than that")
    except _ZIP_ERRORS as error:
        _refuse(path, "a whole zip archive", f"a broken or truncated one ({str(error)[:80]})")
    if sum(info.file_size for info in members.values()) > limit_bytes:
        _refuse(path, f"at most {limit_bytes / files.MIB:.0f} MiB unpacked", "more than that")
    roots = [name.split("/")[0] for name in members if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        _refuse(path, "a PyTorch archive (with one data.pkl in it)", "another zip archive")
    zipped = _Zip(path, roots[0], members)
    if zipped.text("byteorder") not in ("", "little"):
        _refuse(path, "little-endian numbers", "big-endian ones", _RESAVE)
    script = "constants.pkl" in zipped
    stream = io.BytesIO(zipped.read("data.pkl", LIMIT_PICKLE_BYTES))
    value, _ = _unpickle(path, stream, script, wanted.max_ops)
    if script:
        extra = {t: zipped.text(f"extra/{t}") for t in wanted.texts if f"extra/{t}" in zipped}
        return _torchscript(path, value, zipped.storage, wanted, extra)
    return _checkpoint(path, value, zipped.storage, wanted)


class _CrowdError(Exception):
    """An archive of more members than any checkpoint has."""


class _Directory(io.FileIO):
    """An archive that counts its members before zipfile sees them, which keeps an object for each.

    zipfile takes the whole directory with one read; it lies at the end, so a file of gigabytes
    costs no more than a small one.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > LIMIT_DIRECTORY_BYTES:
            raise _CrowdError
        data = super().read(size) or b""
        if data.count(b"PK\x01\x02") > MAX_MEMBERS:
            raise _CrowdError
        return data


@dataclass(frozen=True)
class _Zip:
    """Members of an archive as PyTorch writes it: each stored as it is, under one folder.

    Read by place and not through zipfile, which would open the archive anew for every tensor.
    """

    path: Path
    root: str
    members: Mapping[str, zipfile.ZipInfo]

    def __contains__(self, name: str) -> bool:
        return f"{self.root}/{name}" in self.members

    def read(self, name: str, limit_bytes: int) -> bytes:
        info = self.members[f"{self.root}/{name}"]
        if info.file_size > limit_bytes:
            _refuse(self.path, f"at most {limit_bytes:,} bytes in {name}", f"{info.file_size:,}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            _refuse(
                self.path,
                "an archive as PyTorch writes it",
                f"one that was packed anew ({name} is compressed or encrypted)",
            )
        header = files.read_at(self.path, info.header_offset, 30)
        if header[:4] != b"PK\x03\x04":
            _refuse(self.path, f"the member {name}", "a broken archive")
        start = info.header_offset + 30
        start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = files.read_at(self.path, start, info.file_size)
        if zlib.crc32(data) != info.CRC:
            _refuse(self.path, f"the check sum of {name}", "another one (a damaged file)")
        return data

    def text(self, name: str) -> str:
        """A short text, or nothing where there is no such member."""
        return self.read(name, 4096).decode("utf-8", "replace").strip() if name in self else ""

    def storage(self, storage: Storage) -> bytes:
        name = f"data/{storage.key}"
        expected = storage.count * pickle_reader.SIZES[storage.dtype]
        if name not in self:
            _refuse(self.path, f"the member {name}", "none of this name")
        data = self.read(name, expected)
        if len(data) != expected:
            _refuse(self.path, f"{expected:,} bytes in {name}", f"{len(data):,}")
        return data


def _scan_legacy(path: Path, size: int, wanted: _Wanted) -> files.Contents:
    stream = io.BytesIO(files.read_at(path, 0, min(size, LIMIT_PICKLE_BYTES)))
    magic, _ = _unpickle(path, stream)
    version, _ = _unpickle(path, stream)
    system, _ = _unpickle(path, stream)
    if magic != 0x1950A86A20F9469CFC6C or version != 1001 or not isinstance(system, dict):
        _refuse(path, "a PyTorch checkpoint", "one of an unknown version")
    if system.get("little_endian") is False:
        _refuse(path, "little-endian numbers", "big-endian ones", _RESAVE)
    value, storages = _unpickle(path, stream, max_ops=wanted.max_ops)
    keys, _ = _unpickle(path, stream)
    if not isinstance(keys, list) or not all(isinstance(k, str) and k in storages for k in keys):
        _refuse(path, "a list of its storages", "a broken one")
    offsets: dict[str, int] = {}
    at = stream.tell()
    for key in keys:
        storage = storages[key]
        # Each run of numbers is preceded by its length, eight bytes.
        offsets[key] = at + 8
        at += 8 + storage.count * pickle_reader.SIZES[storage.dtype]
        if at > size:
            _refuse(path, f"{at:,} bytes or more", f"{size:,} (a truncated file)")

    def read(storage: Storage) -> bytes:
        if storage.key not in offsets:
            _refuse(path, f"the numbers of storage {storage.key}", "none")
        length = storage.count * pickle_reader.SIZES[storage.dtype]
        data = files.read_at(path, offsets[storage.key] - 8, 8 + length)
        if int.from_bytes(data[:8], "little") != storage.count:
            _refuse(path, f"{storage.count:,} numbers in storage {storage.key}", "another length")
        return data[8:]

    return _checkpoint(path, value, read, wanted)


def _unpickle(
    path: Path,
    stream: io.BytesIO,
    torchscript: bool = False,
    max_ops: int = pickle_reader.MAX_OPS,
) -> tuple[Any, dict[str, Storage]]:
    try:
        return pickle_reader.read(stream, torchscript, max_ops)
    except PickleError as refused:
        next_step = _RESAVE if refused.code else files.AGAIN
        raise WeightsError(path, "tensors and plain data", str(refused), next_step) from None


def _checkpoint(path: Path, value: object, read: Reader, wanted: _Wanted) -> files.Contents:
    if isinstance(value, Thing):
        _refuse(path, "a dictionary of tensors", f"an object of {value.name}", _RESAVE)
    if not isinstance(value, dict):
        _refuse(path, "a dictionary of tensors", f"a {type(value).__name__}", _RESAVE)
    metadata = {key: value[key] for key in wanted.texts if isinstance(value.get(key), str)}
    state = next((value[key] for key in wanted.inside if isinstance(value.get(key), dict)), value)
    tensors = {
        name: _stored(path, name, view, read, wanted.storage_bytes)
        for name, view in state.items()
        if isinstance(name, str) and isinstance(view, TensorView)
    }
    if not tensors:
        names = [repr(key)[:40] for key in list(state)[:4]]
        _refuse(path, "a dictionary of tensors", f"one without ({', '.join(names)})", _RESAVE)
    return files.Contents(tensors, metadata, "a PyTorch checkpoint")


def _torchscript(
    path: Path, value: object, read: Reader, wanted: _Wanted, metadata: Mapping[str, str]
) -> files.Contents:
    if not isinstance(value, Thing):
        _refuse(path, "a TorchScript module", "an archive without one")
    tensors: dict[str, files.Stored] = {}
    visited: set[int] = set()
    waiting: list[tuple[str, Thing, int]] = [("", value, 0)]
    while waiting:
        prefix, thing, depth = waiting.pop()
        if id(thing) in visited or not isinstance(thing.state, dict):
            continue
        visited.add(id(thing))
        for name, member in thing.state.items():
            full = f"{prefix}{name}"
            if isinstance(member, TensorView):
                tensors[full] = _stored(path, full, member, read, wanted.storage_bytes)
            elif isinstance(member, Thing) and depth < MAX_DEPTH:
                waiting.append((f"{full}.", member, depth + 1))
        if len(tensors) + len(waiting) > MAX_ATTRIBUTES:
            _refuse(path, "the modules of one network", f"more than {MAX_ATTRIBUTES:,}")
    if not tensors:
        _refuse(
            path,
            "a TorchScript module with named parameters",
            "one without (a frozen or optimised module keeps no names)",
            "save it with torch.jit.save before torch.jit.freeze",
        )
    return files.Contents(tensors, metadata, "a TorchScript archive")


def _stored(
    path: Path, name: str, view: TensorView, read: Reader, limit_bytes: int
) -> files.Stored:
    def load() -> torch.Tensor:
        storage = view.storage
        spans = ((n - 1) * s for n, s in zip(view.shape, view.stride, strict=True))
        last = view.offset + sum(spans)
        empty = 0 in view.shape
        if not empty and last >= storage.count:
            _refuse(path, f"{last + 1:,} numbers behind {name}", f"{storage.count:,}")
        if storage.dtype not in _TORCH:
            _refuse(path, f"floating-point numbers in {name}", storage.dtype)
        dtype = _TORCH[storage.dtype]
        # Each tensor reads the whole storage that it is a view of.
        if storage.count * dtype.itemsize > limit_bytes:
            _refuse(path, f"numbers of its own for {name}", "a view of a larger tensor", _RESAVE)
        if empty:
            return torch.empty(view.shape, dtype=dtype)
        flat = torch.frombuffer(bytearray(read(storage)), dtype=dtype)
        return flat.as_strided(view.shape, view.stride, view.offset)

    return files.Stored(view.storage.dtype, view.shape, load)


def _refuse(path: Path, expected: str, got: str, next_step: str = files.AGAIN) -> NoReturn:
    raise WeightsError(path, expected, got, next_step)
