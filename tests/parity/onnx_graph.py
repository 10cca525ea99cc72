"""Writes DCT-Net as an ONNX model by hand: the same layers, input and output as the frozen graph.

Needs the ``onnx`` package. The choices favour ONNX Runtime, as it stands in benchmarks: channels
first throughout, and the guided filter's zero-padded mean divided by its response to ones written
as one AveragePool that leaves the padding out of its count, which is the same number.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tensorflow_graph import BLOCKS, CONVS
from torch import Tensor

OPSET = 17


class _Model:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: object, kind: type = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def conv(self, value: str, canonical: str, stride: int = 1) -> str:
        weight = self._tensors[f"{canonical}.weight"].float().numpy()
        bias = self._tensors[f"{canonical}.bias"].float().numpy()
        side = weight.shape[-1]
        # TensorFlow's SAME on even sizes puts nothing before and one after when the stride is 2.
        pads = [0, 0, 1, 1] if stride == 2 else [side // 2] * 4
        inputs = (value, self.constant(weight), self.constant(bias))
        return self.op("Conv", *inputs, strides=[stride, stride], pads=pads)

    def layer(self, value: str, index: int) -> str:
        convolved = self.conv(value, f"convs.{index}", CONVS[index][3])
        return self.op("LeakyRelu", convolved, alpha=0.2)

    def double(self, value: str, skip: str) -> str:
        larger = self.op(
            "Resize",
            value,
            "",
            self.constant([1, 1, 2, 2]),
            mode="linear",
            coordinate_transformation_mode="asymmetric",
        )
        return self.op("Add", larger, skip)

    def generator(self, image: str) -> str:
        x0 = self.layer(image, 0)
        x1 = self.layer(self.layer(x0, 1), 2)
        x2 = self.layer(self.layer(x1, 3), 4)
        for index in range(BLOCKS):
            inner = self.op("LeakyRelu", self.conv(x2, f"blocks.{index}.conv1"), alpha=0.2)
            x2 = self.op("Add", self.conv(inner, f"blocks.{index}.conv2"), x2)
        x3 = self.layer(self.layer(self.double(self.layer(x2, 5), x1), 6), 7)
        return self.conv(self.layer(self.double(x3, x0), 8), "convs.9")

    def mean(self, value: str) -> str:
        return self.op(
            "AveragePool", value, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0
        )

    def guided_filter(self, guide: str, source: str) -> str:
        mean_x, mean_y = self.mean(guide), self.mean(source)
        covariance = self.op(
            "Sub", self.mean(self.op("Mul", guide, source)), self.op("Mul", mean_x, mean_y)
        )
        variance = self.op(
            "Sub", self.mean(self.op("Mul", guide, guide)), self.op("Mul", mean_x, mean_x)
        )
        slope = self.op("Div", covariance, self.op("Add", variance, self.constant(0.01)))
        offset = self.op("Sub", mean_y, self.op("Mul", slope, mean_x))
        return self.op("Add", self.op("Mul", self.mean(slope), guide), self.mean(offset))


def onnx_model(tensors: Mapping[str, Tensor]) -> bytes:
    """A model: ``input_image`` float32 [H,W,3] BGR 0..255 to ``output_image`` uint8 [H,W,3].

    tensors: canonical names, OIHW. H and W must be multiples of 4 when it runs.
    """
    model = _Model(tensors)
    image = model.op("Transpose", "input_image", perm=[2, 0, 1])
    image = model.op("Unsqueeze", image, model.constant([0], np.int64))
    image = model.op("Sub", model.op("Div", image, model.constant(127.5)), model.constant(1.0))
    result = model.guided_filter(image, model.generator(image))
    result = model.op("Clip", result, model.constant(-0.999999), model.constant(0.999999))
    result = model.op("Mul", model.op("Add", result, model.constant(1.0)), model.constant(127.5))
    result = model.op("Squeeze", result, model.constant([0], np.int64))
    result = model.op("Transpose", result, perm=[1, 2, 0])
    model.nodes.append(helper.make_node("Cast", [result], ["output_image"], to=TensorProto.UINT8))
    graph = helper.make_graph(
        model.nodes,
        "dctnet",
        [helper.make_tensor_value_info("input_image", TensorProto.FLOAT, ["height", "width", 3])],
        [helper.make_tensor_value_info("output_image", TensorProto.UINT8, ["height", "width", 3])],
        model.constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    made.ir_version = 8
    onnx.checker.check_model(made)
    return made.SerializeToString()
