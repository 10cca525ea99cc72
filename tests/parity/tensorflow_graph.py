"""Writes DCT-Net as a frozen TensorFlow graph, without TensorFlow.

The nodes, their names and their order are those that the official export gives under TensorFlow 1:
modelscope/modelscope @2905da1 ``models/cv/cartoon/{network,loss,model_tf}.py`` frozen by
``exporters/cv/cartoon_translation_exporter.py``. ``make_golden.py`` runs that code itself and holds
this writer to its results. Wire format: tensorflow/core/framework/{graph,node_def,attr_value,
tensor,tensor_shape}.proto.
"""

import math
import struct
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

FLOAT, INT32, UINT8 = 1, 3, 4
# (input channels, output channels, kernel side, stride) of convs.0 to convs.9
CONVS = [
    (3, 32, 7, 1),
    (32, 32, 3, 2),
    (32, 64, 3, 1),
    (64, 64, 3, 2),
    (64, 128, 3, 1),
    (128, 64, 3, 1),
    (64, 64, 3, 1),
    (64, 32, 3, 1),
    (32, 32, 3, 1),
    (32, 3, 7, 1),
]
BLOCKS = 4


def random_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Weights under canonical names, OIHW float32, whose output fills [-1,1] but rarely clips."""
    # RandomState's stream never changes, so goldens made from a seed stay good.
    draw = np.random.RandomState(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.from_numpy((draw.standard_normal(shape) * std).astype(np.float32))

    tensors = {}
    for index, (inputs, outputs, side, _) in enumerate(CONVS):
        # He's gain for a 0.2 leaky ReLU; the two sums with a skip double the variance, the last
        # layer is linear and its output should stay within the clip.
        gain = {6: 0.7, 8: 0.7, 9: 0.28}.get(index, 1.0)
        std = gain * math.sqrt(2 / 1.04 / (inputs * side * side))
        tensors[f"convs.{index}.weight"] = normal(outputs, inputs, side, side, std=std)
        tensors[f"convs.{index}.bias"] = normal(outputs, std=0.05)
    for block in range(BLOCKS):
        for part, gain in (("conv1", 1.0), ("conv2", 0.5)):
            std = gain * math.sqrt(2 / 1.04 / (128 * 9))
            tensors[f"blocks.{block}.{part}.weight"] = normal(128, 128, 3, 3, std=std)
            tensors[f"blocks.{block}.{part}.bias"] = normal(128, std=0.05)
    return tensors


def tensorflow_name(canonical: str) -> str:
    """``convs.3.weight`` is ``generator/Conv_3/weights`` over there."""
    group, index, *rest = canonical.split(".")
    suffix = {"weight": "weights", "bias": "biases"}[rest[-1]]
    if group == "blocks":
        return f"generator/block_{index}/{rest[0]}/{suffix}"
    return f"generator/Conv{'' if index == '0' else '_' + index}/{suffix}"


# --- the wire format ------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative int64 takes ten bytes
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _chunk(field: int, payload: bytes | str) -> bytes:
    data = payload.encode("utf-8") if isinstance(payload, str) else payload
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _shape(sizes: Iterable[int]) -> bytes:
    return b"".join(_chunk(2, _number(1, size)) for size in sizes)


def _tensor_proto(value: Tensor) -> bytes:
    kind, letter = {torch.float32: (FLOAT, "f"), torch.int32: (INT32, "i")}[value.dtype]
    flat = value.flatten().tolist()
    head = _number(1, kind) + _chunk(2, _shape(value.shape))
    if len(flat) == 1:  # TensorFlow writes single numbers as typed values, the rest as raw bytes
        packed = struct.pack("<f", flat[0]) if letter == "f" else _varint(flat[0])
        return head + _chunk(5 if letter == "f" else 7, packed)
    return head + _chunk(4, struct.pack(f"<{len(flat)}{letter}", *flat))


class _Type(int):
    """A DataType, to tell it from a plain number."""


class _Shape(tuple):
    """A shape, to tell it from a list of numbers."""


def _attribute(value: object) -> bytes:
    match value:
        case bool():
            return _number(5, int(value))
        case _Type():
            return _number(6, value)
        case int():
            return _number(3, value)
        case float():
            return _varint(4 << 3 | 5) + struct.pack("<f", value)
        case str():
            return _chunk(2, value)
        case _Shape():
            return _chunk(7, _shape(value))
        case list():
            return _chunk(1, _chunk(3, b"".join(_varint(item) for item in value)))
        case Tensor():
            return _chunk(8, _tensor_proto(value))
    raise TypeError(f"no attribute form for {type(value).__name__}")


# --- the graph ------------------------------------------------------------------------------------


class GraphWriter:
    """Collects nodes; names repeat as TensorFlow makes them unique: x, x_1, x_2."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._names: dict[str, int] = {}

    def unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name

    def node(self, op: str, name: str, inputs: Iterable[str] = (), **attributes: object) -> str:
        body = _chunk(1, name) + _chunk(2, op) + b"".join(_chunk(3, each) for each in inputs)
        for key, value in sorted(attributes.items()):
            body += _chunk(5, _chunk(1, key) + _chunk(2, _attribute(value)))
        self._nodes.append(_chunk(1, body))
        return name

    def constant(self, name: str, value: float | int | list[int] | Tensor) -> str:
        if not isinstance(value, Tensor):
            kind = torch.float32 if isinstance(value, float) else torch.int32
            value = torch.tensor(value, dtype=kind)
        kind = FLOAT if value.dtype == torch.float32 else INT32
        return self.node("Const", name, dtype=_Type(kind), value=value.contiguous())

    def binary(self, op: str, name: str, left: str, right: str | float | int) -> str:
        name = self.unique(name)
        kind = INT32 if isinstance(right, int) else FLOAT
        other = right if isinstance(right, str) else self.constant(f"{name}/y", right)
        return self.node(op, name, [left, other], T=_Type(kind))

    def slice(
        self, value: str, scope: str, begin: list[int], end: list[int], *, kind: int, **masks: int
    ) -> str:
        name = self.unique(f"{scope}strided_slice")
        stack = self.constant(f"{name}/stack", begin)
        stack_1 = self.constant(f"{name}/stack_1", end)
        stack_2 = self.constant(f"{name}/stack_2", [1] * len(begin))
        names = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
        return self.node(
            "StridedSlice",
            name,
            [value, stack, stack_1, stack_2],
            T=_Type(kind),
            Index=_Type(INT32),
            **{key: masks.get(key, 0) for key in names},
        )

    def side(self, value: str, scope: str, axis: int) -> str:
        shape = self.node(
            "Shape", self.unique(f"{scope}Shape"), [value], T=_Type(FLOAT), out_type=_Type(INT32)
        )
        return self.slice(shape, scope, [axis], [axis + 1], kind=INT32, shrink_axis_mask=1)

    def finish(self) -> bytes:
        return b"".join(self._nodes) + _chunk(4, _number(1, 134))  # versions.producer


