"""A YOLOv8n of the zoo that reports the boxes of its highest scores, as files with a suppression do."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from model_zoo_fixtures import fixtures, materialise


def reporting_yolo(path: Path, side: int, count: int) -> None:
    """Write YOLOv8n at a fixed size, with so many boxes of the highest scores as its one output `[1, M, 6]`."""
    with tempfile.TemporaryDirectory() as folder:
        found = fixtures(id="yolov8n_dyn.legacydyn")[0]
        model = onnx.load(materialise(found, Path(folder)))
        sizes = model.graph.input[0].type.tensor_type.shape.dim
        for size, number in zip(sizes, (1, 3, side, side), strict=True):
            size.dim_value = number
        fixed = Path(folder, "fixed.onnx")
        options = ort.SessionOptions()  # folds what follows from the sizes
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(fixed)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(fixed)
    _report_best(model, count)
    onnx.save(model, path)


def _report_best(model: onnx.ModelProto, count: int) -> None:
    graph = model.graph
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value - 4

    def const(*numbers: float, kind: type = np.int64) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(numbers, kind), f"best_c{len(graph.initializer)}"))
        return str(graph.initializer[-1].name)

    def node(kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> list[str]:
        names = [f"best_{len(graph.node)}_{index}" for index in range(outputs)]
        graph.node.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    rows = node("Transpose", graph.output[0].name, perm=[0, 2, 1])[0]
    middle, size, scores = node("Split", rows, const(2, 2, classes), outputs=3, axis=2)
    half = node("Mul", size, const(0.5, kind=np.float32))[0]
    boxes = node("Concat", node("Sub", middle, half)[0], node("Add", middle, half)[0], axis=2)[0]
    highest = node("ReduceMax", scores, axes=[2], keepdims=0)[0]
    places = node("Unsqueeze", node("TopK", highest, const(count), outputs=2, axis=1)[1], const(2))[0]
    found = [
        node("GatherElements", item, node("Expand", places, const(1, 1, width))[0], axis=1)[0]
        for item, width in ((boxes, 4), (scores, classes))
    ]
    score = node("ReduceMax", found[1], axes=[2], keepdims=1)[0]
    label = node("Cast", node("ArgMax", found[1], axis=2, keepdims=1)[0], to=onnx.TensorProto.FLOAT)[0]
    graph.node.append(helper.make_node("Concat", [found[0], score, label], ["rows"], axis=2))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, [1, count, 6]))
