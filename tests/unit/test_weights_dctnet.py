"""A style survives every format it comes in: the same config, the same bits."""

from __future__ import annotations

import argparse
import json
import struct
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import weights_files as wf
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.weights_loader import dctnet
from realtoon.weights_loader.dctnet import PORT_CONFIG, DCTNetConfig
from realtoon.weights_loader.errors import WeightsError

OFFICIAL = DCTNetConfig()
CHINESE = "手绘 风格"


@pytest.fixture(scope="module")
def style() -> wf.Tensors:
    return wf.random_style(half=True)


def same(read: wf.Tensors, expected: wf.Tensors) -> bool:
    return read.keys() == expected.keys() and all(
        read[name].dtype == torch.float32
        and read[name].is_contiguous()
        and torch.equal(read[name], expected[name])
        for name in expected
    )


def halves(tensors: wf.Tensors) -> wf.Tensors:
    return {name: tensor.half() for name, tensor in tensors.items()}


def checkpoint(tensors: wf.Tensors) -> dict[str, object]:
    """What the port's trainer saves: networks, optimisers with their state, its command line."""
    state = {
        number: {"step": torch.tensor(7.0), "exp_avg": tensor.clone(), "exp_avg_sq": tensor**2}
        for number, tensor in enumerate(tensors.values())
    }
    groups = [{"lr": 1e-4, "betas": (0.5, 0.99), "amsgrad": False, "params": list(state)}]
    return {
        "netG": wf.port(tensors),
        "netTxD": {"model.0.sn_conv.weight_orig": torch.zeros(32, 1, 3, 3)},
        "g_optim": {"state": state, "param_groups": groups},
        "args": argparse.Namespace(lr=1e-4, dist=False, path=None, betas=[0.5, 0.99]),
    }