class _Network(GraphWriter):
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tensors = tensors

    def conv(self, value: str, canonical: str, stride: int) -> str:
        scope = tensorflow_name(f"{canonical}.weight").rsplit("/", 1)[0]
        weight = self._tensors[f"{canonical}.weight"].float().permute(2, 3, 1, 0)
        reads = []
        for name, tensor in (
            ("weights", weight),
            ("biases", self._tensors[f"{canonical}.bias"].float()),
        ):
            constant = self.constant(f"{scope}/{name}", tensor)
            reads.append(self.node("Identity", f"{constant}/read", [constant], T=_Type(FLOAT)))
        value = self.node(
            "Conv2D",
            f"{scope}/Conv2D",
            [value, reads[0]],
            T=_Type(FLOAT),
            data_format="NHWC",
            dilations=[1, 1, 1, 1],
            padding="SAME",
            strides=[1, stride, stride, 1],
            use_cudnn_on_gpu=True,
        )
        return self.node(
            "BiasAdd", f"{scope}/BiasAdd", [value, reads[1]], T=_Type(FLOAT), data_format="NHWC"
        )

    def leaky(self, value: str, scope: str = "generator/") -> str:
        name = self.unique(f"{scope}LeakyRelu")
        return self.node("LeakyRelu", name, [value], T=_Type(FLOAT), alpha=0.2)

    def layer(self, value: str, index: int) -> str:
        return self.leaky(self.conv(value, f"convs.{index}", CONVS[index][3]))

    def block(self, value: str, index: int) -> str:
        scope = f"generator/block_{index}/"
        inner = self.leaky(self.conv(value, f"blocks.{index}.conv1", 1), scope)
        inner = self.conv(inner, f"blocks.{index}.conv2", 1)
        return self.binary("AddV2", f"{scope}add", inner, value)

    def double(self, value: str, skip: str) -> str:
        """TensorFlow 1's bilinear: no half-pixel centres, no aligned corners."""
        scope = "generator/"
        sides = [self.side(value, scope, axis) for axis in (1, 2)]
        sides = [self.binary("Mul", f"{scope}mul", side, 2) for side in sides]
        name = self.unique(f"{scope}ResizeBilinear")
        size = self.node("Pack", f"{name}/size", sides, N=2, T=_Type(INT32), axis=0)
        value = self.node(
            "ResizeBilinear",
            name,
            [value, size],
            T=_Type(FLOAT),
            align_corners=False,
            half_pixel_centers=False,
        )
        return self.binary("AddV2", f"{scope}add", value, skip)

    def generator(self, image: str) -> str:
        x0 = self.layer(image, 0)
        x1 = self.layer(self.layer(x0, 1), 2)
        x2 = self.layer(self.layer(x1, 3), 4)
        for index in range(BLOCKS):
            x2 = self.block(x2, index)
        x3 = self.layer(self.layer(self.double(self.layer(x2, 5), x1), 6), 7)
        x4 = self.layer(self.double(x3, x0), 8)
        return self.conv(x4, "convs.9", 1)

    def box(self, value: str, channels: int) -> str:
        name = self.unique("depthwise")
        kernel = self.constant(f"{name}/filter_in", torch.full((3, 3, channels, 1), 1 / 9))
        return self.node(
            "DepthwiseConv2dNative",
            name,
            [value, kernel],
            T=_Type(FLOAT),
            data_format="NHWC",
            dilations=[1, 1, 1, 1],
            padding="SAME",
            strides=[1, 1, 1, 1],
        )

    def guided_filter(self, guide: str, source: str) -> str:
        """Radius 1, eps 0.01; a zero-padded mean divided by its response to ones."""
        shape = self.node("Shape", "Shape", [guide], T=_Type(FLOAT), out_type=_Type(INT32))
        height, width = (
            self.slice(shape, "", [axis], [axis + 1], kind=INT32, shrink_axis_mask=1)
            for axis in (1, 2)
        )
        first, last = (self.constant(f"ones/packed/{place}", 1) for place in (0, 3))
        packed = self.node(
            "Pack", "ones/packed", [first, height, width, last], N=4, T=_Type(INT32), axis=0
        )
        fill = self.constant("ones/Const", 1.0)
        ones = self.node("Fill", "ones", [packed, fill], T=_Type(FLOAT), index_type=_Type(INT32))
        count = self.box(ones, 1)

        def mean(value: str) -> str:
            return self.binary("RealDiv", "truediv", self.box(value, 3), count)

        def times(left: str, right: str) -> str:
            return self.binary("Mul", "mul", left, right)

        def minus(left: str, right: str) -> str:
            return self.binary("Sub", "sub", left, right)

        mean_x, mean_y = mean(guide), mean(source)
        covariance = minus(mean(times(guide, source)), times(mean_x, mean_y))
        variance = minus(mean(times(guide, guide)), times(mean_x, mean_x))
        slope = self.binary(
            "RealDiv", "truediv", covariance, self.binary("AddV2", "add", variance, 0.01)
        )
        offset = minus(mean_y, times(slope, mean_x))
        return self.binary("AddV2", "add", times(mean(slope), guide), mean(offset))


