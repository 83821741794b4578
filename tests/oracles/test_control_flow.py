"""If, Loop and Scan, and operators of other domains, stay as they are in the backbone."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.models import CHANNELS, CLASSES, FORMATS, Builder, as_format
from xai_insert import Options, errors, insert

RAW = Options(output_dtype="f32")
IN_IR = {"If": "If", "Loop": "Loop", "Scan": "TensorIterator"}


def told(name, kind=TensorProto.FLOAT, sizes=None):
    return helper.make_tensor_value_info(name, kind, sizes)


def chosen(b, x):
    """One of two activations, as the image decides."""
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(kind, [x], [name])], name, [], [told(name)])
        for name, kind in (("then", "Softplus"), ("else", "Sigmoid"))
    }
    total = b.node("ReduceSum", "image", keepdims=0)
    return b.node("If", b.node("Greater", total, b.const(np.array(0, np.float32))), **branches)


def looped(b, x):
    """Twice `x + softsign(x)`."""
    nodes = [
        helper.make_node("Softsign", ["before"], ["bent"]),
        helper.make_node("Add", ["before", "bent"], ["after"]),
        helper.make_node("Identity", ["going"], ["on"]),
    ]
    sizes = [b.batch, CHANNELS, 6, 6]
    inputs = [told("step", TensorProto.INT64, []), told("going", TensorProto.BOOL, []), told("before", sizes=sizes)]
    outputs = [told("on", TensorProto.BOOL, []), told("after", sizes=sizes)]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    return b.node("Loop", b.const(np.array(2)), b.const(np.array(True)), x, body=body)


def scanned(b, x):
    """`sigmoid(x * s)` for each scale in turn."""
    nodes = [
        helper.make_node("Mul", ["before", "scale"], ["louder"]),
        helper.make_node("Sigmoid", ["louder"], ["after"]),
    ]
    sizes = [b.batch, CHANNELS, 6, 6]
    inputs = [told("before", sizes=sizes), told("scale", sizes=[])]
    body = helper.make_graph(nodes, "body", inputs, [told("after", sizes=sizes)])
    scales = b.const(np.array([0.5, 2.0, 4.0], np.float32))
    return b.node("Scan", x, scales, body=body, num_scan_inputs=1)


CONTROL = {"If": chosen, "Loop": looped, "Scan": scanned}


def convolved(b, x):
    return b.node("Relu", b.node("Conv", x, b.weight(CHANNELS, CHANNELS, 3, 3), pads=[1] * 4))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("is_last", [False, True], ids=["inside", "before the pool"])
@pytest.mark.parametrize("control", CONTROL)
def test_control_flow_survives(control, is_last, kind):
    b = Builder(batch=2)
    x = CONTROL[control](b, b.backbone())
    x = x if is_last else convolved(b, x)
    plain = as_format(b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), CHANNELS)), kind)
    result = insert(plain, RAW)
    assert result.report.form == "closed form"
    if kind == "onnx":
        assert untouched(result.model) == list(plain.graph.node)
    else:
        assert [node.get_type_name() for node in result.model.get_ordered_ops()].count(IN_IR[control]) == 1

    parts = oracle.Parts(plain, result.report.target["name"], result.report.logits["name"])
    images = np.random.default_rng(1).standard_normal((2, 2, 3, 12, 12), dtype=np.float32)
    for image in (images[0] - 1, images[1] + 1):  # either side of the If
        before, after = oracle.run(plain, image), oracle.run(result.model, image)
        for name, value in before.items():
            assert np.array_equal(after[name], value)
        wanted = parts.definition(image, (2, 3)).reshape(2, CLASSES, 6, 6)
        np.testing.assert_allclose(after["saliency_map"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def squeezed(b, x, size):
    """`x` without its grid where its rows are `size`, as TorchScript's exporter writes it; else all zero."""
    bodies = {
        "then_branch": [helper.make_node("Flatten", [x], ["then"])],
        "else_branch": [
            helper.make_node("Flatten", [x], ["flat"]),
            helper.make_node("Sub", ["flat", "flat"], ["else"]),
        ],
    }
    branches = {name: helper.make_graph(nodes, name, [], [told(name[:4])]) for name, nodes in bodies.items()}
    rows = b.node("Gather", b.node("Shape", x), b.const(np.array(2)))
    rank = b.node("Size", b.node("Shape", x))
    is_map = b.node("Greater", rank, b.const(np.array(3)))
    return b.node("If", b.node("And", b.node("Equal", rows, b.const(np.array(size))), is_map), **branches)


