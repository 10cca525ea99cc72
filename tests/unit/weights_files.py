"""Builds weights files for the tests, the good ones and the hostile ones, byte by byte.

Nothing here uses the code under test: the formats are written from their specifications.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

# (out, in, kernel) of Conv, Conv_1 … Conv_9, as TensorFlow-slim numbers them.
CONVS = (
    (32, 3, 7), (32, 32, 3), (64, 32, 3), (64, 64, 3), (128, 64, 3),
    (64, 128, 3), (64, 64, 3), (32, 64, 3), (32, 32, 3), (3, 32, 7),
)  # fmt: skip
# The port's modules in the order of its forward().
PORT = (
    "initial_down.0", "down1.0", "down1.2", "down2.0", "down2.2",
    "up1.0", "up2.0", "up2.2", "last.0", "last.2",
)  # fmt: skip

Tensors = dict[str, torch.Tensor]


def layers() -> list[tuple[str, str, str, tuple[int, int, int]]]:
    """(canonical, TensorFlow, port, (out, in, kernel)) of the 18 convolutions."""
    rows = []
    for i, shape in enumerate(CONVS):
        rows.append((f"convs.{i}", f"Conv_{i}" if i else "Conv", PORT[i], shape))
    for block in range(4):
        for conv in (1, 2):
            port = f"res_blocks.{block}.block.{0 if conv == 1 else 2}"
            rows.append(
                (f"blocks.{block}.conv{conv}", f"block_{block}/conv{conv}", port, (128, 128, 3))
            )
    return rows


def random_style(seed: int = 0, half: bool = False) -> Tensors:
    """Canonical names, OIHW, float32; `half`: numbers that float16 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for canonical, _, _, (out, inner, kernel) in layers():
        tensors[f"{canonical}.weight"] = 0.1 * torch.randn(
            out, inner, kernel, kernel, generator=generator
        )
        tensors[f"{canonical}.bias"] = torch.randn(out, generator=generator)
    if half:
        tensors = {name: tensor.half().float() for name, tensor in tensors.items()}
    return tensors


def tensorflow(tensors: Tensors, separator: str = "/", scope: str = "") -> Tensors:
    """TensorFlow names, convolutions HWIO."""
    named: Tensors = {}
    for canonical, own, _, _ in layers():
        stem = f"{scope}generator/{own}".replace("/", separator)
        weight = tensors[f"{canonical}.weight"].permute(2, 3, 1, 0).contiguous()
        named[f"{stem}{separator}weights"] = weight
        named[f"{stem}{separator}biases"] = tensors[f"{canonical}.bias"]
    return named


def port(tensors: Tensors, scope: str = "") -> Tensors:
    """The PyTorch port's names."""
    return {
        f"{scope}{own}.{leaf}": tensors[f"{canonical}.{leaf}"]
        for canonical, _, own, _ in layers()
        for leaf in ("weight", "bias")
    }


# --- safetensors -------------------------------------------------------------------------------

ST_NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
    torch.int64: "I64",
}  # fmt: skip


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def safetensors_bytes(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    blobs = []
    offset = 0
    for name, tensor in tensors.items():
        blob = raw(tensor)
        header[name] = {
            "dtype": ST_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        offset += len(blob)
        blobs.append(blob)
    data = b"".join(blobs)
    return with_header(header, data)


def with_header(header: object, data: bytes, claim: int | None = None) -> bytes:
    """A safetensors file of any header. claim: another length than the true one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claim is None else claim) + text + data


# --- frozen graphs -----------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def tensor_proto(shape: Iterable[int], body: bytes, dtype: int = 1) -> bytes:
    dims = b"".join(message(2, integer(1, size)) for size in shape)
    return integer(1, dtype) + message(2, dims) + body


def attribute(key: str, value: bytes) -> bytes:
    return message(5, message(1, key.encode()) + message(2, value))


def node(name: str, op: str, *attributes: bytes, inputs: tuple[str, ...] = ()) -> bytes:
    fields = message(1, name.encode()) + message(2, op.encode())
    fields += b"".join(message(3, item.encode()) for item in inputs) + b"".join(attributes)
    return message(1, fields)


def constant(name: str, proto: bytes, dtype: int = 1) -> bytes:
    return node(
        name, "Const", attribute("dtype", integer(6, dtype)), attribute("value", message(8, proto))
    )


def graph_bytes(named: Tensors, extra: bytes = b"") -> bytes:
    """A frozen graph as TensorFlow 1 writes it: constants, `/read` identities, other ops."""
    out = [node("input_image", "Placeholder")]
    for name, tensor in named.items():
        dtype = {torch.float32: 1, torch.float16: 19}[tensor.dtype]
        out.append(
            constant(name, tensor_proto(tensor.shape, message(4, raw(tensor)), dtype), dtype)
        )
        out.append(node(f"{name}/read", "Identity", inputs=(name,)))
    out.append(constant("resize/size", tensor_proto([2], message(4, b"\2\0\0\0\2\0\0\0"), 3), 3))
    out.append(node("output_image", "Cast", inputs=("generator/Conv_9/BiasAdd",)))
    versions = message(4, integer(1, 27))
    return b"".join(out) + extra + versions


# --- PyTorch -----------------------------------------------------------------------------------


def torch_bytes(value: object, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def torch_zip(
    data_pkl: bytes, members: Mapping[str, bytes] | None = None, packed: int = 0
) -> bytes:
    """An archive that looks like torch.save's, around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression=packed) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/version", b"3\n")
        for name, content in (members or {}).items():
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def rezip(whole: bytes, change: Mapping[str, bytes | None]) -> bytes:
    """The same archive with members replaced, or left out where None."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            content = change.get(name.split("/", 1)[1], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return stream.getvalue()


class Trap:
    """Makes a folder when it is unpickled by something that runs pickles."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.makedirs, (str(self.marker),)


def evil_pickle(marker: Path, protocol: int = 2) -> bytes:
    return pickle.dumps({"convs.0.weight": Trap(marker)}, protocol=protocol)


def tensor_pickle(
    count: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
) -> bytes:
    """data.pkl of one tensor "convs.0.weight" over a storage of `count` float32, by hand."""

    def number(value: int) -> bytes:
        size = (value.bit_length() + 8) // 8
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += number(count) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(shape)
    tensor += numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("convs.0.weight") + tensor + b"s."
