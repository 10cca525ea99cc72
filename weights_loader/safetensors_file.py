"""The safetensors format: header checked in full before a byte of tensor data is read.

Written here as well, because the official writer orders metadata at random: the same tensors must
give the same file, so that a published SHA-256 can be reproduced.

Source: huggingface/safetensors README, section "Format".
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import files
from .errors import WeightsError
from .mapped_file import MappedFile

LIMIT_HEADER_BYTES = files.MIB
"""Of the small networks the largest has 201 tensors and a header of 25 kB."""
MAX_RANK = 8
_MAX_SIZE = 1 << 48

_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "U16": 2, "U32": 4, "U64": 8, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip
_TENSOR = re.compile(
    r'"([^"\\\x00-\x1f]*)": ?\{"dtype": ?"([A-Z0-9_]+)", ?"shape": ?(\[[0-9, ]{0,160}\]), ?'
    r'"data_offsets": ?\[(0|[1-9][0-9]{0,14}), ?(0|[1-9][0-9]{0,14})\]\}'
)
"""A tensor in a header, as the format's own writer and Python's json spell it, without numbers of
thousands of digits. It cannot be found within a text, where quotes are escaped."""
_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _TORCH.items()}


def size_of(stored: files.Stored) -> int:
    """Bytes that a tensor described by `scan` takes, on disk as in memory."""
    return _needed(stored.dtype, stored.shape)


def scan(
    path: Path, limit_bytes: int, *, header_bytes: int = LIMIT_HEADER_BYTES, mapped: bool = False
) -> files.Contents:
    """Describe a safetensors file; no tensor is read.

    header_bytes: the largest header taken.
    mapped: tensors of any dtype are views of the file (see MappedFile), not float copies.
    Raises: WeightsError for a broken header, tensors that overlap, leave gaps, or do not end where
    the file ends.
    """
    head = read_header(path, limit_bytes, header_bytes=header_bytes)
    tensors: dict[str, files.Stored] = {}
    mapping = MappedFile(path, head.size) if mapped else None
    in_order = sorted(head.entries.items(), key=lambda item: item[1][2])
    for name, (dtype, shape, (begin, end)) in in_order:
        span = (head.start + begin, end - begin)
        if mapping is None:
            load = _loader(path, name, dtype, shape, span)
        else:
            load = mapping.loader(name, dtype, shape, span)
        tensors[name] = files.Stored(dtype, shape, load)
    return files.Contents(tensors, head.metadata, "a safetensors file")


Entry = tuple[str, tuple[int, ...], tuple[int, int]]
"""dtype, shape, and where its bytes lie in the data: [begin, end)."""


@dataclass(frozen=True)
class Header:
    """A checked header. size: of the file; start: of the data in it, both in bytes."""

    size: int
    start: int
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(
    path: Path,
    limit_bytes: int,
    *,
    header_bytes: int = LIMIT_HEADER_BYTES,
    max_tensors: int | None = None,
) -> Header:
    """Check a safetensors header in full, in time by the number of its tensors.

    Raises: WeightsError, see `scan`, and for more than `max_tensors` tensors.
    """
    size = files.check(path, limit_bytes)
    if size < 8:
        _refuse(path, "a header of 8 bytes or more", f"a file of {size} bytes")
    length = int.from_bytes(files.read_at(path, 0, 8), "little")
    if length > min(size - 8, header_bytes):
        _refuse(
            path,
            f"a header of at most {min(size - 8, header_bytes):,} bytes",
            f"one that claims {length:,} (a truncated file, or not safetensors)",
        )
    raw = files.read_at(path, 8, length)
    # Counted before it is parsed, which takes seconds for a hundred thousand.
    count = raw.count(b'"data_offsets"')
    if max_tensors is not None and count > max_tensors:
        _refuse(path, f"at most {max_tensors:,} tensors", f"{count:,}")
    entries, metadata = _at_once(raw) or _one_by_one(path, raw)
    _check_layout(path, entries, size - 8 - length)
    return Header(size, 8 + length, entries, metadata)


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in one step: whole, or not at all.

    tensors: any of float64, float32, float16, bfloat16; any device and strides.
    Raises: WeightsError where the folder or the disk does not let it.
    """
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    ordered = sorted(tensors.items())
    offset = 0
    for name, tensor in ordered:
        length = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + length],
        }
        offset += length
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % 8)
    # One tensor at a time: a second copy of a whole network would be in the way.
    blobs = (_bytes(tensor) for _, tensor in ordered)
    replace_with(path, itertools.chain((len(header).to_bytes(8, "little"), header), blobs))


def _bytes(tensor: torch.Tensor) -> bytes:
    dense = tensor.detach().cpu().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().tobytes()


def replace_with(path: Path, parts: Iterable[bytes]) -> None:
    """Put `parts` at `path` atomically; on failure whatever was there stays, and nothing else."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".realtoon-", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's own mode shuts other users out; a model folder is often shared.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise WeightsError(
            path,
            "a place that can be written",
            error.strerror or str(error),
            "check the folder's permissions and the free disk space",
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def json_object(path: Path, data: bytes, what: str = "a header") -> dict[str, Any]:
    """Parse JSON that must be an object without a name twice, NaN or infinity.

    what: how an error calls it. Raises: WeightsError.
    """
    try:
        found = _parse(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else str(error)
        _refuse(path, f"{what} in JSON", f"a broken one ({reason[:120]})")
    if not isinstance(found, dict):
        _refuse(path, f"{what} that lists names", f"a JSON {type(found).__name__}")
    return found


def _parse(text: str) -> Any:  # noqa: ANN401
    """Raises: ValueError, also for a name twice, NaN and infinity; RecursionError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a name stands in it twice")
        return result

    def no_constant(text: str) -> NoReturn:
        raise ValueError(f"{text} stands in it")

    return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)


