"""Constants of a frozen TensorFlow graph (GraphDef, .pb), without TensorFlow and without protobuf.

Only what this needs of the wire format is read: nodes, their name, their op, and the tensor of a
Const. Nothing nests deeper than the schema does, so there is no recursion, and no length is trusted
before it is compared with the bytes that are there.

Source: tensorflow/core/framework/{graph,node_def,attr_value,tensor,tensor_shape,types}.proto.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from . import dctnet_layouts, files
from .errors import WeightsError

LIMIT_BYTES = 64 * files.MIB
# A DCT-Net graph has 200 nodes and 2,000 fields; this many are refused in a tenth of a second.
MAX_FIELDS = 40_000
MAX_RANK = 8
MAX_ELEMENTS = LIMIT_BYTES // 4

_VARINT, _I64, _BYTES, _I32 = 0, 1, 2, 5
_NODE, _NAME, _OP, _ATTR = 1, 1, 2, 5
_KEY, _VALUE, _TENSOR = 1, 2, 8
_DTYPE, _SHAPE, _CONTENT, _FLOAT_VAL, _DOUBLE_VAL, _HALF_VAL = 1, 2, 4, 5, 6, 13
_DIM, _DIM_SIZE, _UNKNOWN_RANK = 2, 1, 3
_DTYPES = {1: "F32", 2: "F64", 19: "F16", 14: "BF16", 3: "I32", 9: "I64", 7: "a string"}
_TORCH = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}

Span = tuple[int, int]
Field = tuple[int, int, int, Span]  # number, wire type, varint value, span of the payload


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    content: Span | None
    values: tuple[Span, ...]


def read_constants(
    path: Path, names: re.Pattern[str] = dctnet_layouts.FROZEN
) -> dict[str, torch.Tensor]:
    """Every floating-point Const node whose name `names` finds (re.search), as stored.

    Returns: name -> tensor in the graph's dtype and layout (convolutions HWIO).
    Raises: WeightsError.
    """
    return {name: entry.load() for name, entry in scan(path, names).tensors.items()}


def scan(path: Path, names: re.Pattern[str]) -> files.Contents:
    """Describe the Const nodes that `names` finds; nothing of their content is read.

    Raises: WeightsError for a file that is not a GraphDef, is truncated, or repeats a name.
    """
    size = files.check(path, LIMIT_BYTES)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Scan(path, data, min(size, len(data)), names).run()
    except (OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(path, "a readable file", str(error), files.AGAIN) from None


class _Scan:
    """One pass over the bytes of a graph."""

    def __init__(self, path: Path, data: mmap.mmap, size: int, names: re.Pattern[str]) -> None:
        self.path = path
        self.data = data
        self.size = size
        self.names = names
        self.fields_left = MAX_FIELDS

    def run(self) -> files.Contents:
        found: dict[str, files.Stored] = {}
        nodes = 0
        for number, wire, _, span in self.fields((0, self.size)):
            if number > 5 or (number == _NODE and wire != _BYTES):
                self.refuse("a frozen TensorFlow graph", f"an unknown field {number} in it")
            if number != _NODE:
                continue
            nodes += 1
            name, entry = self.node(span)
            if entry is None:
                continue
            if name in found:
                self.refuse("one constant of each name", f"two of the name {name}")
            found[name] = entry
        if nodes == 0:
            self.refuse("a frozen TensorFlow graph", "a file without a single node")
        return files.Contents(found, kind=f"a frozen graph of {nodes:,} nodes")

    def node(self, span: Span) -> tuple[str, files.Stored | None]:
        name = op = b""
        attributes: list[Span] = []
        for number, wire, _, inner in self.fields(span):
            if wire != _BYTES:
                continue
            if number == _NAME:
                name = self.take(inner, 4096)
            elif number == _OP:
                op = self.take(inner, 256)
            elif number == _ATTR:
                attributes.append(inner)
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("a frozen TensorFlow graph", "a node whose name is not text")
        if not text:
            self.refuse("a frozen TensorFlow graph", "a node without a name")
        if op != b"Const" or not self.names.search(text):
            return text, None
        for attribute in attributes:
            tensor = self.attribute(text, attribute)
            if tensor is not None:
                return text, self.stored(text, tensor)
        self.refuse(f"a value in the constant {text}", "none")

    def attribute(self, name: str, span: Span) -> _Tensor | None:
        key, value = b"", None
        for number, wire, _, inner in self.fields(span):
            if number == _KEY and wire == _BYTES:
                key = self.take(inner, 256)
            elif number == _VALUE and wire == _BYTES:
                value = inner
        if key != b"value" or value is None:
            return None
        for number, wire, _, inner in self.fields(value):
            if number == _TENSOR and wire == _BYTES:
                return self.tensor(name, inner)
        return None

    def tensor(self, name: str, span: Span) -> _Tensor:
        dtype, shape, content = "an unknown type", (), None
        wanted = {_FLOAT_VAL: _I32, _DOUBLE_VAL: _I64, _HALF_VAL: _VARINT}
        values: list[Span] = []
        for number, wire, value, inner in self.fields(span):
            if number == _DTYPE and wire == _VARINT:
                dtype = _DTYPES.get(value, f"TensorFlow's type {value}")
            elif number == _SHAPE and wire == _BYTES:
                shape = self.shape(name, inner)
            elif number == _CONTENT and wire == _BYTES:
                content = inner
            elif number in wanted and wire in (_BYTES, wanted[number]):
                values.append(inner)
        return _Tensor(dtype, shape, content, tuple(values))

    def shape(self, name: str, span: Span) -> tuple[int, ...]:
        sizes: list[int] = []
        for number, wire, value, inner in self.fields(span):
            if number == _UNKNOWN_RANK and value:
                self.refuse(f"a shape for {name}", "an unknown rank")
            if number != _DIM or wire != _BYTES:
                continue
            size = 0
            for dim_number, dim_wire, dim_value, _ in self.fields(inner):
                if dim_number == _DIM_SIZE and dim_wire == _VARINT:
                    size = dim_value
            sizes.append(size)
        count = 1
        for size in sizes:
            count *= size
            if len(sizes) > MAX_RANK or count > MAX_ELEMENTS:
                self.refuse(
                    f"a constant that fits the file in {name}", f"the shape {_short(sizes)}"
                )
        return tuple(sizes)

    def stored(self, name: str, tensor: _Tensor) -> files.Stored:
        """Lengths are compared here, so that `load` cannot ask for more than the file holds."""
        path = self.path
        if tensor.dtype not in _TORCH:
            self.refuse(f"floating-point numbers in {name}", f"{tensor.dtype} instead")
        dtype = _TORCH[tensor.dtype]
        count = 1
        for size in tensor.shape:
            count *= size
        if tensor.content is not None and tensor.content[1] > tensor.content[0]:
            start, end = tensor.content
            if end - start != count * dtype.itemsize:
                self.refuse(f"{count * dtype.itemsize:,} bytes in {name}", f"{end - start:,} bytes")
            return files.Stored(
                tensor.dtype,
                tensor.shape,
                lambda: (
                    torch.frombuffer(
                        bytearray(files.read_at(path, start, end - start)), dtype=dtype
                    ).reshape(tensor.shape)
                    if count
                    else torch.empty(tensor.shape, dtype=dtype)
                ),
            )
        values = self.repeated(name, tensor, dtype, count)
        if not 1 <= values.numel() <= count:
            self.refuse(f"{count:,} numbers in {name}", f"{values.numel():,}")
        return files.Stored(tensor.dtype, tensor.shape, lambda: _fill(values, tensor.shape, count))

    def repeated(self, name: str, tensor: _Tensor, dtype: torch.dtype, count: int) -> torch.Tensor:
        """The `*_val` form: packed or one by one; half floats come as varints of their bits."""
        length = sum(end - start for start, end in tensor.values)
        if length > count * max(dtype.itemsize, 3):
            self.refuse(f"{count:,} numbers in {name}", f"{length:,} bytes of them")
        if dtype.itemsize == 2:
            bits: list[int] = []
            for start, end in tensor.values:
                while start < end:
                    value, start = self.varint(start, end)
                    bits.append(value & 0xFFFF)
                    self.spend()
            data = b"".join(value.to_bytes(2, "little") for value in bits)
        else:
            data = b"".join(self.data[start:end] for start, end in tensor.values)
        if len(data) % dtype.itemsize:
            self.refuse(f"whole numbers of {dtype.itemsize} bytes in {name}", f"{len(data)} bytes")
        if not data:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(data), dtype=dtype)

    def fields(self, span: Span) -> Iterator[Field]:
        """Fields of one message: number, wire type, value where it is a varint, payload."""
        at, end = span
        while at < end:
            self.spend()
            start_of_tag = at
            tag, at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            value, start = 0, at
            if number == 0:
                self.refuse("a frozen TensorFlow graph", f"a broken field at byte {start_of_tag:,}")
            if wire == _VARINT:
                value, at = self.varint(at, end)
            elif wire == _I64:
                at += 8
            elif wire == _I32:
                at += 4
            elif wire == _BYTES:
                length, start = self.varint(at, end)
                at = start + length
            else:
                self.refuse("a frozen TensorFlow graph", f"a broken field at byte {start_of_tag:,}")
            if at > end:
                self.refuse(
                    f"{at:,} bytes or more", f"{end:,} (a truncated file, or not a frozen graph)"
                )
            yield number, wire, value, (start, at)

    def varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                self.refuse("a whole number", f"the end of the data at byte {end:,}")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at
        self.refuse("a frozen TensorFlow graph", f"a number without an end at byte {at:,}")

    def take(self, span: Span, limit: int) -> bytes:
        if span[1] - span[0] > limit:
            self.refuse(f"names of at most {limit} bytes", f"one of {span[1] - span[0]:,} bytes")
        return self.data[span[0] : span[1]]

    def spend(self) -> None:
        self.fields_left -= 1
        if self.fields_left < 0:
            self.refuse(
                "the graph of this network (some hundred nodes)",
                f"more than {MAX_FIELDS:,} fields",
            )

    def refuse(self, expected: str, got: str) -> NoReturn:
        raise WeightsError(self.path, expected, got, files.AGAIN)


def _fill(values: torch.Tensor, shape: tuple[int, ...], count: int) -> torch.Tensor:
    """TensorFlow stores a run of equal trailing numbers once: the last one fills the rest."""
    full = torch.empty(count, dtype=values.dtype)
    full[: values.numel()] = values
    full[values.numel() :] = values[-1]
    return full.reshape(shape)


def _short(sizes: list[int]) -> str:
    shown = " × ".join(str(size) for size in sizes[:6])
    return shown + (" × …" if len(sizes) > 6 else "")
