"""Patterns on graphs built for them: what fits, and which part a near miss lacks."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from xai_insert.formats.backend import load
from xai_insert.graph.cuts import activations
from xai_insert.locate.attention import find_attentions, near_miss
from xai_insert.locate.collapse import Collapse, grid_ends
from xai_insert.locate.places import find_places

TOKENS, WIDTH = 6, 4


def graph(tmp_path, build, shape=(1, TOKENS, WIDTH), **weights):
    """The view of a graph whose nodes `build` gives; `x` is `[1, 6, 4]`, weights are shapes."""
    nodes = [helper.make_node(kind, inputs, [name], name, **attributes) for kind, inputs, name, attributes in build]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(build[-1][2], TensorProto.FLOAT, None)]
    stored = [numpy_helper.from_array(np.ones((TOKENS, WIDTH), np.float32), "stored")]
    stored.append(numpy_helper.from_array(np.float32(0.5), "half"))
    stored += [numpy_helper.from_array(np.ones(sizes, np.float32), name) for name, sizes in weights.items()]
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


FLAT = ("Flatten", ["map"], "flat", {})
WEIGHTS = {"whole": (5, 3, 4, 4), "each": (3, 1, 4, 4), "layer": (48, 5), "patch": (3, 3, 4, 4)}


def end_of_grid(tmp_path, build):
    """Where the grid of `map`, `[1, 3, 4, 4]`, ends."""
    view = graph(tmp_path, [("Conv", ["x", "patch"], "map", {"strides": [4, 4]}), *build], (1, 3, 16, 16), **WEIGHTS)
    (end,) = grid_ends(view.outputs[0], activations(view, view.inputs), find_places(view))
    return end


@pytest.mark.parametrize(
    ("build", "kind", "axes"),
    [
        ([("ReduceMean", ["map"], "end", {"axes": [2, 3]})], Collapse.MEAN, (2, 3)),
        ([("ReduceMax", ["map"], "end", {"axes": [2, 3], "keepdims": 0})], Collapse.MAX, (2, 3)),
        ([("AveragePool", ["map"], "end", {"kernel_shape": [4, 4]})], Collapse.MEAN, (2, 3)),
        ([("Conv", ["map", "whole"], "end", {})], Collapse.CONV, (2, 3)),
        ([FLAT, ("MatMul", ["flat", "layer"], "end", {})], Collapse.LINEAR, (2, 3)),
    ],
)
def test_a_grid_ends(build, kind, axes, tmp_path):
    end = end_of_grid(tmp_path, build)
    assert (end.kind, end.grid_axes, end.lacks) == (kind, axes, "")


def test_a_grid_of_tokens_ends_where_one_is_taken(tmp_path):
    numbers = [("sizes", [0, 3, 16]), ("first", [1]), ("second", [2])]
    build = [
        *(("Constant", [], name, {"value_ints": value}) for name, value in numbers),
        ("Reshape", ["map", "sizes"], "line", {}),
        ("Transpose", ["line"], "tokens", {"perm": [0, 2, 1]}),
        ("Slice", ["tokens", "first", "second", "first"], "end", {}),
    ]
    assert end_of_grid(tmp_path, build).kind is Collapse.TOKEN


@pytest.mark.parametrize(
    ("build", "lacks"),
    [
        ([("ReduceMean", ["map"], "end", {"axes": [1, 2, 3]})], "grid that it pools as a whole"),
        ([("ReduceL2", ["map"], "end", {"axes": [2, 3]})], "mean, maximum or sum over the grid"),
        ([("Conv", ["map", "each"], "end", {"group": 3})], "stored weight over all channels"),
        ([FLAT, ("Softmax", ["flat"], "end", {})], "linear layers alone behind it, with a weight for each element"),
    ],
)
def test_a_near_miss_of_the_end_of_a_grid(build, lacks, tmp_path):
    end = end_of_grid(tmp_path, build)
    assert (end.kind, end.lacks) == (Collapse.OTHER, lacks)
    assert str(end).endswith(f", which has no {lacks}")
