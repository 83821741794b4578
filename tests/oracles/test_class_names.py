"""Classifiers that give their scores by the names of their classes (ZipMap) and a label (LabelEncoder)."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed.models import CHANNELS, Builder
from xai_insert import Options, insert, insert_file

LABELS = ["cat", "dog", "fish"]


def build(*, is_named):
    b = Builder(opset=15)
    x = b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), CHANNELS, 3)
    shares = b.node("Softmax", x, axis=1)
    if not is_named:
        return b.model(shares)
    best = b.node("ArgMax", shares, axis=1, keepdims=0)
    ml = "ai.onnx.ml"
    b.nodes.append(helper.make_node("ZipMap", [shares], ["loss"], domain=ml, classlabels_strings=LABELS))
    keys = {"keys_int64s": [0, 1, 2], "values_strings": LABELS}
    b.nodes.append(helper.make_node("LabelEncoder", [best], ["label"], domain=ml, **keys))
    number = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    shared = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, number))
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["N"]),
        helper.make_value_info("loss", shared),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 12, 12])
    graph = helper.make_graph(b.nodes, "named", [image], outputs, b.weights)
    imports = [helper.make_opsetid("", 15), helper.make_opsetid(ml, 2)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def run(model):
    session = ort.InferenceSession(model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model))
    image = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": image}), strict=True))


@pytest.mark.parametrize("as_file", [True, False])
def test_the_scores_before_their_names_are_explained(tmp_path, as_file):
    model, options = build(is_named=True), Options(output_dtype="f32")
    wanted = run(insert(build(is_named=False), options).model)["saliency_map"]
    if as_file:
        onnx.save(model, tmp_path / "named.onnx")
        report = insert_file(tmp_path / "named.onnx", tmp_path / "out.onnx", options)
        new = onnx.load(tmp_path / "out.onnx")
    else:
        result = insert(model, options)
        report, new = result.report, result.model
    assert report.output_difference == 0
    assert [output.type for output in new.graph.output[:2]] == [output.type for output in model.graph.output]
    before, after = run(model), run(new)
    assert list(before["label"]) == list(after["label"])
    assert before["loss"] == after["loss"]
    assert np.allclose(after["saliency_map"], wanted, rtol=0, atol=1e-5 * abs(wanted).max())
