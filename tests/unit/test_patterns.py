"""Patterns on graphs built for them: what fits, and which part a near miss lacks."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from xai_insert.formats.backend import load
from xai_insert.graph.cuts import activations, walk
from xai_insert.graph.pattern import Miss, fitted, layer_of, missing_layer
from xai_insert.graph.strided import counts_rows
from xai_insert.graph.view import Op
from xai_insert.locate.attention import find_attentions, near_miss
from xai_insert.locate.collapse import GENERALISED, Collapse, feature_before, grid_ends
from xai_insert.locate.places import find_places
from xai_insert.locate.transformer import MEAN_QUERY

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


LINEAR_LAYER = [("MatMul", ["x", "weight"], "made", {}), ("Add", ["made", "bias"], "biased", {})]


def test_a_layer_with_its_bias(tmp_path):
    view = graph(tmp_path, LINEAR_LAYER, weight=(WIDTH, 5), bias=(5,))
    assert layer_of(view.outputs[0]).name == layer_of(view.nodes[0].output).name == "made"


@pytest.mark.parametrize(
    ("build", "lacks"),
    [
        ([*LINEAR_LAYER, ("Add", ["biased", "made"], "sum", {})], "Add 'sum' has no single summand"),
        ([*LINEAR_LAYER, ("Relu", ["biased"], "relu", {})], "Relu 'relu' has no linear layer"),
        ([("Relu", ["x"], "relu", {}), ("Add", ["relu", "stored"], "sum", {})], "Add 'sum' has no linear layer"),
    ],
)
def test_what_is_no_layer_with_its_bias(build, lacks, tmp_path):
    view = graph(tmp_path, build, weight=(WIDTH, 5), bias=(5,))
    assert layer_of(view.outputs[0]) is None
    assert str(missing_layer(view.outputs[0])).startswith(lacks)


IMAGE = (1, 3, 16, 16)
PATCHES = [("Conv", ["x", "patch"], "map", {"strides": [4, 4]})]
FLAT = ("Flatten", ["map"], "flat", {})
WEIGHTS = {"whole": (5, 3, 4, 4), "each": (3, 1, 4, 4), "layer": (48, 5), "patch": (3, 3, 4, 4)}


def end_of_grid(tmp_path, build):
    """Where the grid of `map`, `[1, 3, 4, 4]`, ends."""
    view = graph(tmp_path, [*PATCHES, *build], IMAGE, **WEIGHTS)
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


BOUND = ("Max", ["map", "half"], "bound", {})
MEAN = ("ReduceMean", ["raised"], "end", {"axes": [2, 3]})
POWER = ("Pow", ["bound", "three"], "raised", {})


@pytest.mark.parametrize(
    ("build", "reads"),
    [
        ([BOUND, POWER, MEAN], "map"),
        ([("Pow", ["map", "three"], "raised", {}), MEAN], "map"),
        ([BOUND, ("Pow", ["bound", "map"], "raised", {}), MEAN], "raised"),
    ],
)
def test_a_generalised_mean_reads_the_map_before_its_power(build, reads, tmp_path):
    view = graph(tmp_path, [*PATCHES, *build], IMAGE, **WEIGHTS, three=())
    places = find_places(view)
    (end,) = grid_ends(view.outputs[0], activations(view, view.inputs), places)
    assert feature_before(end, places).value.name == reads


def test_a_near_miss_of_a_generalised_mean(tmp_path):
    view = graph(tmp_path, [*PATCHES, ("Pow", ["map", "map"], "raised", {})], IMAGE, **WEIGHTS)
    assert str(fitted(GENERALISED, view.nodes[-1])) == "Pow 'raised' has no single value that it raises"


FIRST = ("ReduceMean", ["x"], "first", {"axes": [1], "keepdims": 1})


@pytest.mark.parametrize(
    ("build", "lacks"),
    [
        ([FIRST, ("Concat", ["first", "x"], "tokens", {"axis": 1})], None),
        ([("Concat", ["x", "x"], "tokens", {"axis": 1})], "list of all tokens"),
        ([FIRST, ("Add", ["first", "x"], "tokens", {})], "parts put one behind the other"),
        ([("Concat", ["row", "x"], "tokens", {"axis": 1})], "mean before the others"),
    ],
)
def test_a_token_that_is_the_mean_of_the_others(build, lacks, tmp_path):
    view = graph(tmp_path, build, row=(1, 1, WIDTH))
    found = fitted(MEAN_QUERY, view.nodes[-1], tokens=TOKENS + 1)
    assert (found.what if isinstance(found, Miss) else None) == lacks


def test_a_walk_takes_each_once_the_last_found_first():
    following = {1: [2, 3], 2: [4], 3: [4, 1], 4: []}
    assert list(walk([1], following.__getitem__)) == [1, 3, 4, 2]
    assert list(walk([], following.__getitem__)) == []


def test_what_reads_sizes_is_no_reader_of_elements(tmp_path):
    view = graph(tmp_path, [("Relu", ["x"], "y", {}), ("Shape", ["y"], "sizes", {}), ("Tanh", ["y"], "z", {})])
    relu = view.named("y")
    assert relu.only_use.node.name == "z"
    assert relu.made_by(Op.ELEMENTWISE, Op.CONV) is relu.producer
    assert relu.made_by(Op.CONV) is None
    assert view.inputs[0].made_by(*Op) is None


@pytest.mark.parametrize(("stride", "first", "is_counted"), [(4, 0, True), (3, 0, False), (4, 1, False)])
def test_rows_that_are_counted(stride, first, is_counted, tmp_path):
    """Places `stride * n + 0, 1, 2, 3` for as many rows as there are; others overlap, or begin elsewhere."""
    numbers = {"zero": first, "one": 1, "stride": stride, "column": [1], "places": [0, 1, 2, 3]}
    build = [("Constant", [], name, _number(value)) for name, value in numbers.items()]
    build += [
        ("Shape", ["x"], "sizes", {}),
        ("ReduceMax", ["sizes"], "count", {"keepdims": 0}),
        ("Range", ["zero", "count", "one"], "rows", {}),
        ("Mul", ["rows", "stride"], "starts", {}),
        ("Unsqueeze", ["starts", "column"], "lines", {}),
        ("Add", ["lines", "places"], "all", {}),
    ]
    view = graph(tmp_path, build, ("rows", TOKENS, WIDTH))
    assert counts_rows(view.outputs[0], 4) is is_counted


def _number(value):
    return {"value_ints": value} if isinstance(value, list) else {"value_int": value}
