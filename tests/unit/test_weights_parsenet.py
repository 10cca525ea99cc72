"""The face parser: published files as they are, everything else refused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import gpen_weights as gw
import pytest
import torch
import weights_cases
import weights_files as wf
from realtoon.weights_loader import __main__ as entry_point
from realtoon.weights_loader import networks, parsenet
from realtoon.weights_loader.errors import WeightsError

MASK = "out_mask_conv.conv2d.weight"
VARIANCE = "body.3.conv1.norm.norm.running_var"


@pytest.fixture(scope="module")
def state() -> gw.Tensors:
    """Numbers that float16 holds exactly."""
    drawn = gw.parsenet(5)
    return {n: t.half().float() if t.is_floating_point() else t for n, t in drawn.items()}


def expected(state: gw.Tensors) -> gw.Tensors:
    return {name: tensor for name, tensor in state.items() if "tracked" not in name}


def same(read: gw.Tensors, state: gw.Tensors) -> bool:
    left = expected(state)
    return list(read) == list(left) and all(
        read[name].dtype == torch.float32 and torch.equal(read[name], left[name]) for name in left
    )


def test_names_and_shapes() -> None:
    published = gw.parsenet()
    assert {n: tuple(t.shape) for n, t in expected(published).items()} == parsenet.SHAPES
    assert list(expected(published)) == list(parsenet.SHAPES)
    assert len(published) == 238
    assert sum(map(math.prod, parsenet.SHAPES.values())) == 21_319_894


LAYOUTS: dict[str, Callable[[gw.Tensors], bytes]] = {
    "published": wf.torch_bytes,
    "old format": lambda t: wf.torch_bytes(t, legacy=True),
    "without counters": lambda t: wf.torch_bytes(expected(t)),
    "distributed": lambda t: wf.torch_bytes({f"module.{n}": x for n, x in t.items()}),
    "safetensors": wf.safetensors_bytes,
    "safetensors of halves": lambda t: wf.safetensors_bytes(
        {n: x.half() for n, x in expected(t).items()}
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_numbers(name: str, state: gw.Tensors, tmp_path: Path) -> None:
    path = tmp_path / "解析 ParseNet.pth"
    path.write_bytes(LAYOUTS[name](state))
    assert same(parsenet.read(path), state)
    assert networks.which(path) == "parsenet"


def test_the_converter(state: gw.Tensors, tmp_path: Path) -> None:
    source, target = tmp_path / "ParseNet-latest.pth", tmp_path / "parsenet.safetensors"
    source.write_bytes(wf.torch_bytes(state))
    said = entry_point.run(["convert", str(source), str(target), "--half"])
    assert said.startswith(
        "ParseNet-latest.pth -> parsenet.safetensors: face parser (ParseNet), 202 tensors, float16"
    )
    assert same(parsenet.read(target), state)


def test_what_is_no_parser_is_not_written(tmp_path: Path) -> None:
    blank = {name: torch.zeros(shape) for name, shape in parsenet.SHAPES.items()}
    path = tmp_path / "parsenet.safetensors"
    for bad, said in (
        ({}, "the 202 tensors of ParseNet"),
        (blank | {MASK: torch.zeros(1)}, "the 202 tensors of ParseNet"),
        (blank | {MASK: torch.full((19, 64, 3, 3), 1e6)}, "finite in torch.float16"),
    ):
        with pytest.raises(WeightsError, match=said):
            parsenet.write(path, bad, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def changed(change: Callable[[gw.Tensors], object]) -> weights_cases.Build:
    """A published file with something else in it; its numbers are one number, repeated."""

    def build(path: Path) -> None:
        named = {n: torch.ones(1).expand(shape) for n, shape in parsenet.SHAPES.items()}
        change(named)
        path.write_bytes(wf.torch_bytes(named))

    return build


def content(data: Callable[[], bytes]) -> weights_cases.Build:
    return lambda path: path.write_bytes(data()) and None


CASES: dict[str, tuple[str, weights_cases.Build]] = {
    "a tensor less": (f"1 missing: {MASK}", changed(lambda t: t.pop(MASK))),
    "a tensor more": ("1 more: x", changed(lambda t: t.update(x=torch.zeros(1)))),
    "other classes": (
        f"{MASK} of shape (19, 64, 3, 3), got (11, 64, 3, 3)",
        changed(lambda t: t.update({MASK: torch.zeros(11, 64, 3, 3)})),
    ),
    "integers": (
        f"floating-point numbers in {MASK}, got I64",
        changed(lambda t: t.update({MASK: torch.ones(1).long().expand(19, 64, 3, 3)})),
    ),
    "NaN": (
        f"finite numbers in {VARIANCE}",
        changed(lambda t: t.update({VARIANCE: torch.full((256,), float("nan"))})),
    ),
    "a negative variance": (
        f"variances in {VARIANCE}, got a number below 0",
        changed(lambda t: t.update({VARIANCE: torch.full((256,), -0.1)})),
    ),
    "a generator": (
        "another network (2 tensors: generator.input.input, ecd0.0.0.weight)",
        content(lambda: wf.torch_bytes(
            {"generator.input.input": torch.zeros(1), "ecd0.0.0.weight": torch.zeros(1)}
        )),
    ),
    "a style's graph": ("a frozen graph", content(weights_cases.official)),
    "too large": ("at most 256 MiB", weights_cases.sparse(1 << 30, b"PK\x03\x04")),
}  # fmt: skip


def refused_in_a_second(path: Path, ran: Path) -> str:
    seconds: list[float] = []
    while len(seconds) < 3 and not any(taken < 1.0 for taken in seconds):
        start = time.perf_counter()
        with pytest.raises(WeightsError) as caught:
            parsenet.read(path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0
    assert not ran.exists(), "code of the file was run"
    said = str(caught.value)
    assert said.startswith(f"{path.name}: expected ")
    assert said.isprintable()
    return said


@pytest.mark.parametrize("name", CASES)
def test_is_refused_by_name_and_reason(name: str, tmp_path: Path) -> None:
    message, build = CASES[name]
    path = tmp_path / "坏的 ParseNet-latest.pth"
    build(path)
    said = refused_in_a_second(path, tmp_path / "ran")
    assert message in said
    assert "weights download parsenet`" in said or name == "too large"


@pytest.mark.parametrize("name", weights_cases.CASES)
def test_what_is_no_style_is_no_parser_either(name: str, tmp_path: Path) -> None:
    ending, _, build = weights_cases.CASES[name]
    path = tmp_path / f"坏的{ending}"
    try:
        build(path)
    except (AttributeError, NotImplementedError, OSError) as error:
        pytest.skip(f"this system cannot make the case: {error}")
    refused_in_a_second(path, tmp_path / "ran")
