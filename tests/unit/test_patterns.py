"""Patterns on graphs built for them: what fits, and which part a near miss lacks."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from xai_insert.formats.backend import load
from xai_insert.locate.attention import find_attentions, near_miss

TOKENS, WIDTH = 6, 4


def graph(tmp_path, build):
    """The view of a graph whose nodes `build` gives; `x` is `[1, 6, 4]`."""
    nodes = [helper.make_node(kind, inputs, [name], name, **attributes) for kind, inputs, name, attributes in build]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, TOKENS, WIDTH])]
    outputs = [helper.make_tensor_value_info(build[-1][2], TensorProto.FLOAT, None)]
    stored = [numpy_helper.from_array(np.ones((TOKENS, WIDTH), np.float32), "stored")]
    stored.append(numpy_helper.from_array(np.float32(0.5), "half"))
    made = helper.make_graph(nodes, "net", inputs, outputs, stored)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    return load(tmp_path / "net.onnx", {}).view()


KEY = ("Transpose", ["x"], "key", {"perm": [0, 2, 1]})
SCORES = ("MatMul", ["x", "key"], "scores", {})
SCALED = ("Mul", ["scores", "half"], "scaled", {})
SHARES = ("Softmax", ["scaled"], "shares", {"axis": 2})
RESULT = ("MatMul", ["shares", "x"], "result", {})


def test_a_softmax_between_two_products(tmp_path):
    view = graph(tmp_path, [KEY, SCORES, SCALED, SHARES, RESULT])
    (found,) = find_attentions(view.nodes)
    assert [value.name for value in (found.query, found.key, found.value, found.result)] == ["x", "key", "x", "result"]
    assert found.key_axis == 2
    assert near_miss(view.nodes) is None


UNSCALED = [KEY, ("Mul", ["x", "half"], "scaled", {}), SHARES, ("MatMul", ["shares", "key"], "result", {})]


@pytest.mark.parametrize(
    ("build", "lacks"),
    [
        ([KEY, SCORES, SCALED, ("Softmax", ["scaled"], "shares", {"axis": 1}), RESULT], "sum over the last axis"),
        ([KEY, SCORES, SCALED, SHARES, ("MatMul", ["shares", "stored"], "result", {})], "single product of its shares"),
        (UNSCALED, "product of queries and keys"),
    ],
)
def test_a_near_miss_says_which_part_is_missing(build, lacks, tmp_path):
    view = graph(tmp_path, build)
    assert find_attentions(view.nodes) == []
    assert str(near_miss(view.nodes)).startswith(f"Softmax 'shares' has no {lacks}")
