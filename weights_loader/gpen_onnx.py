"""GPEN as an ONNX model: recognised by its content, judged, then run by onnxruntime as it is.

The few fields that tell what goes in and comes out are read here, with large parts skipped, so that
another network is refused at once and where onnxruntime is not installed too.

Source: onnx/onnx `onnx/onnx.proto` (ModelProto, GraphProto, ValueInfoProto).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

from . import files
from .errors import WeightsError, listed
from .gpen_layout import SIZES, USE_GPEN

LIMIT_BYTES = 1024 * files.MIB
MAX_FIELDS = 100_000
MAX_NAME_BYTES = 4096

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# ModelProto's fields and their wire types.
_MODEL = {1: _VARINT, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _VARINT, 6: _BYTES, 7: _BYTES, 8: _BYTES,
          14: _BYTES, 20: _BYTES, 25: _BYTES, 26: _BYTES}  # fmt: skip
_GRAPH, _INITIALIZER, _INPUT, _OUTPUT = 7, 5, 11, 12
# TensorProto.DataType of what a face may be handed over as.
_FLOATS = {1: torch.float32, 10: torch.float16}
_INSTALL = (
    "install it with `python -m pip install onnxruntime`, using the Python that runs ComfyUI, and "
    "start ComfyUI again; or use the .pth of the same name, which needs nothing more"
)


class _BrokenError(Exception):
    """The bytes are no protobuf message, or end too soon."""


@dataclass(frozen=True)
class _Value:
    """What a graph takes or gives. shape: None for a size that is not fixed; or no shape at all."""

    name: str
    dtype: int
    shape: tuple[int | None, ...] | None


class OnnxGPEN:
    """A GPEN generator that onnxruntime runs. It has no weights to move or to cast.

    path: the file. size: of the faces in and out, in pixels.
    """

    def __init__(self, path: Path, size: int, given: _Value, session: Any) -> None:  # noqa: ANN401
        self.path = path
        self.size = size
        self._input = given.name
        self._dtype = _FLOATS[given.dtype]
        self._session = session
        self._output = session.get_outputs()[0].name

    def restore(
        self, faces_bchw: torch.Tensor, check: Callable[[], None] | None = None
    ) -> torch.Tensor:
        """Restore aligned faces, one after another: none depends on what else is in the batch.

        faces_bchw: (B,3,S,S) float, RGB, [-1,1], S this model's `size`.
        check: called before each face; what it raises goes through.
        Returns: same shape, dtype and device, not clamped.
        Raises: ValueError for another shape, WeightsError where the model fails or gives another.
        """
        one = (3, self.size, self.size)
        if faces_bchw.dim() != 4 or tuple(faces_bchw.shape[1:]) != one:
            raise ValueError(f"faces of shape (B, {one}), not {tuple(faces_bchw.shape)}")
        restored = torch.empty_like(faces_bchw)
        for index, face in enumerate(faces_bchw.detach().to("cpu", self._dtype)):
            if check is not None:
                check()
            restored[index] = self._run(face[None].contiguous())
        return restored

    def _run(self, face: torch.Tensor) -> torch.Tensor:
        try:
            (result,) = self._session.run([self._output], {self._input: face.numpy()})
        # onnxruntime's errors share no base class of their own.
        except Exception as error:
            _refuse(self.path, "a model that runs", str(error), "use the .pth of the same name")
        if tuple(result.shape) != tuple(face.shape):
            _refuse(self.path, f"a result of shape {tuple(face.shape)}", str(tuple(result.shape)))
        return torch.from_numpy(result)[0]


def is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX model, by its content. Raises nothing; reads a few bytes."""
    try:
        size = files.check(Path(path), LIMIT_BYTES)
        with Path(path).open("rb") as file:
            return _find_graph(file, size) is not None
    except (WeightsError, OSError):
        return False


