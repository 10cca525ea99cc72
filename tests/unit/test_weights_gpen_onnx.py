"""GPEN as an ONNX model: told by content, judged before it runs, run one face after another."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
import weights_files as wf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from realtoon.weights_loader import gpen, gpen_onnx, networks
from realtoon.weights_loader.errors import WeightsError

Size = int | str
FLOAT, HALF, INT = 1, 10, 6
ANY = "batch"
MINUS_ONE = (1 << 64) - 1


def value(name: str, shape: tuple[Size, ...] | None, dtype: int = FLOAT) -> bytes:
    """ValueInfoProto."""
    sizes = [
        wf.integer(1, size) if isinstance(size, int) else wf.message(2, size.encode())
        for size in shape or ()
    ]
    body = wf.integer(1, dtype)
    if shape is not None:
        body += wf.message(2, b"".join(wf.message(1, size) for size in sizes))
    return wf.message(1, name.encode()) + wf.message(2, wf.message(1, body))


def node(op: str, given: tuple[str, ...], out: str) -> bytes:
    inputs = b"".join(wf.message(1, name.encode()) for name in given)
    return wf.message(1, inputs + wf.message(2, out.encode()) + wf.message(4, op.encode()))


def weight(name: str, number: float) -> bytes:
    """TensorProto: one float32."""
    return wf.message(
        5,
        wf.integer(1, 1) + wf.integer(2, FLOAT) + wf.message(8, name.encode())
        + wf.message(9, wf.raw(torch.tensor([number]))),
    )  # fmt: skip


def model(
    shape: tuple[Size, ...] | None = (1, 3, 256, 256),
    out: tuple[Size, ...] | None = (1, 3, 256, 256),
    *,
    name: str = "input",
    dtype: int = FLOAT,
    op: str = "Neg",
    extra: bytes = b"",
    outputs: int = 1,
) -> bytes:
    """A model of one step, by the format's specification."""
    graph = node(op, (name,), "restored") + wf.message(2, b"g") + extra
    graph += wf.message(11, value(name, shape, dtype))
    graph += wf.message(12, value("restored", out, dtype)) * outputs
    opset = wf.message(8, wf.message(1, b"") + wf.integer(2, 13))
    return wf.integer(1, 7) + wf.message(2, b"by hand") + wf.message(7, graph) + opset


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # No ending tells what it is.
    return tmp_path / "人脸 GPEN.pth"


def runtime() -> None:
    pytest.importorskip("onnxruntime", reason="no onnxruntime (pip install onnxruntime)")