def test_an_if_that_sizes_decide_is_no_question():
    b = Builder()
    logits = b.linear(squeezed(b, b.node("GlobalAveragePool", b.backbone()), 1), CHANNELS)
    plain = b.model(logits)
    result = insert(plain, RAW)
    assert (result.report.form, result.report.target["grid"]) == ("closed form", (6, 6))
    assert untouched(result.model) == list(plain.graph.node)
    image = np.random.default_rng(1).standard_normal((3, 3, 12, 12), dtype=np.float32)
    parts = oracle.Parts(plain, result.report.target["name"], result.report.logits["name"])
    wanted = parts.definition(image, (2, 3)).reshape(3, CLASSES, 6, 6)
    found = oracle.run(result.model, image)
    np.testing.assert_allclose(found["saliency_map"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert np.array_equal(found[logits], oracle.run(plain, image)[logits])


def untouched(model):
    """The nodes that were not inserted."""
    return [node for node in model.graph.node if not node.name.startswith("xai/")]


def test_foreign_operators_survive():
    b = Builder()
    x = b.node("FusedRelu", b.backbone(), domain="company.vision")
    sizes = told(x, sizes=["N", CHANNELS, 6, 6])
    logits = b.linear(b.node("Flatten", b.node("GlobalAveragePool", convolved(b, x))), CHANNELS)
    image, result = told("image", sizes=["N", 3, 12, 12]), told(logits, sizes=["N", CLASSES])
    graph = helper.make_graph(b.nodes, "net", [image], [result], b.weights, value_info=[sizes])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("company.vision", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises(errors.CheckFailedError, match=r"FusedRelu.*--no-check"):
        insert(model)
    done = insert(model, Options(output_dtype="f32", check=False))
    new, before = done.model, done.report.target["name"]
    assert untouched(new) == list(model.graph.node)
    assert new.graph.output[1].name == "saliency_map"
    assert done.report.form == "masked runs"  # from before it: where it puts what it reads is not known

    def known(item):  # the same without the operator that no runtime here knows
        twin = onnx.ModelProto()
        twin.CopyFrom(item)
        graphs = [twin.graph]
        while graphs:
            for node in graphs.pop().node:
                if node.domain == "company.vision":
                    node.op_type, node.domain = "Relu", ""
                graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        return twin

    feed = np.random.default_rng(2).standard_normal((2, 3, 12, 12), dtype=np.float32)
    wanted = oracle.run(insert(known(model), replace(RAW, target_layer=before)).model, feed)
    found = oracle.run(known(new), feed)
    np.testing.assert_allclose(found["saliency_map"], wanted["saliency_map"], rtol=0, atol=1e-5)
    assert np.array_equal(found[logits], wanted[logits])


def test_operators_of_the_runtime_survive():
    """onnxruntime's own operators, as its offline optimiser leaves them; no shape is told behind them."""
    b = Builder()
    weight, bias = b.weight(CHANNELS, CHANNELS, 3, 3), b.weight(CHANNELS)
    x = b.node("FusedConv", b.backbone(), weight, bias, domain="com.microsoft", activation="Relu", pads=[1] * 4)
    x = convolved(b, b.node("Gelu", x, domain="com.microsoft"))
    logits = b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), CHANNELS)
    image, output = told("image", sizes=["N", 3, 12, 12]), told(logits, sizes=["N", CLASSES])
    graph = helper.make_graph(b.nodes, "net", [image], [output], b.weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    result = insert(model, RAW)
    assert result.report.map_difference <= 1e-5
    assert untouched(result.model) == list(model.graph.node)
    feed = np.random.default_rng(2).standard_normal((2, 3, 12, 12), dtype=np.float32)
    before, after = oracle.run(model, feed), oracle.run(result.model, feed)
    assert np.array_equal(after[logits], before[logits])


MOVES = {
    "transposed": ("Transpose", [], {"perm": [0, 1, 3, 2]}),
    "in reverse": ("Slice", [[-1], [np.iinfo(np.int64).min], [3], [-1]], {}),
    "in another order": ("Gather", [[3, 1, 0, 2, 5, 4]], {"axis": 2}),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("move", MOVES)
def test_a_branch_that_moves_cells_loses_their_place(move, kind):
    """The image decides which branch is run, and a proof by one image would see the other alone."""
    name, given, attributes = MOVES[move]
    b = Builder()
    x = b.backbone()
    moved = helper.make_node(name, [x, *(b.const(np.array(part)) for part in given)], ["then"], **attributes)
    then = helper.make_graph([moved], "then", [], [told("then")])
    kept = helper.make_graph([helper.make_node("Identity", [x], ["else"])], "else", [], [told("else")])
    total = b.node("ReduceSum", "image", keepdims=0)
    is_bright = b.node("Greater", total, b.const(np.array(1e6, np.float32)))
    chosen = convolved(b, b.node("If", is_bright, then_branch=then, else_branch=kept))
    plain = b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", chosen)), CHANNELS))
    with pytest.raises(errors.TargetNotFoundError):
        insert(as_format(plain, kind), RAW)


def of_parts(axis):
    """A loop over the images that resizes each to 12x12, as TensorFlow writes it; or over the rows of all."""
    b = Builder(size=(16, 16))
    number, is_on = told("number", TensorProto.INT64, []), told("on", TensorProto.BOOL, [])
    picked = helper.make_node("Gather", ["image", "number"], ["picked"], axis=axis)
    parts = [picked]
    if axis == 0:
        sizes = b.const(np.array([1, 3, 12, 12], np.int64))
        parts.append(helper.make_node("Unsqueeze", ["picked", b.const(np.array([0]))], ["one"]))
        parts.append(helper.make_node("Resize", ["one", "", "", sizes], ["sized"], mode="linear"))
        parts.append(helper.make_node("Squeeze", ["sized", b.const(np.array([0]))], ["part"]))
        shape = [3, 12, 12]
    else:
        parts.append(helper.make_node("Identity", ["picked"], ["part"]))
        shape = ["N", 3, 16]
    parts.append(helper.make_node("Identity", ["on"], ["still"]))
    body = helper.make_graph(
        parts, "body", [number, is_on], [told("still", TensorProto.BOOL, []), told("part", sizes=shape)]
    )
    count = b.node("Gather", b.node("Shape", "image"), b.const(np.array(axis, np.int64)), axis=0)
    x = b.node("Loop", count, b.const(np.array(True)), body=body)
    x = x if axis == 0 else b.node("Transpose", x, perm=[1, 2, 0, 3])
    return b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone(x))), CHANNELS))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_loop_that_makes_images_of_open_sides_of_one_size_has_its_map(kind):
    """The map of any image is that of a model of its size."""

    def built(*sides):
        model = of_parts(0)
        for axis, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim[2:]):
            dim.ClearField("dim_value")
            if sides:
                dim.dim_value = sides[axis]
        return insert(as_format(model, kind), RAW)

    anything = built()
    assert (anything.report.target["grid"], anything.report.place) == ((6, 6), "blocks")
    for sides in ((16, 16), (96, 160)):
        images = np.random.default_rng(0).standard_normal((1, 3, *sides)).astype(np.float32)
        found, wanted = (oracle.run(item.model, images)["saliency_map"] for item in (anything, built(*sides)))
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("axis", [0, 2])
def test_a_loop_over_images_keeps_their_places(axis, kind):
    """Each is read by its number and resized; one over rows may put these anywhere."""
    plain = of_parts(axis)
    if axis == 0:
        report = insert(as_format(plain, kind), RAW).report
        assert report.target["grid"] == (6, 6)
    else:
        with pytest.raises(errors.XaiInsertError):
            insert(as_format(plain, kind), RAW)