def _at_once(raw: bytes) -> tuple[dict[str, Entry], dict[str, str]] | None:
    """What a sound header in the usual spelling tells; None for any other, which `_one_by_one`
    takes twice as long for: it makes objects of everything first."""
    try:
        pieces = _TENSOR.split(raw.decode("utf-8"))
        names, dtypes, shapes = pieces[1::6], pieces[2::6], pieces[3::6]
        begins, ends = list(map(int, pieces[4::6])), list(map(int, pieces[5::6]))
        # One pair in place of all tensors: what stands before and after them must be sound too.
        rest = _parse(f'{pieces[0]}"":{{}}{pieces[-1]}')
        metadata = rest.pop("__metadata__", {})
        "".join(metadata.values())
        lists = {text: json.loads(text) for text in set(shapes)}
        if not all(map(_is_shape, lists.values())):
            return None
        kinds = list(zip(dtypes, shapes, strict=True))
        needed = {kind: _needed(kind[0], lists[kind[1]]) for kind in set(kinds)}
    except (LookupError, ValueError, RecursionError, AttributeError, TypeError):
        return None
    shaped = {text: tuple(sizes) for text, sizes in lists.items()}
    spans = zip(begins, ends, strict=True)
    entries = zip(dtypes, map(shaped.__getitem__, shapes), spans, strict=True)
    found = dict(zip(names, entries, strict=True))
    sound = (
        rest == {"": {}}
        and len(found) == len(names)
        and "__metadata__" not in found
        and set(pieces[6:-1:6]) <= {",", ", "}
        and list(map(operator.add, begins, map(needed.__getitem__, kinds))) == ends
        and _sizes(ends)
    )
    return (found, metadata) if sound else None


def _one_by_one(path: Path, raw: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    """The same of any header. Raises: WeightsError for what is wrong with it."""
    header = json_object(path, raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse(path, "metadata of names and texts", "something else")
    return {name: _entry(path, name, entry) for name, entry in header.items()}, metadata


def _entry(path: Path, name: str, entry: object) -> Entry:
    """One entry. Raises: WeightsError for what is wrong with it."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if dtype not in _SIZES if isinstance(dtype, str) else True:
        _refuse(path, f"a known dtype for {name}", _shown(dtype))
    if not _is_shape(shape):
        _refuse(path, f"a shape for {name}", _shown(shape))
    if not _sizes(offsets) or len(offsets) != 2:  # type: ignore[arg-type]
        _refuse(path, f"two data offsets for {name}", _shown(offsets))
    begin, end = offsets  # type: ignore[misc]
    needed = _needed(dtype, shape)  # type: ignore[arg-type]
    if end - begin != needed:
        _refuse(path, f"{needed:,} bytes for {name}", f"{end - begin:,}")
    return dtype, tuple(shape), (begin, end)  # type: ignore[return-value,arg-type]


def _needed(dtype: str, shape: Sequence[int]) -> int:
    return _SIZES[dtype] * math.prod(shape)


def _shown(value: object) -> str:
    """The first 80 characters of a value; thousands of long numbers take a second to be written."""
    return repr(value[:40] if isinstance(value, list) else value)[:80]


def _is_shape(value: object) -> bool:
    return _sizes(value) and len(value) <= MAX_RANK  # type: ignore[arg-type]


def _sizes(value: object) -> bool:
    if type(value) is not list:
        return False
    if not value:
        return True
    return set(map(type, value)) == {int} and 0 <= min(value) <= max(value) < _MAX_SIZE


def _check_layout(path: Path, entries: Mapping[str, Entry], data_bytes: int) -> None:
    at = 0
    for begin, end in sorted([span for _, _, span in entries.values()]):
        if begin != at:
            name = next(name for name, (*_, span) in entries.items() if span == (begin, end))
            what = "overlapping tensors" if begin < at else "a gap"
            _refuse(path, f"{name} to start at byte {at:,} of the data", f"{begin:,} ({what})")
        at = end
    if at != data_bytes:
        what = "a truncated file" if at > data_bytes else "bytes that belong to no tensor"
        _refuse(path, f"{at:,} bytes of tensors", f"{data_bytes:,} ({what})")


def _loader(
    path: Path, name: str, dtype: str, shape: tuple[int, ...], span: tuple[int, int]
) -> Callable[[], torch.Tensor]:
    offset, length = span

    def load() -> torch.Tensor:
        if dtype not in _TORCH:
            _refuse(path, f"floating-point numbers in {name}", dtype)
        if not length:
            return torch.empty(shape, dtype=_TORCH[dtype])
        data = bytearray(files.read_at(path, offset, length))
        return torch.frombuffer(data, dtype=_TORCH[dtype]).reshape(shape)

    return load


def _refuse(path: Path, expected: str, got: str) -> NoReturn:
    raise WeightsError(path, expected, got, files.AGAIN)
