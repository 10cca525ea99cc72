"""GPEN files for tests: comparisons, files of a size without its bytes, and what must be refused.

Of those: a name, an ending, what the message says, and how to make it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import gpen_weights as gw
import torch
import weights_cases
import weights_files as wf
from realtoon.weights_loader.gpen import GPENConfig

FIRST = "generator.input.input"
W = "generator.convs.3.conv.weight"


def same(read: gw.Tensors, expected: gw.Tensors) -> bool:
    return list(read) == list(expected) and all(
        read[name].dtype == torch.float32
        and read[name].is_contiguous()
        and torch.equal(read[name], expected[name])
        for name in expected
    )


def shapes_only(config: GPENConfig, path: Path, **changes: tuple[int, ...]) -> Path:
    """A safetensors file of the true size whose numbers take no room on the disk."""
    header, at = {}, 0
    for name, _, shape in gw.layout(config):
        shape = changes.get(name, shape)
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


def content(data: Callable[[], bytes]) -> weights_cases.Build:
    return lambda path: path.write_bytes(data()) and None


def changed(change: Callable[[gw.Tensors], object]) -> weights_cases.Build:
    """A published file with something else in it. The numbers cost nothing: all zero."""

    def build(path: Path) -> None:
        named = zeros(gw.TINY)
        change(named)
        path.write_bytes(wf.torch_bytes(named))

    return build


def zeros(config: GPENConfig) -> gw.Tensors:
    rows = gw.layout(config)
    blank = {name: torch.zeros(shape) for name, kind, shape in rows if "blur" not in kind}
    return blank | {n: gw.BLUR * float(kind[4:]) for n, kind, _ in rows if "blur" in kind}


def named_zeros(*names: str) -> weights_cases.Build:
    return content(lambda: wf.torch_bytes({name: torch.zeros(2) for name in names}))


def ending_with(value: float) -> Callable[[gw.Tensors], object]:
    return lambda t: t["final_linear.0.bias"].view(-1)[-1:].fill_(value)


def without(*names: str) -> Callable[[gw.Tensors], object]:
    return lambda t: [t.pop(name) for name in list(t) if name.startswith(names)]


def narrower_style(tensors: gw.Tensors) -> None:
    for layer in range(1, 9):
        tensors[f"generator.style.{layer}.weight"] = torch.zeros(256, 256)


def adding(tensors: gw.Tensors) -> None:
    for name in [name for name in tensors if name.endswith("activate.bias")]:
        tensors[name] = torch.zeros(len(tensors[name]) // 2)


def widened(tensors: gw.Tensors) -> None:
    """A tensor of 64 GB that is one number, repeated."""
    wide = 1 << 20
    tensors[FIRST] = torch.zeros(1).expand(1, wide, 4, 4)
    tensors["generator.conv1.conv.weight"] = torch.zeros(1).expand(1, wide, wide, 3, 3)


def shallower(levels: int) -> Callable[[gw.Tensors], object]:
    """A generator for smaller faces."""

    def change(tensors: gw.Tensors) -> None:
        without(*(f"ecd{i}." for i in range(levels + 1, 9)))(tensors)
        without(*(f"generator.to_rgbs.{i}." for i in range(levels, 9)))(tensors)
        without(*(f"generator.convs.{i}." for i in range(2 * levels, 18)))(tensors)

    return change


def blurred(name: str, factor: float) -> Callable[[gw.Tensors], object]:
    return lambda t: t.update({name: t[name] * factor})


CASES: dict[str, tuple[str, str, weights_cases.Build]] = {
    "discriminator": (
        ".pth", "a GPEN discriminator",
        content(lambda: wf.torch_bytes(gw.discriminator())),
    ),
    "discriminator, distributed": (
        ".pth", "a GPEN discriminator",
        content(lambda: wf.torch_bytes(gw.scoped(gw.discriminator(), "module."))),
    ),
    "super-resolution": (
        ".pth", "one that enlarges 128 to 256 pixels", changed(without("ecd6.")),
    ),
    "not concatenating": (".pth", "isconcat off: its activations have 16", changed(adding)),
    "a deeper style network": (
        ".pth", "8 layers in generator.style, got 9",
        changed(lambda t: t.update({"generator.style.9.weight": torch.zeros(512, 512)})),
    ),
    "a shallower style network": (
        ".pth", "8 layers in generator.style, got 4",
        changed(without(*(f"generator.style.{i}." for i in range(5, 9)))),
    ),
    "style of 256": (
        ".pth", "style vectors of 512 numbers, got layers of shape (256, 256)",
        changed(narrower_style),
    ),
    "64 pixels": (".pth", "faces of 256, 512, 1024 or 2048 pixels, got one for 64",
                  changed(shallower(4))),
    "no levels": (".pth", "got one for 4", changed(shallower(0))),
    "StyleGAN2": (".pth", "without GPEN's encoder", changed(without("ecd", "final_linear"))),
    "StyleGAN2, its own file": (
        ".pth", "without GPEN's encoder",
        named_zeros("style.1.weight", "input.input", "conv1.conv.weight", "to_rgb1.bias"),
    ),
    "GFPGAN": (
        ".pth", "a GFPGAN restorer",
        content(lambda: wf.torch_bytes({"params_ema": {
            "conv_body_first.weight": torch.zeros(2),
            "stylegan_decoder.style_mlp.1.weight": torch.zeros(2),
        }})),
    ),
    "CodeFormer": (
        ".pth", "a CodeFormer restorer",
        content(lambda: wf.torch_bytes({"params_ema": {
            n: torch.zeros(2) for n in ("encoder.blocks.0.weight", "quantize.embedding.weight",
                                        "idx_pred_layer.0.weight", "generator.blocks.0.weight")
        }})),
    ),
    "RestoreFormer": (
        ".ckpt", "a RestoreFormer restorer",
        content(lambda: wf.torch_bytes({"state_dict": {
            f"vqvae.{n}.weight": torch.zeros(2)
            for n in ("encoder.conv_in", "decoder.conv_in", "quantize.embedding")
        }})),
    ),
    "RetinaFace": (
        ".pth", "a face detector", named_zeros("BboxHead.0.conv1x1.weight", "LandmarkHead.0.bias")
    ),
    "upscaler": (".pth", "an upscaler", named_zeros("conv_first.weight", "conv_last.weight")),
    "ParseNet": (
        ".pth", "a face parser (ParseNet). Next step: put it into models/facedetection",
        named_zeros("encoder.0.conv2d.weight", "body.0.x", "out_mask_conv.conv2d.bias"),
    ),
    "DCT-Net": (
        ".safetensors", "a DCT-Net style. Next step: put it into models/dctnet",
        content(lambda: wf.safetensors_bytes(weights_cases.STYLE)),
    ),
    "DCT-Net's graph": (".pb", "got a frozen graph", content(weights_cases.official)),
    "another network": (
        ".pth", "another network (1 tensors: lora_A)", named_zeros("lora_A"),
    ),
    "two generators": (
        ".safetensors", "one generator, got 2 of them: a., b.",
        content(lambda: wf.safetensors_bytes(
            {f"{scope}.{n}": torch.zeros(1) for scope in "ab" for n in (FIRST, "ecd0.0.0.weight")}
        )),
    ),
    "a tensor less": (
        ".pth", f"the 126 tensors of GPEN 256, got 1 missing: {W}", changed(lambda t: t.pop(W))
    ),
    "a tensor more": (".pth", "1 more: loss", changed(lambda t: t.update(loss=torch.zeros(1)))),
    "a constant less": (
        ".pth", "1 missing: ecd1.0.0.kernel", changed(lambda t: t.pop("ecd1.0.0.kernel"))
    ),
    "wrong shape": (
        ".pth", f"{W} of shape (1, 16, 32, 3, 3), got (1, 16, 32, 9)",
        changed(lambda t: t.update({W: t[W].reshape(1, 16, 32, 9)})),
    ),
    "wrong rank of the first": (
        ".pth", f"{FIRST} with 4 dimensions", changed(lambda t: t.update({FIRST: torch.zeros(2)}))
    ),
    "no width": (
        ".pth", "widths from 1 to 1024",
        changed(lambda t: t.update({FIRST: torch.zeros(1, 0, 4, 4)})),
    ),
    "widths of gigabytes": (".pth", "widths from 1 to 1024, got 1048576", changed(widened)),
    "integers": (
        ".pth", f"floating-point numbers in {W}, got I32",
        changed(lambda t: t.update({W: t[W].int()})),
    ),
    "another blur": (
        ".pth", "the published blur [1, 3, 3, 1] in ecd2.0.0.kernel",
        changed(lambda t: t["ecd2.0.0.kernel"].fill_(1 / 16)),
    ),
    "a blur's gain": (
        ".pth", "the published blur [1, 3, 3, 1] in generator.to_rgbs.1.upsample.kernel",
        changed(blurred("generator.to_rgbs.1.upsample.kernel", 0.25)),
    ),
    "a blur of NaN": (
        ".pth", "finite numbers in ecd1.0.0.kernel",
        changed(blurred("ecd1.0.0.kernel", float("nan"))),
    ),
    "a blur's shape": (
        ".pth", "of shape (4, 4), got (3, 3)",
        changed(lambda t: t.update({"ecd1.0.0.kernel": torch.ones(3, 3) / 9})),
    ),
    "NaN": (".pth", "finite numbers in final_linear.0.bias", changed(ending_with(float("nan")))),
    "infinity": (
        ".pth", "finite numbers in final_linear.0.bias", changed(ending_with(float("-inf")))
    ),
    "beyond float32": (
        ".pth", "finite numbers in final_linear.0.bias",
        changed(lambda t: t.update(
            {"final_linear.0.bias": torch.full((512,), 1e300, dtype=torch.float64)}
        )),
    ),
    "a view of a larger tensor": (
        ".pth", "a view of a larger tensor",
        changed(lambda t: t.update(
            {"final_linear.0.bias": torch.zeros((16 << 20) + 1)[:512]}
        )),
    ),
    "cut": (
        ".pth", "truncated",
        weights_cases.cut(lambda: wf.torch_bytes(zeros(gw.TINY)), 0.9),
    ),
    "cut, old format": (
        ".pth", "a truncated file",
        weights_cases.cut(lambda: wf.torch_bytes(zeros(gw.TINY), legacy=True), 0.9),
    ),
    "cut safetensors": (
        ".safetensors", "a truncated file",
        weights_cases.cut(lambda: wf.safetensors_bytes(zeros(gw.TINY)), 0.9),
    ),
    "code beside a generator": (
        ".pth", "'os.makedirs'",
        lambda path: path.write_bytes(
            wf.torch_bytes({"g_ema": {FIRST: torch.zeros(2)},
                            "opt": wf.Trap(path.parent / "ran")})
        ) and None,
    ),
    "ONNX": (
        ".onnx", "an ONNX model. Next step: choose it in GPENRestore",
        content(lambda: wf.integer(1, 8) + wf.message(2, b"tool") + wf.message(7, bytes(9))),
    ),
    "2 GiB": (".pth", "at most 2048 MiB", weights_cases.sparse((2 << 30) + 1, b"PK\x03\x04")),
    "2 GiB, old format": (
        ".pth", "truncated",
        weights_cases.sparse(
            2 << 30, b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
        ),
    ),
    "2 GiB of an archive": (
        ".pth", "a broken or truncated one", weights_cases.sparse(2 << 30, b"PK\x03\x04")
    ),
    "safetensors of a gigabyte": (
        ".safetensors", "at most 640 MiB",
        weights_cases.sparse(1 << 30, wf.with_header({}, b"")),
    ),
}  # fmt: skip
