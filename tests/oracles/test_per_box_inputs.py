"""Maps of reported boxes where a model has several image inputs, and where a head with queries reports no boxes."""

import copy

import numpy as np
import onnx
import pytest
from onnx import helper

from model_zoo_fixtures.testbed import models, query_models
from model_zoo_fixtures.testbed.detector_models import SIDE, Net
from model_zoo_fixtures.testbed.query_models import sigmoid
from model_zoo_fixtures.testbed.vector_models import run
from xai_insert import Options, errors, insert, plan_insertion


def detector():
    return Net(anchors_first=False, exclusive=False, decoded="xyxy", reported="xyxy", report="rows")


def seen_twice(plain, *, is_mirrored=False):
    """Another image `other` beside the first: what the first layer gives of both is multiplied."""
    model = copy.deepcopy(plain)
    graph = model.graph
    graph.input.add().CopyFrom(graph.input[0])
    graph.input[1].name = "other"
    at, first = next((at, node) for at, node in enumerate(graph.node) if node.op_type == "Conv")
    second, result = copy.deepcopy(first), first.output[0]
    first.output[0], second.output[0], second.name = "of_first", "of_other", "of_other"
    second.input[0] = "mirrored" if is_mirrored else "other"
    graph.node.insert(at + 1, second)
    graph.node.insert(at + 2, helper.make_node("Mul", ["of_first", "of_other"], [result], name="met"))
    if is_mirrored:
        corners = {"start": -1, "end": -SIDE * SIDE, "axis": 3, "step": -1}
        graph.initializer.extend(onnx.numpy_helper.from_array(np.array([n]), name) for name, n in corners.items())
        graph.node.insert(at, helper.make_node("Slice", ["other", *corners], ["mirrored"], name="mirrored"))
    return model


def values(model, names, images, other):
    told = copy.deepcopy(model)
    present = {output.name for output in told.graph.output}
    told.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in present)
    outputs = run(told, images, other=other)
    return [outputs[name] for name in names]


def pictures(*size):
    rng = np.random.default_rng(3)
    return [rng.standard_normal((2, 3, *size)).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("chosen", [None, "other"])
def test_boxes_of_two_images(chosen, kind):
    """They meet before the boxes, which are of both: so are the maps, whichever is drawn over."""
    net = detector()
    model, (images, other) = seen_twice(net.model), pictures(SIDE, SIDE)
    result = insert(models.as_format(model, kind), Options(per_box=True, output_dtype="f32", input=chosen))
    outputs = run(result.model, images, other=other)
    rows = outputs[model.graph.output[0].name]
    wanted = net.expected(values(model, net.heads, images, other), images, rows[..., :4], rows[..., 5].astype(int))
    assert wanted.max((2, 3)).min() > 0.05  # every box has voters
    np.testing.assert_allclose(outputs["saliency_map_per_box"], wanted, atol=2e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("chosen", [None, "other"])
def test_queries_of_two_images(chosen, kind):
    net = query_models.Net("dense", "scores")
    model, (images, other) = seen_twice(net.model), pictures(*query_models.SIZE)
    result = insert(models.as_format(model, kind), Options(per_box=True, output_dtype="f32", input=chosen))
    logits, shares = values(model, [net.logits, net.shares], images, other)
    looks = shares.mean(1).reshape(2, query_models.QUERIES, *query_models.GRIDS[0])
    wanted = looks * sigmoid(logits).max(-1)[..., None, None]
    assert np.ptp(wanted, axis=(2, 3)).min() > 1e-3
    np.testing.assert_allclose(run(result.model, images, other=other)["saliency_map_per_box"], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(
    "plain", [detector().model, query_models.Net("dense", "scores").model], ids=["grid", "queries"]
)
def test_of_images_that_lie_differently_one_is_chosen(plain, kind):
    model = models.as_format(seen_twice(plain, is_mirrored=True), kind)
    with pytest.raises(errors.UnsupportedTaskError, match=r"^no map is of all image .* NAME explains 'image'$"):
        plan_insertion(model, Options(per_box=True))
    with pytest.raises(errors.UnsupportedTaskError, match="in the order of the image; these are turned"):
        plan_insertion(model, Options(per_box=True, input="other"))
    assert plan_insertion(model, Options(per_box=True, input="image")).per_box


@pytest.mark.parametrize("kind", models.FORMATS)
def test_of_two_detectors_one_is_chosen(kind):
    plain = detector().model
    graphs = [onnx.compose.add_prefix(plain, prefix).graph for prefix in ("a_", "b_")]
    both = helper.make_model(
        onnx.compose.merge_graphs(*graphs, []), opset_imports=list(plain.opset_import), ir_version=plain.ir_version
    )
    model = models.as_format(both, kind)
    with pytest.raises(errors.AmbiguousModelError, match=r"two heads .* --input NAME explains 'a_image', 'b_image'"):
        plan_insertion(model, Options(per_box=True))
    told = plan_insertion(model, Options(per_box=True, input="b_image")).per_box
    assert (told["boxes"], told["labels"]) == (both.graph.output[1].name,) * 2


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("look", ["dense", "grid"])
def test_of_two_detectors_with_queries_one_is_chosen(look, kind):
    """They had the boxes of the first with the attention of the second."""
    plain = query_models.Net(look, "scores").model
    graphs = [plain.graph, onnx.compose.add_prefix(plain, "b_").graph]
    both = helper.make_model(
        onnx.compose.merge_graphs(*graphs, []), opset_imports=list(plain.opset_import), ir_version=plain.ir_version
    )
    model = models.as_format(both, kind)
    for options in (Options(), Options(per_box=True)):
        with pytest.raises(errors.AmbiguousModelError, match=r"own; .* --input NAME explains 'image', 'b_image'"):
            plan_insertion(model, options)
    images, other = pictures(*query_models.SIZE)
    for name, fed in (("image", images), ("b_image", other)):
        result = insert(model, Options(per_box=True, output_dtype="f32", input=name))
        alone = insert(models.as_format(plain, kind), Options(per_box=True, output_dtype="f32"))
        wanted = run(alone.model, fed)["saliency_map_per_box"]
        found = run(result.model, images, b_image=other)["saliency_map_per_box"]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_classifier_with_queries_reports_no_boxes(kind):
    def scored(b, width=models.CHANNELS):
        cells = b.node("Reshape", b.backbone(), b.const(np.array([0, width, -1])))
        shares = b.node("Softmax", b.node("MatMul", b.weight(1, 3, width, scale=1), cells), axis=-1)
        z = b.node("MatMul", shares, b.node("Transpose", cells, perm=[0, 2, 1]))
        return b.linear(b.node("Reshape", z, b.const(np.array([0, 3 * width]))), 3 * width)

    model = models.as_format(models.classifier(scored, size=(8, 12)), kind)
    assert "pool" in plan_insertion(model).reason
    with pytest.raises(errors.UnsupportedTaskError, match="--per-box is for detectors"):
        plan_insertion(model, Options(per_box=True))
