"""Inference without the content of large weights: the sizes are those that ONNX's own inference gives for all of it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_zoo_fixtures.testbed import models
from xai_insert.formats.onnx.maps import read as read_model
from xai_insert.formats.onnx.shapes import infer

SHAPES = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes"
LARGE = np.ones((128, 200), np.float32)  # left out


def branch(name, *, is_initializer):
    weight = numpy_helper.from_array(LARGE, f"{name}_weight")
    constant = helper.make_node("Constant", [], [f"{name}_weight"], value=weight)
    product = helper.make_node("MatMul", ["x", f"{name}_weight"], [name])
    result = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    if is_initializer:
        return helper.make_graph([product], name, [], [result], [weight])
    return helper.make_graph([constant, product], name, [], [result])


def test_sizes_behind_weights_that_are_left_out():
    nodes = [
        helper.make_node("Constant", [], ["constant"], value=numpy_helper.from_array(LARGE)),
        helper.make_node("MatMul", ["x", "constant"], ["first"]),
        helper.make_node("Reshape", ["first", "sizes"], ["reshaped"]),
        helper.make_node(
            "If",
            ["flag"],
            ["second"],
            then_branch=branch("then", is_initializer=True),
            else_branch=branch("other", is_initializer=False),
        ),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 128])]
    inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("reshaped", "second")]
    weights = [numpy_helper.from_array(np.array([2, 10, 40]), "sizes")]
    opset = [helper.make_opsetid("", 17)]
    proto = helper.make_model(helper.make_graph(nodes, "net", inputs, outputs, weights), opset_imports=opset)
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString()
    found = infer(model, {})
    assert ir.to_proto(model).SerializeToString() == before
    known = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    for value in (*known.value_info, *known.output):
        sizes = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        assert found.shapes[value.name] == sizes
        assert found.types[value.name] == ir.DataType(value.type.tensor_type.elem_type)
    assert found.shapes["then"] == found.shapes["other"] == (4, 200)


def test_sizes_that_an_exporter_computes_from_others_are_known_without_openvino(monkeypatch):
    """Heads of a width that is a quotient, and a class token that is expanded, both with the batch open."""
    monkeypatch.setattr("xai_insert.formats.onnx.shapes._read_shapes", None)
    model = read_model(SHAPES / "shapes_vit.onnx")
    found = infer(model, {}).shapes
    session = ort.InferenceSession(every_value_given(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    one, two = (session.run(names, {"image": np.zeros((batch, 3, 96, 96), np.float32)}) for batch in (4, 5))
    for name, a, b in zip(names, one, two, strict=True):
        assert found[name] == tuple(p if p == q else None for p, q in zip(a.shape, b.shape, strict=True)), name


def every_value_given(model):
    proto = ir.to_proto(model)
    given = {value.name for value in proto.graph.output}
    names = [name for node in proto.graph.node for name in node.output if name not in given]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return proto.SerializeToString()


@pytest.mark.parametrize("kind", ["cnn", "vit", "detector", "segmenter"])
def test_an_insertion_into_onnx_does_without_openvino(kind, tmp_path):
    command = (
        "import sys; sys.modules['openvino'] = None; from xai_insert import insert_file; "
        "print(insert_file(sys.argv[1], sys.argv[2]).check)"
    )
    files = [SHAPES / f"shapes_{kind}.onnx", tmp_path / "model.onnx"]
    run = subprocess.run([sys.executable, "-c", command, *map(str, files)], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "done", run.stderr


@pytest.mark.parametrize("size", [(16, 12), (12, 12), ("H", "W")])
def test_sizes_that_are_declared_are_not_believed_against_what_is_inferred(size):
    """As of a model whose inputs were given other sizes later, and whose values still declare the old ones."""
    b = models.Builder(batch=1, size=(12, 12))
    proto = onnx.shape_inference.infer_shapes(
        b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), 6))
    )
    del proto.graph.value_info[-1].type.tensor_type.shape.dim[:]
    for side, dim in zip(size, proto.graph.input[0].type.tensor_type.shape.dim[2:], strict=True):
        if isinstance(side, str):
            dim.dim_param = side
        else:
            dim.dim_value = side
    fresh = onnx.ModelProto()
    fresh.CopyFrom(proto)
    del fresh.graph.value_info[:]
    assert infer(ir.from_proto(proto), {}).shapes == infer(ir.from_proto(fresh), {}).shapes


def test_a_fixed_batch_is_known_behind_sizes_that_are_computed():
    nodes = [
        helper.make_node("Constant", [], ["rank"], value=numpy_helper.from_array(np.array([4]))),
        helper.make_node("ConstantOfShape", ["rank"], ["ones"], value=numpy_helper.from_array(np.array([1]))),
        helper.make_node("Expand", ["image", "ones"], ["widened"]),
        helper.make_node("Relu", ["widened"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "net", inputs, outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert infer(ir.from_proto(proto), {}).shapes["widened"] == (1, 3, 8, 8)
