"""A classifier and a detector in any operator set, with their weights listed as inputs or not."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Old:
    """A graph of an old operator set, written by hand."""

    def __init__(self, opset):
        self.opset, self.nodes, self.weights, self.rng = opset, [], [], np.random.default_rng(3)

    def const(self, elements):
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(elements), name))
        return name

    def weight(self, *shape):
        return self.const((self.rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))).astype(np.float32))

    def node(self, kind, *inputs, outputs=None, **attributes):
        outputs = outputs or [f"{kind}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    def conv(self, x, width_in, width, stride=1):
        return self.node(
            "Conv", x, self.weight(width, width_in, 3, 3), self.weight(width), strides=[stride] * 2, pads=[1] * 4
        )

    def model(self, outputs, *, listed=False, ir_version=4):
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32])
        inputs = [image]
        if listed:
            inputs += [helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in self.weights]
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(self.nodes, "old", inputs, results, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir_version)
        onnx.checker.check_model(model)
        return model


def classifier(opset, **settings):
    b = Old(opset)
    x = b.node("Relu", b.conv("image", 3, 8, 4))
    x = b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", b.conv(x, 8, 16))))
    return b.model({b.node("Gemm", x, b.weight(5, 16), b.weight(5), transB=1): [1, 5]}, **settings)


def detector(opset, **settings):
    """Two levels of class scores and boxes, as UltraFace has them."""
    b = Old(opset)
    low = b.node("Relu", b.conv(b.node("Relu", b.conv("image", 3, 8, 4)), 8, 16))
    high = b.node("Relu", b.conv(low, 16, 16, 2))
    scores, boxes = [], []
    for x, anchors in ((low, 3), (high, 2)):
        for parts, width in ((scores, 2), (boxes, 4)):
            y = b.node("Transpose", b.conv(x, 16, anchors * width), perm=[0, 2, 3, 1])
            parts.append(b.node("Reshape", y, b.const(np.array([1, -1, width]))))
    count = 3 * 64 + 2 * 16
    b.node("Softmax", b.node("Concat", *scores, axis=1), outputs=["scores"], axis=2)
    b.node("Concat", *boxes, axis=1, outputs=["boxes"])
    return b.model({"scores": [1, count, 2], "boxes": [1, count, 4]}, **settings)


def image():
    return np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