def frozen_graph(tensors: Mapping[str, Tensor]) -> bytes:
    """A GraphDef: ``input_image`` float32 [H,W,3] BGR 0..255 to ``output_image`` uint8 [H,W,3].

    tensors: canonical names, OIHW, any float dtype (written as float32). H and W must be multiples
    of 4 when it runs.
    """
    graph = _Network(tensors)
    image = graph.node("Placeholder", "input_image", dtype=_Type(FLOAT), shape=_Shape((-1, -1, 3)))
    image = graph.slice(image, "", [0, 0, 0], [0, 0, 0], kind=FLOAT, begin_mask=7, end_mask=7)
    image = graph.slice(image, "", [0], [0], kind=FLOAT, new_axis_mask=1)
    image = graph.binary("RealDiv", "truediv", image, 127.5)
    image = graph.binary("Sub", "sub", image, 1.0)
    result = graph.guided_filter(image, graph.generator(image))
    result = graph.slice(result, "", [0], [1], kind=FLOAT, shrink_axis_mask=1)
    high = graph.constant("clip_by_value/Minimum/y", 0.999999)
    result = graph.node("Minimum", "clip_by_value/Minimum", [result, high], T=_Type(FLOAT))
    low = graph.constant("clip_by_value/y", -0.999999)
    result = graph.node("Maximum", "clip_by_value", [result, low], T=_Type(FLOAT))
    result = graph.binary("AddV2", "add", result, 1.0)
    result = graph.binary("Mul", "mul", result, 127.5)
    graph.node(
        "Cast",
        "output_image",
        [result],
        SrcT=_Type(FLOAT),
        DstT=_Type(UINT8),
        Truncate=False,
    )
    return graph.finish()
