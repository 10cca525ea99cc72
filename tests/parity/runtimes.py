"""Runs the same DCT-Net weights in the runtimes that people use today.

Each function returns a callable: numpy float32 [H,W,3] BGR 0..255, H and W multiples of 4, to numpy
uint8 [H,W,3] BGR. Each raises ImportError where its runtime is not installed. ``size`` fixes the
picture's (height, width) where the runtime gains from knowing it; without it any size runs.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tensorflow_graph import frozen_graph
from torch import Tensor

Runner = Callable[[np.ndarray], np.ndarray]


def tensorflow_runner(graph: bytes, threads: int) -> Runner:
    """TensorFlow 2 running a frozen graph through its version 1 session."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read once, at import
    import tensorflow

    tf = tensorflow.compat.v1
    definition = tf.GraphDef()
    definition.ParseFromString(graph)
    own = tensorflow.Graph()
    with own.as_default():
        tf.import_graph_def(definition, name="")
    settings = tf.ConfigProto(
        intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads
    )
    session = tf.Session(graph=own, config=settings)
    # make_callable leaves out the feed's and the fetch's bookkeeping.
    call = session.make_callable("output_image:0", ["input_image:0"])
    return lambda image: call(image)


def openvino_runner(file: Path, threads: int, size: tuple[int, int] | None = None) -> Runner:
    """OpenVINO reading a frozen graph (.pb) or an ONNX model itself, in float32 throughout."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    if size is not None:
        model.reshape({"input_image:0": [*size, 3]})
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()

    def run(image: np.ndarray) -> np.ndarray:
        request.infer([image], share_inputs=True)
        return request.get_output_tensor().data.copy()

    return run


def onnxruntime_runner(model: bytes, threads: int, size: tuple[int, int] | None = None) -> Runner:
    """ONNX Runtime on the CPU with all its graph optimisations."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 3
    for name, length in zip(("height", "width"), size or (), strict=False):
        settings.add_free_dimension_override_by_name(name, length)
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"input_image": image})[0]


def through_pipeline(run: Runner, image_rgb: np.ndarray) -> np.ndarray:
    """uint8 RGB [H,W,3] of any size, as the official pipeline feeds its graph.

    BGR, padded with white at the right and the bottom to multiples of 16, cropped afterwards.
    """
    height, width = image_rgb.shape[:2]
    edges = ((0, -height % 16), (0, -width % 16), (0, 0))
    padded = np.pad(image_rgb, edges, constant_values=255)
    result = run(np.ascontiguousarray(padded[..., ::-1], dtype=np.float32))
    return result[:height, :width, ::-1]


def runners(
    tensors: Mapping[str, Tensor],
    folder: Path,
    threads: int,
    size: tuple[int, int] | None = None,
) -> dict[str, Runner]:
    """Every installed runtime by its name, each on these weights (canonical names, OIHW).

    folder: an existing one, for the files that OpenVINO reads.
    """
    graph = frozen_graph(tensors)
    found: dict[str, Runner] = {}

    def tensorflow() -> Runner:
        return tensorflow_runner(graph, threads)

    def openvino() -> Runner:
        file = folder / "style.pb"
        file.write_bytes(graph)
        return openvino_runner(file, threads, size)

    def onnxruntime() -> Runner:
        from onnx_graph import onnx_model

        return onnxruntime_runner(onnx_model(tensors), threads, size)

    for name, make in (
        ("TensorFlow", tensorflow),
        ("OpenVINO", openvino),
        ("ONNX Runtime", onnxruntime),
    ):
        try:
            found[name] = make()
        except ImportError:
            continue
    return found