def open_onnx(path: Path) -> OnnxGPEN:
    """Open a model that takes a face and gives one of the same size.

    path: an ONNX model with one input (1 or any, 3, S, S), S from 256 to 2048, of any name.
    Returns: the model, on CUDA where onnxruntime was built for it, else on the CPU.
    Raises: WeightsError for other models, and where onnxruntime is not installed.
    """
    path = Path(path)
    given, size = describe(path)
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        _refuse(path, "onnxruntime, which runs ONNX models", f"none ({error})", _INSTALL)
    options = onnxruntime.SessionOptions()
    # Errors alone: they are raised as well, and warnings about folded constants help nobody.
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Memory that a face took goes back when it is done.
    options.enable_cpu_mem_arena = False
    known = onnxruntime.get_available_providers()
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [provider for provider in wanted if provider in known]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    # onnxruntime's errors share no base class of their own.
    except Exception as error:
        _refuse(path, "an ONNX model that onnxruntime opens", str(error),
                "use the .pth of the same name, or a newer onnxruntime")  # fmt: skip
    return OnnxGPEN(path, size, given, session)


def describe(path: Path) -> tuple[_Value, int]:
    """The input of a model that maps a face to a face, and the face's size; or an error."""
    size = files.check(path, LIMIT_BYTES)
    try:
        with path.open("rb") as file:
            span = _find_graph(file, size)
            if span is None:
                _refuse(path, "an ONNX model", "something else")
            if span[1] > size:
                _refuse(path, f"{span[1]:,} bytes or more", f"{size:,} (a truncated file)",
                        files.AGAIN)  # fmt: skip
            inputs, outputs = _ends(file, span)
    except OSError as error:
        _refuse(path, "a readable file", str(error), "check its permissions and the disk")
    except _BrokenError as error:
        _refuse(path, "a whole ONNX model", f"a broken one ({error})", files.AGAIN)
    if len(inputs) != 1 or not outputs:
        names = [value.name for value in inputs]
        _refuse(path, "one input, the face", listed(names, "inputs"))
    wanted = f"an input (1, 3, S, S) of float numbers, S {' or '.join(map(str, SIZES))}"
    given, first = inputs[0], outputs[0]
    shape = given.shape or ()
    side = shape[2] or 0 if len(shape) == 4 else 0
    face = (3, side, side)
    any_or_one = shape[:1] in ((None,), (1,))
    if side not in SIZES or shape[1:] != face or not any_or_one or given.dtype not in _FLOATS:
        _refuse(path, wanted, _shown(given))
    if first.shape is not None and not _fits(first.shape, face):
        _refuse(path, f"a face of {side} pixels as its first output", _shown(first))
    return given, side


def _fits(shape: tuple[int | None, ...], face: tuple[int, ...]) -> bool:
    """Whether an output, some of whose sizes may not be fixed, can be the face."""
    if len(shape) != 4:
        return False
    return all(got in (None, size) for got, size in zip(shape[1:], face, strict=True))


def _shown(value: _Value) -> str:
    sizes = ["any" if size is None else str(size) for size in value.shape or ()]
    return f"{value.name!r:.60} of shape ({', '.join(sizes)}), data type {value.dtype}"


# --- protobuf ----------------------------------------------------------------------------------

Span = tuple[int, int]
# Number, wire type, value of a number, and where its bytes lie otherwise.
_Field = tuple[int, int, int, Span]