FORMATS: dict[str, tuple[str, DCTNetConfig, Callable[[wf.Tensors], bytes]]] = {
    "graph": (".pb", OFFICIAL, lambda t: wf.graph_bytes(wf.tensorflow(t))),
    "graph in a scope": (
        ".pb", OFFICIAL, lambda t: wf.graph_bytes(wf.tensorflow(t, scope="model_head/"))
    ),
    "graph of halves": (
        ".pb", OFFICIAL, lambda t: wf.graph_bytes(halves(wf.tensorflow(t)))
    ),
    "graph named .bin": (".bin", OFFICIAL, lambda t: wf.graph_bytes(wf.tensorflow(t))),
    "safetensors": (".safetensors", OFFICIAL, wf.safetensors_bytes),
    "safetensors of halves": (
        ".safetensors", OFFICIAL, lambda t: wf.safetensors_bytes(halves(t))
    ),
    "safetensors, TensorFlow names": (
        ".safetensors", OFFICIAL,
        lambda t: wf.safetensors_bytes(halves(wf.tensorflow(t))),
    ),
    "safetensors, TensorFlow names with dots": (
        ".safetensors", OFFICIAL, lambda t: wf.safetensors_bytes(wf.tensorflow(t, ".", "model/"))
    ),
    "safetensors, port names": (
        ".safetensors", PORT_CONFIG, lambda t: wf.safetensors_bytes(wf.port(t))
    ),
    "checkpoint": (".pt", OFFICIAL, wf.torch_bytes),
    "checkpoint, old format": (".pt", OFFICIAL, lambda t: wf.torch_bytes(t, legacy=True)),
    "checkpoint, TensorFlow names": (".pt", OFFICIAL, lambda t: wf.torch_bytes(wf.tensorflow(t))),
    "port, training": (".pth", PORT_CONFIG, lambda t: wf.torch_bytes(checkpoint(t))),
    "port, training, old format": (
        ".pth", PORT_CONFIG, lambda t: wf.torch_bytes(checkpoint(t), legacy=True)
    ),
    "port, bare": (".pth", PORT_CONFIG, lambda t: wf.torch_bytes(wf.port(t))),
    "port, from DDP": (
        ".pth", PORT_CONFIG, lambda t: wf.torch_bytes({"netG": wf.port(t, "module.")})
    ),
    "port, parameters": (
        ".pth", PORT_CONFIG,
        lambda t: wf.torch_bytes({k: torch.nn.Parameter(v) for k, v in wf.port(t).items()}),
    ),
    "port, doubles": (
        ".pth", PORT_CONFIG,
        lambda t: wf.torch_bytes({k: v.double() for k, v in wf.port(t).items()}),
    ),
    "port, channels last": (
        ".pth", PORT_CONFIG,
        lambda t: wf.torch_bytes({
            k: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v
            for k, v in wf.port(t).items()
        }),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_config_and_bits(
    name: str, style: wf.Tensors, tmp_path: Path
) -> None:
    ending, config, build = FORMATS[name]
    path = tmp_path / f"{CHINESE}{ending}"
    path.write_bytes(build(style))
    read_config, tensors = dctnet.read(path)
    assert read_config == config
    assert same(tensors, style)


@pytest.mark.parametrize("name", FORMATS)
def test_a_style_loads_in_a_fifth_of_a_second(name: str, style: wf.Tensors, tmp_path: Path) -> None:
    ending, _, build = FORMATS[name]
    path = tmp_path / f"style{ending}"
    path.write_bytes(build(style))
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        dctnet.read(path)
        seconds.append(time.perf_counter() - start)
        if seconds[-1] <= 0.2:
            break
    assert min(seconds) <= 0.2


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        conv = torch.nn.Conv2d
        self.block = torch.nn.Sequential(
            conv(128, 128, 3, 1, 1), torch.nn.LeakyReLU(0.2), conv(128, 128, 3, 1, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


class _Port(torch.nn.Module):
    """The port's network, in its own modules' names."""

    def __init__(self) -> None:
        super().__init__()

        def group(*numbers: int, last: bool = False) -> torch.nn.Sequential:
            parts: list[torch.nn.Module] = []
            for i in numbers:
                out, inner, kernel = wf.CONVS[i]
                stride = 2 if i in (1, 3) else 1
                parts.append(torch.nn.Conv2d(inner, out, kernel, stride, kernel // 2))
                parts.append(torch.nn.LeakyReLU(0.2))
            return torch.nn.Sequential(*(parts[:-1] if last else parts))

        self.initial_down, self.down1, self.down2 = group(0), group(1, 2), group(3, 4)
        self.res_blocks = torch.nn.Sequential(*[_Block() for _ in range(4)])
        self.up1, self.up2, self.last = group(5), group(6, 7), group(8, 9, last=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x0 = self.initial_down(x)
        x1 = self.down1(x0)
        x = self.up1(self.res_blocks(self.down2(x1)))
        x = self.up2(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear") + x1)
        x = self.last(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear") + x0)
        return torch.tanh(x)


def scripted(style: wf.Tensors, how: str) -> torch.jit.ScriptModule:
    module = _Port().eval()
    module.load_state_dict(wf.port(style), strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "trace":
            return torch.jit.trace(module, torch.zeros(1, 3, 8, 8))
        return torch.jit.script(module)


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_gives_its_parameters_without_running(
    how: str, style: wf.Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "style.pt"
    scripted(style, how).save(str(path))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the archive was run")

    monkeypatch.setattr(torch.jit, "load", never)
    monkeypatch.setattr(torch, "load", never)
    config, tensors = dctnet.read(path)
    assert config == PORT_CONFIG
    assert same(tensors, style)


def test_torchscript_carries_flags_in_an_extra_file(style: wf.Tensors, tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    config = DCTNetConfig(bgr=False, guided_filter=True, tanh=True)
    scripted(style, "script").save(
        str(path), _extra_files={dctnet.METADATA_KEY: json.dumps(asdict(config))}
    )
    assert dctnet.read(path)[0] == config


def test_a_frozen_torchscript_module_is_refused_with_the_way_out(
    style: wf.Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "frozen.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.freeze(scripted(style, "script")).save(str(path))
    with pytest.raises(WeightsError, match=r"keeps no names.*before torch\.jit\.freeze"):
        dctnet.read(path)


@settings(max_examples=6, deadline=None)
@given(flags=st.tuples(*[st.booleans()] * 5), seed=st.integers(0, 99), half=st.booleans())
def test_writing_and_reading_keeps_config_and_bits(
    flags: tuple[bool, ...], seed: int, half: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config, tensors = DCTNetConfig(*flags), wf.random_style(seed, half=half)
    path = tmp_path_factory.mktemp("write") / f"{CHINESE}.safetensors"
    dtype = torch.float16 if half else torch.float32
    dctnet.write(path, config, tensors, {"licence": "Apache-2.0"}, dtype)
    read_config, read = dctnet.read(path)
    assert read_config == config
    assert same(read, tensors)
    assert path.stat().st_size < (3_000_000 if half else 6_000_000)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_official_library_reads_what_we_write(style: wf.Tensors, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "style.safetensors"
    dctnet.write(path, PORT_CONFIG, style, {"作者": "甲"}, torch.bfloat16)
    with safetensors.safe_open(str(path), "pt") as file:
        assert file.metadata()["作者"] == "甲"
        assert json.loads(file.metadata()[dctnet.METADATA_KEY]) == asdict(PORT_CONFIG)
        assert set(file.keys()) == set(style)
        assert torch.equal(file.get_tensor("convs.9.bias"), style["convs.9.bias"].bfloat16())


def test_the_same_style_gives_the_same_file(style: wf.Tensors, tmp_path: Path) -> None:
    notes = {f"note {i}": str(i) for i in range(20)}
    dctnet.write(tmp_path / "a.safetensors", OFFICIAL, style, notes)
    shuffled = dict(reversed(style.items()))
    dctnet.write(tmp_path / "b.safetensors", OFFICIAL, shuffled, dict(reversed(notes.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_no_other(
    style: wf.Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(b"old")

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", no_room)
    with pytest.raises(WeightsError, match="No space left"):
        dctnet.write(path, OFFICIAL, style)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["style.safetensors"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("convs.3.bias"), "convs.3.bias"),
        (lambda t: t.update({"convs.10.bias": torch.zeros(3)}), "convs.10.bias"),
        (lambda t: t.update({"convs.3.bias": torch.zeros(63)}), r"\(63,\)"),
        (lambda t: t.update({"convs.3.bias": torch.full((64,), 1e6)}), "finite in torch.float16"),
        (lambda t: t.update({"convs.3.bias": torch.full((64,), torch.nan)}), "NaN"),
    ],
)
def test_write_refuses_what_read_would_refuse(
    change: Callable[[wf.Tensors], object], reason: str, style: wf.Tensors, tmp_path: Path
) -> None:
    tensors = dict(style)
    change(tensors)
    path = tmp_path / "style.safetensors"
    with pytest.raises(WeightsError, match=reason):
        dctnet.write(path, OFFICIAL, tensors, dtype=torch.float16)
    assert not path.exists()


@pytest.mark.parametrize("name", ["graph", "port, training", "safetensors, TensorFlow names"])
@pytest.mark.parametrize("half", [False, True])
def test_convert_keeps_config_and_bits(
    name: str, half: bool, style: wf.Tensors, tmp_path: Path
) -> None:
    ending, config, build = FORMATS[name]
    source, target = tmp_path / f"{CHINESE}{ending}", tmp_path / "out" / f"{CHINESE} 2.safetensors"
    source.write_bytes(build(style))
    summary = dctnet.convert(source, target, half=half)
    assert summary.startswith(f"{source.name} -> {target.name}: ")
    assert ("PyTorch port" in summary) == (config == PORT_CONFIG)
    read_config, tensors = dctnet.read(target)
    assert read_config == config
    assert same(tensors, style)


def test_convert_overwrites_only_when_asked(style: wf.Tensors, tmp_path: Path) -> None:
    source, target = tmp_path / "a.pb", tmp_path / "b.safetensors"
    source.write_bytes(wf.graph_bytes(wf.tensorflow(style)))
    target.write_bytes(b"mine")
    with pytest.raises(WeightsError, match="exists already"):
        dctnet.convert(source, target)
    assert target.read_bytes() == b"mine"
    dctnet.convert(source, target, overwrite=True)
    assert same(dctnet.read(target)[1], style)
    with pytest.raises(WeightsError, match=r"ends in \.safetensors"):
        dctnet.convert(source, tmp_path / "b.pt")


def test_float_val_fills_the_rest_with_its_last_number(style: wf.Tensors, tmp_path: Path) -> None:
    """TensorFlow shortens constants of equal trailing numbers; packed, alone, or as halves."""
    named = wf.tensorflow(style)
    fields = {
        "generator/Conv_4/biases": (wf.message(5, struct.pack("<3f", 1, 2, 3)), 1),
        "generator/Conv_5/biases": (b"\x2d" + struct.pack("<f", 0.5), 1),
        "generator/Conv_6/biases": (wf.message(13, wf.varint(0x3C00)), 19),
        "generator/Conv_7/biases": (wf.integer(13, 0x3C00) + wf.integer(13, 0xC000), 19),
        "generator/Conv_8/biases": (wf.message(6, struct.pack("<d", -4)), 2),
    }
    extra = b""
    for name, (body, dtype) in fields.items():
        extra += wf.constant(name, wf.tensor_proto(named.pop(name).shape, body, dtype), dtype)
    path = tmp_path / "style.pb"
    path.write_bytes(wf.graph_bytes(named, extra))
    tensors = dctnet.read(path)[1]
    assert tensors["convs.4.bias"].tolist() == [1.0, 2.0] + [3.0] * 126
    assert tensors["convs.5.bias"].tolist() == [0.5] * 64
    assert tensors["convs.6.bias"].tolist() == [1.0] * 64
    assert tensors["convs.7.bias"].tolist() == [1.0] + [-2.0] * 31
    assert tensors["convs.8.bias"].tolist() == [-4.0] * 32


def test_shapes_are_the_published_network() -> None:
    assert len(dctnet.SHAPES) == 36
    assert sum(torch.Size(shape).numel() for shape in dctnet.SHAPES.values()) == 1_467_075
    assert set(dctnet.SHAPES) == set(wf.random_style())
