"""LoRA files that must be refused: how each is made, and what the message says.

Made from the formats' specifications, without the code under test.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lora_files as lf
import torch
import weights_files as wf

MODULES = lf.tiny_modules()
TO_Q = "diffusion_model.transformer_blocks.0.attn.to_q"
GOOD = lf.lora(MODULES)
Build = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """no_lora: the header alone says so. links: needs symbolic links."""

    message: str
    build: Build
    no_lora: bool = False
    links: bool = False


def tensors(change: Callable[[lf.Tensors], object], base: lf.Tensors = GOOD) -> Build:
    def build(path: Path) -> None:
        named = dict(base)
        change(named)
        lf.write(path, named)

    return build


def with_tensors(named: dict[str, torch.Tensor]) -> Build:
    return tensors(lambda good: good.update(named))


def only(named: dict[str, torch.Tensor]) -> Build:
    return lambda path: lf.write(path, named)


def metadata(text: str) -> Build:
    return lambda path: lf.write(path, GOOD, {"lora_adapter_metadata": text})


def header(change: Callable[[dict], object]) -> Build:
    def build(path: Path) -> None:
        whole = wf.safetensors_bytes(GOOD)
        length = struct.unpack("<Q", whole[:8])[0]
        parsed = json.loads(whole[8 : 8 + length])
        change(parsed)
        path.write_bytes(wf.with_header(parsed, whole[8 + length :]))

    return build


def content(data: bytes | Callable[[], bytes]) -> Build:
    return lambda path: path.write_bytes(data() if callable(data) else data)


def sparse(shapes: dict[str, tuple[int, ...]]) -> Build:
    return lambda path: lf.write_sparse(path, shapes)


def family(name: str, variant: str) -> Build:
    return sparse(lf.lora_shapes(lf.FAMILIES[name][variant], "diffusers", 2))


def crowd(count: int) -> Build:
    """A sound header of many keys, each of no numbers."""

    def build(path: Path) -> None:
        entry = '"a.%d.alpha":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}'
        path.write_bytes(
            wf.with_header(b"{%s}" % ",".join(map(entry.__mod__, range(count))).encode(), b"")
        )

    return build


def link_outside(target: str) -> Build:
    def build(path: Path) -> None:
        outside = path.parent / "elsewhere"
        outside.mkdir()
        (outside / "secret.txt").write_text("a password in here\n" * 40, encoding="utf-8")
        path.symlink_to(outside / target)

    return build


def links_work(folder: Path) -> bool:
    try:
        (folder / "a link").symlink_to(folder / "nothing")
    except OSError:
        return False
    return True


def evil_zip(path: Path) -> None:
    path.write_bytes(wf.torch_zip(wf.evil_pickle(path.parent / "ran")))


def evil_legacy(path: Path) -> None:
    path.write_bytes(wf.evil_pickle(path.parent / "ran"))


def set_first(parsed: dict, field: str, value: object) -> None:
    parsed[next(iter(parsed))][field] = value


def shift(parsed: dict, by: int) -> None:
    entry = parsed[f"{TO_Q}.lora_B.weight"]
    entry["data_offsets"] = [n + by for n in entry["data_offsets"]]


def overlap(parsed: dict) -> None:
    names = list(parsed)
    first = parsed[names[0]]
    parsed[names[2]] = dict(first)


def pair(rank_down: int, rank_up: int) -> dict[str, torch.Tensor]:
    return {
        f"{TO_Q}.lora_A.weight": torch.ones(rank_down, 16),
        f"{TO_Q}.lora_B.weight": torch.ones(16, rank_up),
    }


def spoiled(value: float, key: str = f"{TO_Q}.lora_B.weight") -> Build:
    def change(named: lf.Tensors) -> None:
        named[key] = named[key].clone()
        named[key][-1, -1] = value

    return tensors(change)


def alpha_alone(named: lf.Tensors) -> None:
    for side in "AB":
        del named[f"{TO_Q}.lora_{side}.weight"]
    named[f"{TO_Q}.alpha"] = torch.ones(())


ONES = torch.ones(2, 16)
LOKR = {f"{TO_Q}.lokr_w1": torch.ones(4, 4), f"{TO_Q}.lokr_w2": torch.ones(4, 4)}
LOHA = {f"{TO_Q}.hada_w{i}_{s}": torch.ones(16, 16) for i in "12" for s in "ab"}
WHOLE = {
    "transformer_blocks.0.img_mod.1.weight": torch.ones(4, 4),
    "txt_norm.weight": torch.ones(4),
}
good_bytes = wf.safetensors_bytes(GOOD)

CASES = {
    # Not a LoRA, or not a file.
    "empty": Case("an empty file", content(b""), True),
    "a folder": Case("got a folder", lambda path: path.mkdir(), True),
    "missing": Case("no such file", lambda path: None, True),
    "link to nothing": Case("no such file", lambda p: p.symlink_to(p.parent / "x"), True, True),
    "link in a circle": Case("an error of the system", lambda p: p.symlink_to(p), True, True),
    "link out of the folder to a text": Case("a text file", link_outside("secret.txt"), True, True),
    "link out of the folder to a folder": Case("got a folder", link_outside("."), True, True),
    "link to a device": Case("a pipe or a device", lambda p: p.symlink_to(os.devnull), True, True),
    "web page": Case("a web page", content(b"<!DOCTYPE html><html>404</html>"), True),
    "git lfs pointer": Case(
        "a Git LFS pointer", content(b"version https://git-lfs.github.com/spec/v1\n"), True
    ),
    "gguf": Case("a GGUF file", content(b"GGUF" + bytes(600)), True),
    "onnx": Case("an ONNX model", content(b"\x08\x07\x12\x07pytorch" + bytes(300)), True),
    "graph": Case("bytes of an unknown format", content(b"\x0a" + bytes(300)), True),
    "json": Case("a JSON text", content(b'{"lora": 1}'), True),
    "noise": Case("bytes of an unknown format", content(bytes(range(128, 256)) * 8), True),
    "a whole model": Case("a Qwen-Image diffusion model", only(WHOLE), True),
    "tensors of nothing": Case("a file with 2 tensors: a, b", only({"a": ONES, "b": ONES}), True),
    "no tensors": Case("a file with 0 tensors", only({}), True),
    # Broken headers.
    "cut in the header": Case("a header of at most", content(good_bytes[:400]), True),
    "cut in the data": Case("a truncated file", content(good_bytes[:-100]), True),
    "bytes behind the end": Case(
        "bytes that belong to no tensor", content(good_bytes + b"1234"), True
    ),
    "length of 2⁶³": Case("a header of at most", content(wf.with_header({}, b"", 1 << 63)), True),
    "offsets that overlap": Case("overlapping tensors", header(overlap), True),
    "a gap": Case("a gap", header(lambda h: shift(h, 8)), True),
    "offsets backwards": Case(
        "bytes for", header(lambda h: set_first(h, "data_offsets", [8, 0])), True
    ),
    "absurd shape": Case(
        "bytes for", header(lambda h: set_first(h, "shape", [1 << 40, 1 << 40])), True
    ),
    "negative shape": Case("a shape for", header(lambda h: set_first(h, "shape", [-4, 8])), True),
    "shape of a thousand axes": Case(
        "a shape for", header(lambda h: set_first(h, "shape", [1] * 1000)), True
    ),
    "shape of thousands of long numbers": Case(
        "a shape for", header(lambda h: set_first(h, "shape", [10**4000] * 1900)), True
    ),
    "shape of texts": Case(
        "a shape for", header(lambda h: set_first(h, "shape", ["4", "8"])), True
    ),
    "shape of a text and a huge number": Case(
        "a shape for", header(lambda h: set_first(h, "shape", ["a", 10**13])), True
    ),
    "shape of a list and a huge number": Case(
        "a shape for", header(lambda h: set_first(h, "shape", [[0], 10**13])), True
    ),
    "shape that is not a list": Case(
        "a shape for", header(lambda h: set_first(h, "shape", {})), True
    ),
    "shape of true and false": Case(
        "a shape for", header(lambda h: set_first(h, "shape", [True, 8])), True
    ),
    "three offsets": Case(
        "two data offsets", header(lambda h: set_first(h, "data_offsets", [0, 1, 2])), True
    ),
    "unknown dtype": Case("a known dtype", header(lambda h: set_first(h, "dtype", "F4096")), True),
    "a name twice": Case(
        "a name stands in it twice",
        content(
            wf.with_header(b'{"a":{"dtype":"F16","shape":[],"data_offsets":[0,2]},"a":{}}', b"12")
        ),
        True,
    ),
    "a name twice, once whole": Case(
        "a name stands in it twice",
        content(
            wf.with_header(b'{"a":5,"a":{"dtype":"F16","shape":[],"data_offsets":[0,2]}}', b"12")
        ),
        True,
    ),
    "a name twice in the metadata": Case(
        "a name stands in it twice",
        content(
            wf.with_header(
                b'{"__metadata__":{"alpha":"1","alpha":"2"},'
                b'"a":{"dtype":"F16","shape":[],"data_offsets":[0,2]}}',
                b"12",
            )
        ),
        True,
    ),
    "header nested deep": Case(
        "nests too deep", content(wf.with_header(b'{"a":' + b"[" * 200_000, b"")), True
    ),
    "header that is a list": Case(
        "bytes of an unknown format", content(wf.with_header(b"[1]", b"")), True
    ),
    "metadata of numbers": Case(
        "metadata of names", header(lambda h: h.update(__metadata__={"a": 1})), True
    ),
    "a million keys": Case("a header of at most 8,388,608 bytes", crowd(1_000_000), True),
    "90,000 keys": Case("at most 32,768 tensors, got 90,000", crowd(90_000), True),
    # Code.
    "pickle with code in a zip": Case("code in its pickle", evil_zip, True),
    "bare pickle with code": Case("code in its pickle", evil_legacy, True),
    "zip of no tensors": Case("without", content(lambda: wf.torch_bytes({"a": 1})), True),
    "zip bomb": Case(
        "at most", lambda p: p.write_bytes(wf.torch_zip(b"\0" * 50_000_000, packed=8)), True
    ),
    # For another model.
    "Flux": Case("got one for Flux", family("Flux", "original")),
    "Flux in diffusers' names": Case(
        "got one for Flux", family("Flux", "diffusers attention alone")
    ),
    "SDXL": Case("got one for SDXL", family("SDXL", "original")),
    "Wan": Case("got one for Wan", family("Wan", "diffusers")),
    "text encoder alone": Case(
        "those of a text encoder alone",
        only({"lora_te_a.lora_down.weight": ONES, "lora_te_a.lora_up.weight": ONES}),
    ),
    "no module of the model": Case(
        "got none of them", only({f"x.lora_{s}.weight": ONES for s in "AB"})
    ),
    "all of other widths": Case(
        "no other of 34 modules fits", sparse(lf.lora_shapes(lf.qwen_modules(), "bare", 2))
    ),
    # Contradictions.
    "up without down": Case("(down is missing)", tensors(lambda t: t.pop(f"{TO_Q}.lora_A.weight"))),
    "down without up": Case("(up is missing)", tensors(lambda t: t.pop(f"{TO_Q}.lora_B.weight"))),
    "two ranks": Case("got 4 and 3", with_tensors(pair(4, 3))),
    "rank 0": Case("a matrix of rank 1 or more", with_tensors(pair(0, 0))),
    "a vector for a matrix": Case(
        "a matrix of rank 1", with_tensors({f"{TO_Q}.lora_A.weight": torch.ones(16)})
    ),
    "alpha alone": Case("matrices beside", tensors(alpha_alone)),
    "NaN": Case("finite numbers in", spoiled(float("nan"))),
    "infinity": Case("finite numbers in", spoiled(float("-inf"))),
    "NaN as alpha": Case(
        "finite numbers in", with_tensors({f"{TO_Q}.alpha": torch.tensor(float("nan"))})
    ),
    "alpha of many numbers": Case("one number in", with_tensors({f"{TO_Q}.alpha": torch.ones(4)})),
    "whole numbers": Case(
        "numbers of F64",
        with_tensors({f"{TO_Q}.lora_A.weight": torch.ones(4, 16, dtype=torch.int8)}),
    ),
    "quantised with scales": Case(
        "quantised ones",
        with_tensors({f"{TO_Q}.lora_A.scale_weight": ONES, f"{TO_Q}.weight_scale": ONES}),
    ),
    "one module by two names": Case(
        "two: ", with_tensors({"lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight": ONES})
    ),
    "one name by two tails": Case("two: ", with_tensors({f"{TO_Q}.lora_down.weight": ONES}), True),
    "two adapters": Case("two: ", with_tensors({f"{TO_Q}.lora_A.other.weight": ONES}), True),
    "LoRA and LoKr of a module": Case("got lora and lokr", with_tensors(LOKR)),
    "half a LoHa": Case(
        "hada_w2_a and hada_w2_b", only({k: v for k, v in LOHA.items() if "w1" in k})
    ),
    "a LoHa of two ranks": Case(
        "one rank in", only(LOHA | {f"{TO_Q}.hada_w1_a": torch.ones(16, 3)})
    ),
    "half a LoKr": Case("lokr_w2_a and lokr_w2_b", only({f"{TO_Q}.lokr_w1": ONES})),
    "a LoKr whole and in parts": Case("got both", only(LOKR | {f"{TO_Q}.lokr_w1_a": ONES})),
    # Metadata.
    "metadata that are no JSON": Case("lora_adapter_metadata in JSON", metadata("{")),
    "alpha that is a text": Case("a number for lora_alpha", metadata('{"lora_alpha": "8"}')),
    "alpha of 10⁴⁰⁰": Case(
        "a number for lora_alpha", metadata('{"lora_alpha": 1' + "0" * 400 + "}")
    ),
    "pattern that is an expression": Case(
        "names of modules in alpha_pattern", metadata('{"r": 4, "alpha_pattern": {"(a+)+$": 1}}')
    ),
}
