"""Files that must be refused: each a name, an ending, what the message says, and how to make it.

Every one is made from its format's specification, without the code under test.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import weights_files as wf

STYLE = wf.random_style(half=True)
FLAGS = {"bgr": True, "same_padding": True, "tf1_upsample": True, "guided_filter": True}

Build = Callable[[Path], None]


def content(data: bytes | Callable[[], bytes]) -> Build:
    return lambda path: path.write_bytes(data() if callable(data) else data) and None


def graph(change: Callable[[wf.Tensors], object]) -> Build:
    def build(path: Path) -> None:
        named = wf.tensorflow(STYLE)
        change(named)
        path.write_bytes(wf.graph_bytes(named))

    return build


def safetensors(change: Callable[[wf.Tensors], object]) -> Build:
    def build(path: Path) -> None:
        named = dict(STYLE)
        change(named)
        path.write_bytes(wf.safetensors_bytes(named))

    return build


def header(change: Callable[[dict], object], data_bytes: int | None = None) -> Build:
    """A sound safetensors file with something wrong in its header."""

    def build(path: Path) -> None:
        whole = wf.safetensors_bytes(STYLE)
        length = struct.unpack("<Q", whole[:8])[0]
        parsed = json.loads(whole[8 : 8 + length])
        change(parsed)
        data = whole[8 + length :]
        path.write_bytes(wf.with_header(parsed, data[:data_bytes]))

    return build


def sparse(size: int, start: bytes) -> Build:
    """A file that claims a size without taking the disk."""

    def build(path: Path) -> None:
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size)

    return build


def cut(data: Callable[[], bytes], keep: float) -> Build:
    def build(path: Path) -> None:
        whole = data()
        path.write_bytes(whole[: int(len(whole) * keep)])

    return build


def official() -> bytes:
    return wf.graph_bytes(wf.tensorflow(STYLE))


def spoiled(tensor: torch.Tensor, value: float) -> torch.Tensor:
    copy = tensor.clone()
    copy.view(-1)[-1] = value
    return copy


def flags(text: str) -> bytes:
    return wf.safetensors_bytes(STYLE, {"realtoon.dctnet": text})


def link(target: str) -> Build:
    return lambda path: path.symlink_to(path.parent / target if target else path)


def evil_zip(path: Path) -> None:
    path.write_bytes(wf.torch_zip(wf.evil_pickle(path.parent / "ran")))


def crowd(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(5000):
            archive.writestr(f"a/{number}", b"")


def bomb(path: Path) -> None:
    path.write_bytes(wf.torch_zip(b"\0" * 200_000_000, packed=zipfile.ZIP_DEFLATED))


def repeated_entry(path: Path) -> None:
    text = b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'
    path.write_bytes(wf.with_header(text, b""))


def text_pickle(lines: bytes) -> Build:
    return content(lines)


def stack_global(path: Path) -> None:
    """The same call, its name put together on the stack (protocol 4)."""
    path.write_bytes(wf.torch_zip(wf.evil_pickle(path.parent / "ran", protocol=4)))


def legacy_evil(path: Path) -> None:
    parts = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    path.write_bytes(b"".join(parts) + wf.evil_pickle(path.parent / "ran"))


def members(count: int, shape: tuple[int, ...], stride: tuple[int, ...], data: bytes) -> Build:
    archive = {"data/0": data}
    return content(lambda: wf.torch_zip(wf.tensor_pickle(count, shape, stride), archive))


W0 = "convs.0.weight"
G = "generator/"
HUGE = 1 << 44

# name: (ending, what the message must say, how the file is made)
CASES: dict[str, tuple[str, str, Build]] = {
    # What is there at all.
    "missing": (".pb", "no such file", lambda path: None),
    "empty": (".pb", "empty file", content(b"")),
    "folder": (".pb", "a folder", lambda path: path.mkdir()),
    "link to nowhere": (".pb", "no such file", link("nowhere")),
    "loop of links": (".pb", "symbolic links", link("")),
    "pipe": (".pb", "a pipe or a device", lambda path: os.mkfifo(path)),
    "device": (".pb", "a pipe or a device", lambda path: path.symlink_to("/dev/zero")),
    "65 MiB graph": (".pb", "at most 64 MiB, got 65.0", sparse(65 << 20, b"\x0a")),
    "terabyte": (".safetensors", "at most 64 MiB", sparse(1 << 40, b"\0")),
    # Other things under the name of weights.
    "web page": (".pb", "a web page", content(b"<!DOCTYPE html><html><title>404</title>")),
    "web page, spaced": (".safetensors", "a web page", content(b"\xef\xbb\xbf\n <html lang=zh>")),
    "LFS pointer": (
        ".pb", "Git LFS pointer",
        content(b"version https://git-lfs.github.com/spec/v1\noid sha256:71ef\nsize 5894895\n"),
    ),
    "JSON": (".pb", "a JSON text", content(b'{"error": "not found"}')),
    "text": (".pb", "a text file", content(b"404: Not Found")),
    "picture": (".pb", "a PNG picture", content(b"\x89PNG\r\n\x1a\n" + bytes(99))),
    "gzip": (".pb", "a gzip archive", content(b"\x1f\x8b\x08" + bytes(99))),
    "program": (".pth", "a Windows program", content(b"MZ\x90" + bytes(99))),
    "Keras": (".pb", "Keras", content(b"\x89HDF\r\n\x1a\n" + bytes(99))),
    "ONNX": (".pb", "an ONNX model", content(b"\x08\x06\x12\x07pytorch\x1a\x032.0")),
    "TFLite": (".pb", "TensorFlow Lite", content(b"\x1c\0\0\0TFL3" + bytes(99))),
    "SavedModel": (".pb", "SavedModel", content(b"\x08\x01\x12\xff\x10\x0a\x09")),
    "zeros": (".pb", "unknown format", content(bytes(4096))),
    "noise": (".pb", "unknown format", content(b"\xfe\xdc\xba\x98" * 999)),
    # Frozen graphs.
    "graph cut in half": (".pb", "truncated", cut(official, 0.5)),
    "graph cut at the end": (".pb", "truncated", cut(official, 0.999)),
    "graph of another network": (
        ".pb", "another network",
        content(lambda: wf.graph_bytes({"resnet/conv1/weights": torch.zeros(7, 7, 3, 64)})),
    ),
    "graph without a tensor": (
        ".pb", "1 missing: Conv_3.biases", graph(lambda t: t.pop(G + "Conv_3/biases"))
    ),
    "graph with a fifth block": (
        ".pb", "block_4/conv1/biases",
        graph(lambda t: t.update({G + "block_4/conv1/biases": torch.zeros(128)})),
    ),
    "graph of a narrower network": (
        ".pb", r"Conv_8/weights of shape (3, 3, 32, 32), got (3, 3, 32, 16)",
        graph(lambda t: t.update({G + "Conv_8/weights": torch.zeros(3, 3, 32, 16)})),
    ),
    "graph in OIHW": (
        ".pb", "Conv/weights of shape (7, 7, 3, 32), got (32, 3, 7, 7)",
        graph(lambda t: t.update({G + "Conv/weights": torch.zeros(32, 3, 7, 7)})),
    ),
    "graph with NaN": (
        ".pb", "finite numbers in generator/Conv_9/weights",
        graph(lambda t: t.update({
            G + "Conv_9/weights": spoiled(t[G + "Conv_9/weights"], float("nan"))
        })),
    ),
    "two networks in a graph": (
        ".pb", "2 networks: bg/generator/, head/generator/",
        content(lambda: wf.graph_bytes(
            wf.tensorflow(STYLE, scope="bg/") | wf.tensorflow(STYLE, scope="head/")
        )),
    ),
    "constant twice": (
        ".pb", "two of the name generator/Conv_9/biases",
        content(lambda: wf.graph_bytes(wf.tensorflow(STYLE), wf.constant(
            G + "Conv_9/biases", wf.tensor_proto([3], wf.message(4, bytes(12)))
        ))),
    ),
    "constant of terabytes": (
        ".pb", "constant that fits the file",
        content(wf.constant(G + "Conv/weights", wf.tensor_proto([HUGE, HUGE], b""))),
    ),
    "constant of negative size": (
        ".pb", "constant that fits the file",
        content(wf.constant(G + "Conv/weights", wf.tensor_proto([(1 << 64) - 1], b""))),
    ),
    "constant filled from one number": (
        ".pb", "missing",
        content(wf.constant(
            G + "Conv/weights",
            wf.tensor_proto([16_000_000], wf.message(5, struct.pack("<f", 1)))
        )),
    ),
    "constant shorter than its shape": (
        ".pb", "128 bytes in generator/Conv/biases, got 64 bytes",
        content(wf.constant(
            G + "Conv/biases", wf.tensor_proto([32], wf.message(4, bytes(64)))
        )),
    ),
    "constant of integers": (
        ".pb", "floating-point numbers in generator/Conv/biases",
        content(wf.constant(
            G + "Conv/biases", wf.tensor_proto([32], wf.message(4, bytes(128)), 3), 3
        )),
    ),
    "constant without a value": (
        ".pb", "a value in the constant", content(wf.node(G + "Conv/biases", "Const"))
    ),
    "too many numbers": (
        ".pb", "32 numbers in generator/Conv/biases",
        content(wf.constant(
            G + "Conv/biases", wf.tensor_proto([32], wf.message(5, bytes(4_000_000)))
        )),
    ),
    "unknown rank": (
        ".pb", "an unknown rank",
        content(wf.constant(
            G + "Conv/biases", wf.integer(1, 1) + wf.message(2, wf.integer(3, 1))
        )),
    ),
    "a length of exabytes": (".pb", "truncated", content(b"\x0a" + wf.varint(1 << 62))),
    "a number without an end": (".pb", "without an end", content(b"\x0a" + b"\xff" * 40)),
    "a million nodes": (".pb", "fields", content(wf.node("a", "NoOp") * 1_000_000)),
    "messages in messages": (
        ".pb", "another network", content(lambda: wf.message(1, b"\x0a\x01a" + deep(2000)))
    ),
    # safetensors.
    "header of terabytes": (
        ".safetensors", "a header of at most", content(wf.with_header(b"{}", b"", HUGE))
    ),
    "header longer than the file": (
        ".safetensors", "a header of at most", content(wf.with_header(b"{}", b"", 90))
    ),
    "header cut": (".safetensors", "a header of at most", cut(
        lambda: wf.safetensors_bytes(STYLE), 0.0005)),
    "data cut": (".safetensors", "a truncated file", cut(
        lambda: wf.safetensors_bytes(STYLE), 0.5)),
    "bytes after the data": (
        ".safetensors", "belong to no tensor", content(lambda: wf.safetensors_bytes(STYLE) + b"x")
    ),
    "header nests too deep": (
        ".safetensors", "nests too deep", content(wf.with_header(b'{"a":' + b"[" * 99_999, b""))
    ),
    "header is no JSON": (
        ".safetensors", "in JSON", content(wf.with_header(b'{"a": tensor}', b""))
    ),
    "header says NaN": (".safetensors", "in JSON", content(wf.with_header(b'{"a": NaN}', b""))),
    "name twice": (".safetensors", "twice", repeated_entry),
    "overlap": (
        ".safetensors", "overlapping tensors",
        header(lambda h: h["convs.9.bias"].update(data_offsets=[0, 12])),
    ),
    "offsets backwards": (
        ".safetensors", "bytes for convs.9.bias",
        header(lambda h: h["convs.9.bias"].update(data_offsets=[12, 0])),
    ),
    "negative offset": (
        ".safetensors", "two data offsets",
        header(lambda h: h["convs.9.bias"].update(data_offsets=[-12, 0])),
    ),
    "tensor of terabytes": (
        ".safetensors", "bytes for convs.0.weight",
        header(lambda h: h[W0].update(shape=[HUGE, HUGE])),
    ),
    "tensor of terabytes beyond the end": (
        ".safetensors", "a gap",
        header(lambda h: h[W0].update(shape=[HUGE], data_offsets=[1, 1 + 4 * HUGE])),
    ),
    "shape of texts": (
        ".safetensors", "a shape for", header(lambda h: h[W0].update(shape=["32"]))
    ),
    "shape of truths": (
        ".safetensors", "a shape for", header(lambda h: h[W0].update(shape=[True]))
    ),
    "unknown dtype": (
        ".safetensors", "a known dtype", header(lambda h: h[W0].update(dtype="F31"))
    ),
    "fp8": (
        ".safetensors", "bytes for convs.0.weight",
        header(lambda h: h[W0].update(dtype="F8_E4M3")),
    ),
    "integers": (
        ".safetensors", "floating-point numbers in convs.0.weight, got I32",
        header(lambda h: h[W0].update(dtype="I32")),
    ),
    "wrong shape": (
        ".safetensors", "convs.1.weight of shape (32, 32, 3, 3), got (32, 32, 9)",
        header(lambda h: h["convs.1.weight"].update(shape=[32, 32, 9])),
    ),
    "a tensor more": (
        ".safetensors", "1 more: loss", safetensors(lambda t: t.update(loss=torch.zeros(1)))
    ),
    "a tensor less": (
        ".safetensors", "1 missing: blocks.3.conv2.bias",
        safetensors(lambda t: t.pop("blocks.3.conv2.bias")),
    ),
    "infinity": (
        ".safetensors", "finite numbers in convs.4.weight",
        safetensors(lambda t: t.update({
            "convs.4.weight": spoiled(t["convs.4.weight"], float("inf"))
        })),
    ),
    "another network": (
        ".safetensors", "another network (1 tensors: lora_A)",
        content(wf.safetensors_bytes({"lora_A": torch.zeros(4)})),
    ),
    "no tensors": (".safetensors", "none of its tensors", content(wf.with_header({}, b""))),
    "flag left out": (".safetensors", "the flags bgr", content(flags(json.dumps(FLAGS)))),
    "flag of a newer version": (
        ".safetensors", "the flags bgr", content(flags(json.dumps(FLAGS | {"tanh": False, "x": 1})))
    ),
    "flag of a wrong type": (
        ".safetensors", "the flags bgr", content(flags(json.dumps(FLAGS | {"tanh": 1})))
    ),
    "flags nest too deep": (".safetensors", "the flags bgr", content(flags("[" * 99_999))),
    # PyTorch.
    "code": (".pth", "'os.makedirs'", evil_zip),
    "code, protocol 4": (".pth", "'os.makedirs'", stack_global),
    "code in the old format": (".pth", "'os.makedirs'", legacy_evil),
    "code in a bare pickle": (
        ".pth", "'os.makedirs'", lambda path: path.write_bytes(wf.evil_pickle(path.parent / "ran")),
    ),
    "code in a graph's name": (
        ".pb", "'os.makedirs'", lambda path: path.write_bytes(wf.evil_pickle(path.parent / "ran")),
    ),
    "code as text": (".pth", "'os.system'", text_pickle(b"cos\nsystem\n(S'echo 1'\ntR.")),
    "code as an instance": (".pth", "'os.system'", text_pickle(b"(S'echo 1'\nios\nsystem\n.")),
    "eval": (".pth", "'builtins.eval'", content(wf.torch_zip(b"\x80\x02cbuiltins\neval\n."))),
    "a class of torch": (
        ".pth", "'torch.nn.modules.conv.Conv2d'",
        content(lambda: wf.torch_bytes(torch.nn.Conv2d(3, 4, 1))),
    ),
    "a TorchScript class in a checkpoint": (
        ".pth", "'__torch__.Net'", content(wf.torch_zip(b"\x80\x02c__torch__\nNet\n)\x81."))
    ),
    "extension code": (".pth", "instruction EXT1", content(wf.torch_zip(b"\x80\x02\x82\x01."))),
    "pickle cut": (".pth", "broken or truncated pickle", content(wf.torch_zip(b"\x80\x02}"))),
    "pickle of one text": (
        ".pth", "got a str", content(wf.torch_zip(pickle.dumps("hello", protocol=2)))
    ),
    "length of gigabytes": (
        ".pth", "broken or truncated", content(wf.torch_zip(b"\x80\x04\x8e" + b"\xff" * 7 + b"\0"))
    ),
    "memo of gigabytes": (
        ".pth", "without", content(wf.torch_zip(b"\x80\x02}r\xff\xff\xff\x7f."))
    ),
    "endless pickle": (
        ".pth", "steps", content(wf.torch_zip(b"\x80\x02" + b"N0" * 400_000 + b"."))
    ),
    "large pickle": (
        ".pth", "in data.pkl", content(wf.torch_zip(b"\x80\x02" + b"N0" * 600_000 + b"."))
    ),
    "nested keys": (
        ".pth", "without", content(wf.torch_zip(b"\x80\x02})" + b"\x85" * 50_000 + b"Ns."))
    ),
    "no tensors in it": (".pth", "one without", content(wf.torch_bytes({"epoch": 3}))),
    "a tensor alone": (".pth", "got a TensorView", content(wf.torch_bytes(torch.zeros(3)))),
    "storage missing": (
        ".pth", "35 missing", members(9, (9,), (1,), b""),
    ),
    "checkpoint of terabytes": (
        ".pth", "35 missing", members(HUGE, (HUGE,), (1,), b""),
    ),
    "impossible size": (".pth", "impossible sizes", members(9, (-9,), (1,), bytes(36))),
    "impossible stride": (".pth", "impossible strides", members(9, (9,), (1, 1), bytes(36))),
    "checkpoint cut": (".pth", "broken or truncated", cut(lambda: wf.torch_bytes(STYLE), 0.7)),
    "old checkpoint cut": (
        ".pth", "a truncated file", cut(lambda: wf.torch_bytes(STYLE, legacy=True), 0.7)
    ),
    "archive of thousands": (".pth", "at most 4,096 members", crowd),
    "zip bomb": (".pth", "more than that", bomb),
    "another zip": (
        ".pth", "another zip archive",
        content(b"PK\x03\x04" + wf.torch_zip(b"").replace(b"data.pkl", b"data.xml")[4:]),
    ),
    "compressed": (
        ".pth", "packed anew",
        content(lambda: wf.torch_zip(pickle.dumps({}, protocol=2) * 50, packed=8)),
    ),
    "numbers left out": (
        ".pth", "the member data/7, got none",
        content(lambda: wf.rezip(wf.torch_bytes(STYLE), {"data/7": None})),
    ),
    "numbers too few": (
        ".pth", "128 bytes in data/1, got 64",
        content(lambda: wf.rezip(wf.torch_bytes(STYLE), {"data/1": bytes(64)})),
    ),
    "numbers too many": (
        ".pth", "at most 128 bytes in data/1, got 640",
        content(lambda: wf.rezip(wf.torch_bytes(STYLE), {"data/1": bytes(640)})),
    ),
    "big-endian": (
        ".pth", "big-endian",
        content(wf.torch_zip(pickle.dumps({}, protocol=2), {"byteorder": b"big"})),
    ),
}  # fmt: skip


def deep(levels: int) -> bytes:
    inner = b""
    for _ in range(levels):
        inner = wf.message(6, inner)
    return inner