@pytest.mark.parametrize("batch", [1, ANY, MINUS_ONE])
@pytest.mark.parametrize("name", ["input", "x.1", "人脸"])
def test_it_is_opened_and_run(batch: Size, name: str, path: Path) -> None:
    runtime()
    shape = (batch, 3, 256, 256)
    path.write_bytes(model(shape, shape, name=name))
    assert gpen.is_onnx(path)
    opened = gpen.open_onnx(path)
    assert opened.size == 256
    faces = torch.randn(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    calls: list[int] = []
    restored = opened.restore(faces, check=lambda: calls.append(1))
    assert torch.equal(restored, -faces)
    assert restored.dtype == torch.float32
    assert len(calls) == 3
    assert opened.restore(faces[:0]).shape == (0, 3, 256, 256)
    assert torch.equal(opened.restore(faces.double()[:1]).float(), -faces[:1])


def test_a_half_precision_model(path: Path) -> None:
    runtime()
    path.write_bytes(model(dtype=HALF))
    faces = torch.linspace(-1, 1, 3 * 256 * 256).reshape(1, 3, 256, 256)
    restored = gpen.open_onnx(path).restore(faces)
    assert restored.dtype == torch.float32
    assert torch.equal(restored, -faces.half().float())


def test_old_files_list_their_weights_among_the_inputs(path: Path) -> None:
    runtime()
    listed = weight("w", 2.0) + wf.message(11, value("w", (1,)))
    graph = node("Mul", ("input", "w"), "restored") + wf.message(2, b"g") + listed
    graph += wf.message(11, value("input", (ANY, 3, 512, 512)))
    graph += wf.message(12, value("restored", None))
    opset = wf.message(8, wf.message(1, b"") + wf.integer(2, 13))
    path.write_bytes(wf.integer(1, 3) + wf.message(7, graph) + opset)
    opened = gpen.open_onnx(path)
    assert opened.size == 512
    faces = torch.rand(1, 3, 512, 512)
    assert torch.equal(opened.restore(faces), 2 * faces)


def test_the_first_of_several_outputs_counts(path: Path) -> None:
    """The published network gives its latent vector beside the face."""
    runtime()
    graph = node("Neg", ("input",), "face") + node("Abs", ("input",), "latent")
    graph += wf.message(2, b"g") + wf.message(11, value("input", (1, 3, 256, 256)))
    graph += b"".join(wf.message(12, value(n, (1, 3, 256, 256))) for n in ("face", "latent"))
    opset = wf.message(8, wf.message(1, b"") + wf.integer(2, 13))
    path.write_bytes(wf.integer(1, 7) + wf.message(7, graph) + opset)
    face = torch.rand(1, 3, 256, 256)
    assert torch.equal(gpen.open_onnx(path).restore(face), -face)


@pytest.mark.parametrize(
    "shape", [(1, 3, 128, 128), (1, 4, 256, 256), (3, 256, 256), (0, 3, 256, 128)]
)
def test_faces_of_another_shape_are_an_error_of_the_caller(
    shape: tuple[int, ...], path: Path
) -> None:
    runtime()
    path.write_bytes(model())
    with pytest.raises(ValueError, match="faces of shape"):
        gpen.open_onnx(path).restore(torch.zeros(shape))


def test_interrupting_goes_through(path: Path) -> None:
    runtime()

    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    path.write_bytes(model())
    with pytest.raises(StopError):
        gpen.open_onnx(path).restore(torch.zeros(1, 3, 256, 256), check=stop)


REFUSED: dict[str, tuple[str, bytes]] = {
    "an upscaler": ("'input' of shape (any, 3, any, any)", model(("n", 3, "h", "w"))),
    "128 pixels": ("'input' of shape (1, 3, 128, 128)", model((1, 3, 128, 128))),
    "300 pixels": ("(1, 3, 300, 300)", model((1, 3, 300, 300))),
    "4096 pixels": ("(1, 3, 4096, 4096)", model((1, 3, 4096, 4096))),
    "not square": ("(1, 3, 256, 512)", model((1, 3, 256, 512))),
    "one channel": ("(1, 1, 256, 256)", model((1, 1, 256, 256))),
    "channels last": ("(1, 256, 256, 3)", model((1, 256, 256, 3))),
    "a batch of 0": ("(0, 3, 256, 256)", model((0, 3, 256, 256))),
    "a batch of 4": ("(4, 3, 256, 256)", model((4, 3, 256, 256))),
    "vectors": ("(1, 512)", model((1, 512))),
    "no shape": ("of shape ()", model(None)),
    "integers": ("data type 6", model(dtype=INT)),
    "two inputs": (
        "one input, the face, got 2 inputs: weight, input",
        model(extra=wf.message(11, value("weight", (1,), 11))),
    ),
    "no outputs": ("one input, the face, got 1 inputs", model(outputs=0)),
    "it enlarges": ("a face of 256 pixels as its first output", model(out=(1, 3, 512, 512))),
    "a mask": ("a face of 256 pixels as its first output", model(out=(1, 19, 256, 256))),
    "a vector": ("a face of 256 pixels as its first output", model(out=(1, 512))),
    "cut": ("a truncated file", model()[:-30]),
    "cut in the middle": ("a truncated file", model()[: len(model()) // 2]),
    "a field too long": (
        "a field longer than what holds it",
        wf.integer(1, 7) + wf.message(7, wf.message(2, b"g") + b"\x0a\x7f"),
    ),
    "many fields": (
        "more than 100,000 fields",
        wf.integer(1, 7) + wf.message(7, wf.integer(9, 1) * 200_000),
    ),
    "many fields in a weight": (
        "more than 100,000 fields",
        wf.integer(1, 7) + wf.message(7, wf.message(5, wf.integer(9, 1) * 60_000) * 9),
    ),
    "a text": ("an ONNX model, got something else", b"404: Not Found"),
    "a checkpoint": ("an ONNX model, got something else", wf.torch_bytes({"x": torch.zeros(1)})),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_by_name_and_reason_in_a_second(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Judged without onnxruntime, which may be missing and would take the memory.
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message, data = REFUSED[name]
    path.write_bytes(data)
    seconds: list[float] = []
    while len(seconds) < 3 and not any(taken < 1.0 for taken in seconds):
        start = time.perf_counter()
        with pytest.raises(WeightsError) as caught:
            gpen.open_onnx(path)
        seconds.append(time.perf_counter() - start)
    said = str(caught.value)
    assert said.startswith(f"{path.name}: expected ")
    assert message in said
    assert said.isprintable()
    assert min(seconds) < 1.0


def test_without_onnxruntime_the_next_step_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path.write_bytes(model())
    with pytest.raises(WeightsError, match=r"pip install onnxruntime.*or use the \.pth"):
        gpen.open_onnx(path)


def test_what_onnxruntime_refuses_is_said(path: Path) -> None:
    runtime()
    path.write_bytes(model(op="NoSuchStep"))
    with pytest.raises(WeightsError, match="an ONNX model that onnxruntime opens"):
        gpen.open_onnx(path)


def test_a_model_that_gives_another_shape_is_refused(path: Path) -> None:
    runtime()
    # Declares nothing about its output.
    path.write_bytes(model(out=None, op="GlobalAveragePool"))
    opened = gpen.open_onnx(path)
    with pytest.raises(WeightsError, match=r"a result of shape \(1, 3, 256, 256\), got \(1, 3, 1"):
        opened.restore(torch.zeros(1, 3, 256, 256))


def test_reading_says_how_to_use_it(path: Path) -> None:
    path.write_bytes(model())
    assert networks.which(path) == "gpen"
    for read in (gpen.read, gpen.config_of):
        with pytest.raises(WeightsError, match=r"an ONNX model.*GPENRestore.*or use the \.pth"):
            read(path)


def test_what_is_no_model(tmp_path: Path) -> None:
    others = {
        "style.pb": wf.graph_bytes(wf.tensorflow(wf.random_style())),
        "saved_model.pb": wf.integer(1, 1) + wf.message(2, bytes(100)),
        "gpen.safetensors": wf.safetensors_bytes({"a": torch.zeros(1)}),
        "empty": b"",
        "no version": wf.message(7, b""),
        "version 0": wf.integer(1, 0) + wf.message(7, b""),
        "no graph": wf.integer(1, 7) + wf.message(2, b"pytorch"),
        "wrong field": wf.integer(1, 7) + wf.integer(30, 1) + wf.message(7, b""),
    }
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
        assert not gpen.is_onnx(tmp_path / name), name
    assert not gpen.is_onnx(tmp_path)
    assert not gpen.is_onnx(tmp_path / "nothing")


@settings(
    max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 10**6), change=st.binary(min_size=1, max_size=6))
def test_damaged_models_never_break(position: int, change: bytes, tmp_path: Path) -> None:
    """Judging alone: what onnxruntime makes of it is not ours."""
    data = bytearray(model(extra=weight("w", 1.0)))
    at = position % len(data)
    data[at : at + len(change)] = change
    path = tmp_path / "fuzz"
    path.write_bytes(data)
    gpen.is_onnx(path)
    try:
        gpen_onnx.describe(path)
    except WeightsError as error:
        assert str(error).isprintable()


def test_a_model_made_by_the_onnx_package(path: Path) -> None:
    runtime()
    onnx = pytest.importorskip("onnx", reason="no onnx (pip install onnx)")
    helper = onnx.helper
    shape = ["n", 3, 1024, 1024]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["face"], ["out"])],
        "g",
        [helper.make_tensor_value_info("face", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, shape)],
    )
    opset = [helper.make_opsetid("", 13)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=7).SerializeToString()
    )
    assert gpen.is_onnx(path)
    assert gpen.open_onnx(path).size == 1024
