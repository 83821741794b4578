"""Detectors of one level or a few, built by hand: boxes around the centres of their locations, scores of any heads."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.detection_oracle import definition
from model_zoo_fixtures.testbed.models import as_format
from xai_insert import Options, insert

SIDE, GRID, WIDTH = 32, 8, 8
OPERATORS = [helper.make_opsetid("", 17)]


class Small:
    """A detector of one level: boxes around the centres of 8 x 8 locations, and scores made of a few heads."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.nodes, self.constants, self.types = [], [], {}
        feature = self.op("Conv", "image", self.weight(WIDTH, 3, 4, 4), strides=[4, 4])
        self.feature = self.op("LeakyRelu", feature)
        self.boxes = self.op("Add", self.op("Exp", self.rows(self.head(4))), self.constant(self.centres()))

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *sizes):
        return self.constant((self.rng.normal(size=sizes) / np.sqrt(np.prod(sizes[1:]))).astype(np.float32))

    def op(self, kind, *inputs, **attributes):
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def head(self, channels):
        tower = self.op("LeakyRelu", self.op("Conv", self.feature, self.weight(WIDTH, WIDTH, 1, 1)))
        return self.op("Conv", tower, self.weight(channels, WIDTH, 1, 1))

    def rows(self, head):
        flat = self.op("Reshape", head, self.constant(np.array([0, 0, -1])))
        return self.op("Transpose", flat, perm=[0, 2, 1])

    def boxes_of(self, anchors, grid=GRID):
        sides = self.op("Reshape", self.op("Exp", self.rows(self.head(4 * anchors))), self.constant([1, -1, 4]))
        return self.op("Add", sides, self.constant(np.repeat(self.centres(grid), anchors, axis=1)))

    def coarser(self):
        """Go on with a level of half the sides."""
        self.feature = self.op(
            "LeakyRelu", self.op("Conv", self.feature, self.weight(WIDTH, WIDTH, 2, 2), strides=[2, 2])
        )

    def centres(self, grid=GRID):
        rows, columns = np.divmod(np.arange(grid * grid), grid)
        return ((np.stack([columns, rows, columns, rows], axis=-1)[None] + 0.5) * SIDE / grid).astype(np.float32)

    def pick(self, value, labels, axis=2):
        return self.op("Gather", value, self.constant(np.array(labels)), axis=axis)

    def model(self, scores, *more):
        names = (self.boxes, scores, *more)
        outputs = [helper.make_tensor_value_info(name, self.types.get(name, TensorProto.FLOAT), None) for name in names]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
        graph = helper.make_graph(self.nodes, "g", [image], outputs, self.constants)
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=OPERATORS, ir_version=8))


def run(model, names, image):
    """Values of a model, by their names."""
    with_outputs = onnx.ModelProto()
    with_outputs.CopyFrom(model)
    del with_outputs.graph.output[:]
    with_outputs.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return ort.InferenceSession(with_outputs.SerializeToString()).run(None, {"image": image})


def require_map(model, heads, anchors, classes, kind="onnx", **options):
    """Insert, and compare the map with the definition of the raw scores of heads; the report.

    Args:
        model: of boxes and scores, as `Small.model` makes it.
        heads: names of the scores, `[1, anchors * classes, h, w]`, one for each level.
        anchors: of each level.
        classes: number of classes.
        kind: the format that is inserted into, `onnx` or `openvino`.
        options: those of the insertion.
    """
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    wanted = definition(run(model, heads, image), anchors, classes)
    made = insert(as_format(model, kind), Options(output_dtype="f32", **options))
    np.testing.assert_allclose(oracle.run(made.model, image)["saliency_map"], wanted, atol=1e-5)
    return made.report
