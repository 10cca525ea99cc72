"""GPEN generators: every layout gives the same config and the same bits."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import gpen_weights as gw
import pytest
import torch
import weights_files as wf
from gpen_cases import FIRST, same, shapes_only
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from realtoon.weights_loader import __main__ as entry_point
from realtoon.weights_loader import gpen, networks, safetensors_file
from realtoon.weights_loader.errors import WeightsError
from realtoon.weights_loader.gpen import GPENConfig

PUBLISHED = {
    # size: multiplier, narrow, numbers, keys (counted on the published network).
    256: (1, 0.5, 18_879_010, 144),
    512: (2, 1, 71_005_223, 163),
    1024: (2, 1, 71_210_540, 182),
    2048: (2, 1, 71_294_769, 201),
}


@pytest.fixture(scope="module")
def state() -> gw.Tensors:
    """Numbers that both kinds of half precision hold exactly, constants included."""
    whole = gw.state(gw.TINY, 3, kernels=True)
    # Rounded to 8 bits again after float16, whose smallest numbers have fewer.
    return {n: t.bfloat16().half().bfloat16().float() for n, t in whole.items()}


def cast(tensors: gw.Tensors, dtype: torch.dtype) -> gw.Tensors:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


class _Part(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def torchscript(tensors: gw.Tensors, path: Path) -> None:
    """The same names in a scripted module."""
    root = _Part()
    for name, tensor in tensors.items():
        *parts, leaf = name.split(".")
        module: torch.nn.Module = root
        for part in parts:
            if part not in dict(module.named_children()):
                module.add_module(part, _Part())
            module = module.get_submodule(part)
        module.register_buffer(leaf, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(root.eval()).save(str(path))


LAYOUTS: dict[str, tuple[str, Callable[[gw.Tensors], bytes]]] = {
    "published": (".pth", wf.torch_bytes),
    "published, old format": (".pth", lambda t: wf.torch_bytes(t, legacy=True)),
    "ModelScope": (".pt", lambda t: wf.torch_bytes(t)),
    "training": (".pth", lambda t: wf.torch_bytes(gw.training(t))),
    "training, old format": (".pth", lambda t: wf.torch_bytes(gw.training(t), legacy=True)),
    "training, distributed": (
        ".pth", lambda t: wf.torch_bytes(gw.training(gw.scoped(t, "module.")))
    ),
    "params_ema": (".pth", lambda t: wf.torch_bytes(gw.training(t, "params_ema"))),
    "state_dict": (".ckpt", lambda t: wf.torch_bytes({"state_dict": t, "epoch": 3})),
    "params": (".pth", lambda t: wf.torch_bytes({"params": t})),
    "a generator alone": (".pth", lambda t: wf.torch_bytes({"g": t})),
    "module.": (".pth", lambda t: wf.torch_bytes(gw.scoped(t, "module."))),
    "halves": (".pth", lambda t: wf.torch_bytes(cast(t, torch.bfloat16))),
    "doubles": (".pth", lambda t: wf.torch_bytes(cast(t, torch.float64))),
    "without constants": (".pth", lambda t: wf.torch_bytes(gw.without_kernels(t))),
    "safetensors": (".safetensors", wf.safetensors_bytes),
    "safetensors of float16": (
        ".safetensors", lambda t: wf.safetensors_bytes(cast(t, torch.float16))
    ),
    "safetensors of bfloat16": (
        ".safetensors", lambda t: wf.safetensors_bytes(cast(t, torch.bfloat16))
    ),
    "safetensors, flattened training": (
        ".safetensors",
        lambda t: wf.safetensors_bytes(
            gw.scoped({n: x * 2 for n, x in t.items()}, "g.") | gw.scoped(t, "g_ema.")
            | gw.scoped(gw.discriminator(), "d.")
        ),
    ),
    "safetensors named .pth": (".pth", wf.safetensors_bytes),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_config_and_bits(
    name: str, state: gw.Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, build = LAYOUTS[name]
    # A name that lies: the size is told by the content.
    path = tmp_path / f"人脸 GPEN-BFR-2048{ending}"
    path.write_bytes(build(state))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the file was run")

    monkeypatch.setattr(torch, "load", never)
    config, tensors = gpen.read(path)
    assert config == gw.TINY
    assert same(tensors, gw.without_kernels(state))
    assert gpen.config_of(path) == gw.TINY
    assert networks.which(path) == "gpen"


def test_torchscript_gives_its_parameters_without_running(
    state: gw.Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpen.pt"
    torchscript(state, path)
    monkeypatch.setattr(torch.jit, "load", None)
    config, tensors = gpen.read(path)
    assert config == gw.TINY
    assert tensors.keys() == gw.without_kernels(state).keys()
    assert all(torch.equal(tensors[name], state[name]) for name in tensors)


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_sizes(size: int, tmp_path: Path) -> None:
    multiplier, narrow, numbers, keys = PUBLISHED[size]
    config = gw.published(size, multiplier, narrow)
    expected = {name: shape for name, kind, shape in gw.layout(config) if "blur" not in kind}
    assert list(gpen.shapes(config).items()) == list(expected.items())
    assert sum(map(math.prod, expected.values())) == numbers
    constants = gpen.kernels(config)
    gains = {n: float(kind[4:]) for n, kind, _ in gw.layout(config) if "blur" in kind}
    assert constants == gains
    assert len(expected) + len(constants) == keys
    assert config.log_size == math.log2(size)
    assert gpen.config_of(shapes_only(config, tmp_path / "gpen.safetensors")) == config


_settings = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
_configs = st.sampled_from([256, 512, 1024, 2048]).flatmap(
    lambda size: st.builds(
        GPENConfig,
        st.just(size),
        st.tuples(*[st.integers(1, 40)] * (size.bit_length() - 2)),
    )
)


@settings(_settings, max_examples=25)
@given(config=_configs)
@example(config=GPENConfig(256, (1,) * 7))
def test_any_widths_are_told_by_shapes_alone(config: GPENConfig, tmp_path: Path) -> None:
    assert gpen.config_of(shapes_only(config, tmp_path / "gpen.safetensors")) == config


@pytest.mark.parametrize(
    ("size", "channels"),
    [(128, (8,) * 6), (300, (8,) * 7), (4096, (8,) * 11), (256, (8,) * 6), (256, (8,) * 8),
     (256, (0,) * 7), (256, (2000,) * 7)],
)  # fmt: skip
def test_a_config_that_no_network_has(size: int, channels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        GPENConfig(size, channels)


# --- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_is_read_back(
    dtype: torch.dtype, state: gw.Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "目录" / "gpen.safetensors"
    tensors = gw.without_kernels(state)
    gpen.write(path, gw.TINY, tensors, {"licence": "no"}, dtype)
    config, again = gpen.read(path)
    assert config == gw.TINY
    assert same(again, tensors)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    load = pytest.importorskip("safetensors.torch").load_file
    official = load(path)
    # The published network loads it strictly: names, shapes and constants are all there.
    assert {n: tuple(t.shape) for n, t in official.items()} == {
        name: shape for name, _, shape in gw.layout(gw.TINY)
    }
    kernel = official["generator.to_rgbs.0.upsample.kernel"]
    assert torch.equal(kernel, (4 * gw.BLUR).to(dtype))
    first = path.read_bytes()
    gpen.write(path, gw.TINY, dict(reversed(tensors.items())), {"licence": "no"}, dtype)
    assert path.read_bytes() == first


def test_what_is_no_generator_is_not_written(state: gw.Tensors, tmp_path: Path) -> None:
    tensors = gw.without_kernels(state)
    path = tmp_path / "gpen.safetensors"
    bad = [
        (tensors | {"x": torch.zeros(1)}, "1 wrong: x"),
        ({n: t for n, t in tensors.items() if n != FIRST}, f"1 wrong: {FIRST}"),
        (tensors | {FIRST: torch.zeros(1, 16, 4, 5)}, r"of shape \(1, 16, 4, 4\)"),
        (tensors | {FIRST: tensors[FIRST] * 1e6}, "finite in torch.float16"),
    ]
    for given_tensors, said in bad:
        with pytest.raises(WeightsError, match=said):
            gpen.write(path, gw.TINY, given_tensors, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_breaks_off_leaves_nothing(state: gw.Tensors, tmp_path: Path) -> None:
    class BrokenError(RuntimeError):
        pass

    def parts() -> object:
        yield b"half"
        raise BrokenError

    path = tmp_path / "gpen.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(BrokenError):
        safetensors_file.replace_with(path, parts())
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("half", [False, True])
def test_the_converter_takes_a_training_checkpoint(
    half: bool, state: gw.Tensors, tmp_path: Path
) -> None:
    source, target = tmp_path / "训练.pth", tmp_path / "GPEN-BFR-256.safetensors"
    source.write_bytes(wf.torch_bytes(gw.training(state)))
    words = ["convert", str(source), str(target), *(["--half"] if half else [])]
    said = entry_point.run(words)
    assert said.startswith("训练.pth -> GPEN-BFR-256.safetensors: GPEN 256, 126 tensors, ")
    assert ("float16" if half else "float32") in said
    config, again = gpen.read(target)
    assert config == gw.TINY
    assert same(again, gw.without_kernels(state))
    with pytest.raises(WeightsError, match="one that exists already"):
        entry_point.run(words)
    assert entry_point.run([*words, "--overwrite"]) == said


def test_reading_needs_no_onnxruntime() -> None:
    """It takes a second to import, and need not be there."""
    program = (
        "import sys; from weights_loader import gpen, parsenet, networks; "
        "sys.exit('onnxruntime' in sys.modules or 'onnx' in sys.modules)"
    )
    root = Path(gpen.__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, timeout=120)
