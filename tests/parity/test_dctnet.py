"""Our DCT-Net against the published network, in the runtimes that people use.

Both sides read the same frozen graph: ours through the pack's own reader, the other side with the
runtime's importer. Random weights always; real styles where REALTOON_STYLES names a folder of them.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from realtoon.engine.dctnet import DCTNet
from realtoon.weights_loader import dctnet as loader
from reference_dctnet import port_network
from runtimes import (
    Runner,
    onnxruntime_runner,
    openvino_runner,
    tensorflow_runner,
    through_pipeline,
)
from tensorflow_graph import frozen_graph, random_tensors

GOLDEN = Path(__file__).parent / "golden" / "dctnet.npz"
SIZES = [(288, 288), (720, 1080), (513, 771)]
MAX_DIFFERENCE = 1  # of 255
MAX_DIFFERING = 1e-4  # of all values
THREADS = os.cpu_count() or 1


def _style_files() -> list[Path]:
    folder = os.environ.get("REALTOON_STYLES", "")
    return sorted(Path(folder).glob("*.safetensors")) if folder else []


STYLES = ["random weights", *(path.stem for path in _style_files())]
if len(STYLES) == 1:
    STYLES.append("real styles")  # so that their absence shows up as a skip


@pytest.fixture(scope="session")
def graph_of(tmp_path_factory) -> Callable[[str], Path]:
    """A style's frozen graph on disk, written once."""
    folder = tmp_path_factory.mktemp("graphs")

    def get(style: str) -> Path:
        target = folder / f"{style.replace(' ', '_')}.pb"
        if target.exists():
            return target
        if style == "random weights":
            target.write_bytes(frozen_graph(random_tensors(1)))
            return target
        found = [path for path in _style_files() if path.stem == style]
        if not found:
            pytest.skip("REALTOON_STYLES names no folder with *.safetensors styles")
        target.write_bytes(frozen_graph(loader.read(found[0])[1]))
        return target

    return get


@pytest.fixture(scope="session")
def runtime_of(graph_of) -> Callable[[str, str], Runner]:
    """A runtime on a style, made once: importing and compiling cost more than running."""
    made: dict[tuple[str, str], Runner] = {}

    def get(runtime: str, style: str) -> Runner:
        pytest.importorskip(runtime)
        if (runtime, style) not in made:
            file = graph_of(style)
            made[runtime, style] = (
                tensorflow_runner(file.read_bytes(), THREADS)
                if runtime == "tensorflow"
                else openvino_runner(file, THREADS)
            )
        return made[runtime, style]

    return get


@pytest.fixture(scope="session")
def ours_of(graph_of) -> Callable[[str], DCTNet]:
    made: dict[str, DCTNet] = {}

    def get(style: str) -> DCTNet:
        if style not in made:
            made[style] = _load(graph_of(style))
        return made[style]

    return get


@pytest.fixture(scope="session")
def our_picture_of(ours_of, photo) -> Callable[[str, tuple[int, int]], np.ndarray]:
    """What ours makes of the photo, drawn once for all runtimes."""
    drawn: dict[tuple[str, tuple[int, int]], np.ndarray] = {}

    def get(style: str, size: tuple[int, int]) -> np.ndarray:
        if (style, size) not in drawn:
            drawn[style, size] = _ours(ours_of(style), photo(*size))
        return drawn[style, size]

    return get


@pytest.fixture(scope="session")
def photo() -> Callable[[int, int], np.ndarray]:
    data = pytest.importorskip("skimage.data")
    image = pytest.importorskip("PIL.Image")
    astronaut = image.fromarray(data.astronaut())
    return lambda height, width: np.asarray(astronaut.resize((width, height)))


def _load(file: Path) -> DCTNet:
    config, tensors = loader.read(file)
    model = DCTNet.with_weights(config, tensors)
    return model


def _ours(model: DCTNet, image_rgb: np.ndarray) -> np.ndarray:
    """uint8 RGB [H,W,3] in and out, truncated as the graph truncates."""
    value = torch.from_numpy(image_rgb.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        result = model(value)
    assert result.shape == value.shape
    return (result[0] * 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.uint8
    assert theirs.std() > 8, "a flat picture would prove nothing"
    difference = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
    assert difference.max() <= MAX_DIFFERENCE
    assert (difference > 0).mean() <= MAX_DIFFERING


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("runtime", ["tensorflow", "openvino"])
def test_same_picture_as_the_frozen_graph(
    runtime, style, size, runtime_of, our_picture_of, photo
) -> None:
    run = runtime_of(runtime, style)
    _assert_same(our_picture_of(style, size), through_pipeline(run, photo(*size)))


def test_same_picture_as_the_onnx_model_of_the_benchmark(photo) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx_graph import onnx_model

    tensors = random_tensors(2)
    model = DCTNet.with_weights(loader.DCTNetConfig(), tensors)
    image = photo(208, 304)
    run = onnxruntime_runner(onnx_model(tensors), THREADS, (208, 304))
    _assert_same(_ours(model, image), through_pipeline(run, image))


def test_golden_of_the_official_code(tmp_path) -> None:
    """Needs no runtime: the numbers come from the official code, see make_golden.py."""
    with np.load(GOLDEN) as golden:
        image, expected = golden["image_bgr"], golden["output_bgr"]
        seed, largest = int(golden["seed"]), int(golden["max_difference"])
        differing = int(golden["max_differing"])
    file = tmp_path / "cartoon_bg.pb"
    file.write_bytes(frozen_graph(random_tensors(seed)))
    ours = _ours(_load(file), image[..., ::-1])[..., ::-1]
    difference = np.abs(ours.astype(np.int16) - expected.astype(np.int16))
    assert difference.max() <= largest
    assert np.count_nonzero(difference) <= differing


def test_reader_gives_back_every_number_of_the_graph(tmp_path) -> None:
    tensors = random_tensors(3)
    file = tmp_path / "style_cartoon_h.pb"
    file.write_bytes(frozen_graph(tensors))
    config, read = loader.read(file)
    assert config == loader.DCTNetConfig()
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("trap", "off"),
    [
        ("bgr", {}),
        ("tf1_upsample", {}),
        ("guided_filter", {}),
        # No variant up-samples as TensorFlow 1 without its padding, so both sides go without.
        ("same_padding", {"tf1_upsample": False}),
    ],
)
def test_every_trap_would_be_noticed(trap, off, ours_of, photo) -> None:
    """Each flag that tells the official network from its ports moves the picture past tolerance."""
    image = photo(288, 288)
    tensors = ours_of("random weights").state_dict()
    drawn = []
    for flags in ({**off}, {**off, trap: False}):
        model = DCTNet.with_weights(loader.DCTNetConfig(**flags), tensors)
        drawn.append(_ours(model, image))
    difference = np.abs(drawn[0].astype(np.int16) - drawn[1].astype(np.int16))
    assert difference.max() > MAX_DIFFERENCE
    assert (difference > 0).mean() > 100 * MAX_DIFFERING


def test_port_of_the_network_as_its_own_definition() -> None:
    """The PyTorch port's flags against a reference written from its layers, in float64."""
    tensors = random_tensors(4)
    config = loader.DCTNetConfig(
        bgr=False, same_padding=False, tf1_upsample=False, guided_filter=False, tanh=True
    )
    model = DCTNet.with_weights(config, tensors)
    image = torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        ours = model(image)
    expected = port_network(tensors, image.double() * 2 - 1) / 2 + 0.5
    assert expected.std() > 0.02
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-6)
