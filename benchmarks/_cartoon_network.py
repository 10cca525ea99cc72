"""Figures of the network itself: parity with the published graph, speed beside each runtime."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _pack
import numpy as np
import torch
from _measure import interleaved, median_seconds, ratio
from _pictures import astronaut
from _table import Row, missing
from torch import Tensor

_pack.load()

from realtoon.engine.dctnet import DCTNet  # noqa: E402
from realtoon.weights_loader import dctnet as loader  # noqa: E402
from runtimes import Runner, runners, through_pipeline  # noqa: E402
from tensorflow_graph import frozen_graph, random_tensors  # noqa: E402

SIZES = [(288, 288), (720, 1080), (513, 771)]
SPEED_BOUNDS = {"TensorFlow": 1.25, "OpenVINO": 1.1, "ONNX Runtime": 1.1}
PARITY_BOUND = "≤ 1/255 on ≤ 0.01 %"
LOAD_BOUND_S = 0.2


def network(tensors: Mapping[str, Tensor], config: object = None) -> DCTNet:
    """Our network with these weights, ready to run."""
    return DCTNet.with_weights(config or loader.DCTNetConfig(), tensors)


def as_graph(model: DCTNet) -> Runner:
    """Our network behind the frozen graph's own interface: float BGR [H,W,3] to uint8."""

    def run(image_bgr: np.ndarray) -> np.ndarray:
        value = torch.from_numpy(image_bgr).permute(2, 0, 1)[None].flip(1) / 255
        with torch.inference_mode():
            result = model(value)[0]
        return (result * 255).to(torch.uint8).flip(0).permute(1, 2, 0).numpy()

    return run


def styles(folder: Path | None) -> dict[str, dict[str, Tensor]]:
    """Random weights, and the safetensors styles of a folder."""
    found = {"random weights": random_tensors(1)}
    for path in sorted(folder.glob("*.safetensors")) if folder else []:
        found[path.stem] = loader.read(path)[1]
    return found


def parity(settings: SimpleNamespace) -> Iterator[Row]:
    """One row a style and size: the largest difference over the runtimes, and how common it is."""
    sizes = SIZES[:1] if settings.quick else SIZES
    with tempfile.TemporaryDirectory() as folder:
        for style, tensors in styles(settings.styles).items():
            ours = as_graph(network(tensors))
            peers = runners(tensors, Path(folder), settings.threads)
            peers.pop("ONNX Runtime", None)  # not a reader of the published file
            for size in sizes:
                yield _parity_row(style, size, ours, peers)
    if settings.styles is None:
        yield missing("parity, real styles", "give a folder with --styles", PARITY_BOUND)


def _parity_row(
    style: str, size: tuple[int, int], ours: Runner, peers: Mapping[str, Runner]
) -> Row:
    what = f"parity, {style}, {size[1]}×{size[0]}"
    if not peers:
        return missing(what, "install tensorflow-cpu or openvino", PARITY_BOUND)
    image = astronaut(*size)
    own = through_pipeline(ours, image).astype(np.int16)
    seen = [np.abs(own - through_pipeline(run, image)) for run in peers.values()]
    largest = max(int(difference.max()) for difference in seen)
    share = max(float((difference > 0).mean()) for difference in seen)
    return Row(
        what,
        f"{largest}/255 on {share:.4%}".replace("%", " %"),
        ", ".join(peers),
        bound=PARITY_BOUND,
        met=largest <= 1 and share <= 1e-4,
    )


def speed(settings: SimpleNamespace) -> Iterator[Row]:
    """The whole network with its guided filter at one size, each installed runtime beside it."""
    side = 512 if settings.quick else 1024
    image = np.ascontiguousarray(astronaut(side, side)[..., ::-1], dtype=np.float32)
    tensors = random_tensors(0)
    with tempfile.TemporaryDirectory() as folder:
        peers = runners(tensors, Path(folder), settings.threads, (side, side))
        runs = {"ours": as_graph(network(tensors)), **peers}
        results = {name: run(image) for name, run in runs.items()}
        seconds = interleaved(
            {name: (lambda run=run: run(image)) for name, run in runs.items()}, settings.rounds
        )
    what = f"network with guided filter, {side}², {settings.threads} threads"
    mine = statistics.median(seconds["ours"])
    for name, bound in SPEED_BOUNDS.items():
        if name not in peers:
            yield missing(f"{what}, {name}", "it is not installed", f"≤ {bound} ×")
            continue
        difference = np.abs(results["ours"].astype(np.int16) - results[name])
        against = ratio(seconds["ours"], seconds[name])
        yield Row(
            what,
            f"{mine:.2f} s",
            f"{name} {version(name)} {statistics.median(seconds[name]):.2f} s",
            f"{against:.2f} ×",
            f"≤ {bound} ×, same picture",
            met=against <= bound and int(difference.max()) <= 1,
        )
    if torch.cuda.is_available():
        yield _cuda_row(tensors, side)


def _cuda_row(tensors: Mapping[str, Tensor], side: int) -> Row:
    model = network(tensors).cuda()
    image = torch.rand(1, 3, side, side, device="cuda")

    def run() -> None:
        with torch.inference_mode():
            model(image)
        torch.cuda.synchronize()

    taken = median_seconds(run, 10)
    what = f"network with guided filter, {side}², {torch.cuda.get_device_name()}"
    return Row(what, f"{taken * 1000:.0f} ms", "published: T4 0.75 s, A10 0.51 s at 1024²")


def version(runtime: str) -> str:
    """An installed runtime's version."""
    import importlib

    module: Any = importlib.import_module(runtime.lower().replace(" ", ""))
    return str(module.__version__).split("-")[0]


def loading(settings: SimpleNamespace) -> Iterator[Row]:
    """From a file on disk to a network that can run, for each kind of file."""
    tensors = random_tensors(0)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "cartoon_bg.pb"
        graph.write_bytes(frozen_graph(tensors))
        converted = Path(folder) / "cartoon_bg.safetensors"
        loader.write(converted, loader.DCTNetConfig(), tensors)
        for file in (graph, converted):
            taken = median_seconds(lambda file=file: _load(file), max(5, settings.rounds))
            yield Row(
                f"loading a style, {file.suffix}",
                f"{taken:.3f} s",
                bound=f"≤ {LOAD_BOUND_S} s",
                met=taken <= LOAD_BOUND_S,
            )


def _load(file: Path) -> DCTNet:
    config, tensors = loader.read(file)
    return network(tensors, config)