class _Proto:
    """Reads the fields of nested messages from an open file, at most MAX_FIELDS in all."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.left = MAX_FIELDS

    def fields(self, span: Span) -> Iterator[_Field]:
        """The fields of a message. A field may claim to end behind `span`: see `inside`."""
        at, end = span
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise _BrokenError(f"more than {MAX_FIELDS:,} fields")
            key, at = self.number(at, end)
            wire, value, start = key & 7, 0, at
            if wire == _VARINT:
                value, at = self.number(at, end)
            elif wire == _BYTES:
                length, start = self.number(at, end)
                at = start + length
            elif wire in (_FIXED32, _FIXED64):
                at += 4 if wire == _FIXED32 else 8
            else:
                raise _BrokenError(f"field {key >> 3} of type {wire}")
            yield key >> 3, wire, value, (start, at)

    def inside(self, span: Span) -> Iterator[_Field]:
        """The same, each field whole."""
        for field in self.fields(span):
            if field[3][1] > span[1]:
                raise _BrokenError("a field longer than what holds it")
            yield field

    def parts(self, span: Span, number: int) -> Iterator[Span]:
        """Where the messages or texts of this number lie."""
        return (part for got, wire, _, part in self.inside(span) if (got, wire) == (number, _BYTES))

    def number(self, at: int, end: int) -> tuple[int, int]:
        """A varint, and where it ends."""
        self.file.seek(at)
        value = 0
        for index, byte in enumerate(self.file.read(min(10, end - at))):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value, at + index + 1
        raise _BrokenError("a number without an end")

    def text(self, span: Span) -> str:
        """A name."""
        self.file.seek(span[0])
        return self.file.read(min(span[1] - span[0], MAX_NAME_BYTES)).decode("utf-8", "replace")


def _find_graph(file: BinaryIO, size: int) -> Span | None:
    """Where a model's graph lies; it may claim more than the file holds. None: not a model."""
    try:
        for index, (number, wire, value, span) in enumerate(_Proto(file).fields((0, size))):
            # The version of the format stands first and is small.
            if _MODEL.get(number) != wire or (not index and not (number == 1 and 0 < value < 256)):
                return None
            if number == _GRAPH:
                return span
    except _BrokenError:
        return None
    return None


def _ends(file: BinaryIO, graph: Span) -> tuple[list[_Value], list[_Value]]:
    """Inputs and outputs of a graph. Old files list their weights among the inputs: left out."""
    proto = _Proto(file)
    weights: set[str] = set()
    inputs: list[_Value] = []
    outputs: list[_Value] = []
    for number, wire, _, part in proto.inside(graph):
        if (number, wire) == (_INITIALIZER, _BYTES):
            weights.update(proto.text(name) for name in proto.parts(part, 8))
        elif (number, wire) == (_INPUT, _BYTES):
            inputs.append(_value(proto, part))
        elif (number, wire) == (_OUTPUT, _BYTES):
            outputs.append(_value(proto, part))
    return [value for value in inputs if value.name not in weights], outputs


def _value(proto: _Proto, span: Span) -> _Value:
    """A ValueInfoProto: its name, and the tensor_type of its type."""
    name, dtype = "", 0
    shape: tuple[int | None, ...] | None = None
    for number, wire, _, part in proto.inside(span):
        if (number, wire) == (1, _BYTES):
            name = proto.text(part)
        elif (number, wire) == (2, _BYTES):
            for tensor in proto.parts(part, 1):
                dtype, shape = _tensor_type(proto, tensor)
    return _Value(name, dtype, shape)


def _tensor_type(proto: _Proto, span: Span) -> tuple[int, tuple[int | None, ...] | None]:
    dtype, sizes = 0, None
    for number, wire, value, part in proto.inside(span):
        if (number, wire) == (1, _VARINT):
            dtype = value
        elif (number, wire) == (2, _BYTES):
            sizes = tuple(_dimension(proto, each) for each in proto.parts(part, 1))
    return dtype, sizes


def _dimension(proto: _Proto, span: Span) -> int | None:
    for number, wire, value, _ in proto.inside(span):
        # Some exporters write -1 for a size that is not fixed.
        if (number, wire) == (1, _VARINT) and value < 1 << 31:
            return value
    return None


def _refuse(path: Path, expected: str, got: str, next_step: str = USE_GPEN) -> NoReturn:
    raise WeightsError(path, expected, got, next_step)
