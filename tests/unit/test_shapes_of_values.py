"""Inference without the content of large weights: the sizes are those that ONNX's own inference gives for all of it."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from xai_insert.formats.onnx.shapes import infer

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
