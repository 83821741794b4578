"""Masked runs in ONNX: a Loop that both runtimes read, whose masks are computed and not stored."""

import numpy as np
import onnx
import openvino as ov
import openvino.opset13 as opset
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import deployed, oracle
from model_zoo_fixtures.testbed.models import (
    CHANNELS,
    CLOSED,
    FORMATS,
    as_format,
    attention_pooled,
    classifier,
)
from xai_insert import Options, errors, insert, pipeline
from xai_insert.check import run_plain
from xai_insert.formats.backend import load

RAW = {"output_dtype": "f32"}


def deep(b):
    """Normalised before the pool, with a side of its own for height and width."""
    x = b.node("Conv", b.backbone(), b.weight(CHANNELS, CHANNELS, 3, 3), pads=[1] * 4)
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", x))), CHANNELS)


CASES = {
    "attention pool": (attention_pooled, {}),
    "a deeper layer": (deep, {"target_layer": "Relu_4"}),
}


@pytest.mark.parametrize("at_once", [None, 7, 1, 1000])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(12, 12), (12, 20)])
def test_both_runtimes_read_masked_runs(name, size, at_once):
    network, options = CASES[name]
    model = classifier(network, batch=2, size=size)
    new = insert(model, Options(**RAW, **options, mask_batch=at_once))
    assert new.report.form == "masked runs"
    image = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    (*_, runs) = [1, *(loop_runs(new.model, image))]
    masks = np.prod(new.report.target["grid"])
    assert runs == -(-masks // (at_once or 8))
    wanted = oracle.run(new.model, image)["saliency_map"]
    read = ov.Core().read_model(new.model.SerializeToString())
    found = ov.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image)["saliency_map"]
    assert np.ptp(wanted) > 0
    assert np.allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def loop_runs(model, image):
    """How often each loop of a model runs."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    counts = [node.input[0] for node in twin.graph.node if node.op_type == "Loop"]
    twin.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in counts)
    if not counts:
        return []
    return [int(np.ravel(count)[0]) for count in oracle.session(twin).run(counts, {"image": image})]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_masks_at_once_give_the_map_of_one_by_one(kind, name, batch):
    network, options = CASES[name]
    model = as_format(classifier(network, batch=batch), kind)
    image = np.random.default_rng(0).standard_normal((1 if batch == 1 else 2, 3, 12, 12)).astype(np.float32)
    found = [
        oracle.run(insert(model, Options(**RAW, **options, mask_batch=at_once)).model, image)["saliency_map"]
        for at_once in (1, None, 5, 1000)
    ]
    assert np.ptp(found[0]) > 0
    for maps in found[1:]:
        assert np.allclose(maps, found[0], rtol=0, atol=1e-5 * abs(found[0]).max())


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fused_attention_runs_for_many_masks_at_once(batch):
    """OpenVINO has one operation for it, with a mask that is the same for all samples."""
    rng = np.random.default_rng(0)

    def weight(*shape):
        return opset.constant(rng.normal(size=shape).astype(np.float32))

    image = opset.parameter([batch, 3, 12, 12], np.float32, name="image")
    grid = opset.convolution(image, weight(8, 3, 4, 4), [4, 4], [0, 0], [0, 0], [1, 1])
    grid = opset.relu(grid, name="grid")
    tokens = opset.transpose(opset.reshape(grid, [0, 2, 4, 9], special_zero=True), [0, 1, 3, 2])
    parts = [opset.matmul(tokens, weight(4, 4), False, False) for _ in range(3)]
    mask = opset.constant(np.triu(np.full((9, 9), -9, np.float32), 1))
    mixed = opset.relu(opset.scaled_dot_product_attention(*parts, mask))
    again = opset.reshape(opset.transpose(mixed, [0, 1, 3, 2]), [0, 8, 3, 3], special_zero=True)
    pooled = opset.reduce_mean(again, np.array([2, 3]), keep_dims=False)
    logits = opset.matmul(pooled, weight(8, 5), False, False)
    model = ov.Model([logits], [image])
    feed = rng.normal(size=(batch, 3, 12, 12)).astype(np.float32)
    reports = [insert(model, Options(**RAW, target_layer="grid", mask_batch=at_once)) for at_once in (1, 9, 4)]
    maps = [oracle.run(report.model, feed)["saliency_map"] for report in reports]
    assert {report.report.form for report in reports} == {"masked runs"}
    loops = [sum(node.get_type_name() == "Loop" for node in report.model.get_ops()) for report in reports]
    assert loops == [1, 0, 1]
    for found in maps[1:]:
        assert np.allclose(found, maps[0], rtol=0, atol=1e-5 * abs(maps[0]).max())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["global average pool", "max", "norm of a map"])
def test_the_definition_on_request_is_the_closed_form(kind, name):
    model = as_format(classifier(CLOSED[name], batch=2), kind)
    image = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    closed, masked = (insert(model, Options(**RAW, form=form)) for form in ("closed", "masked"))
    assert (closed.report.form, masked.report.form) == ("closed form", "masked runs")
    wanted, found = (oracle.run(result.model, image)["saliency_map"] for result in (closed, masked))
    assert np.allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def test_a_closed_form_that_is_wanted_and_not_there_is_refused():
    with pytest.raises(errors.CannotFreeBatchError, match=r"there is no closed form: .*; --form masked"):
        insert(classifier(deep), Options(form="closed", target_layer="Relu_4"))


def batch_mixed(b):
    """Divided by the mean over the batch, so that no sample may stand beside another."""
    x = deep(b)
    return b.node("Div", x, b.node("Add", b.node("ReduceMean", b.node("Abs", x), axes=[0]), b.const(np.float32(1))))


@pytest.mark.parametrize("kind", FORMATS)
def test_masks_run_one_by_one_where_the_head_mixes_the_batch(kind):
    model = as_format(classifier(batch_mixed, batch=2), kind)
    new = insert(model, Options(**RAW, target_layer="Relu_4"))
    assert new.report.map_difference < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("at_once", [None, 9])
def test_a_transformer_runs_masked_in_both_runtimes(at_once):
    options = Options(**RAW, method="vit-recipro-cam", block=2, mask_batch=at_once)
    new, other = (insert(deployed.plain("shapes_vit", suffix), options) for suffix in (".onnx", ".xml"))
    assert {new.report.form, other.report.form} == {"masked runs"}
    images = deployed.scenes(2)
    wanted = oracle.run(new.model, images)["saliency_map"]
    read = ov.Core().read_model(new.model.SerializeToString())
    for model in (read, other.model):
        found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)["saliency_map"]
        assert np.allclose(found, wanted, rtol=0, atol=1e-4 * abs(wanted).max())


def test_masks_are_not_stored():
    model = classifier(deep, size=(160, 160), batch=1)
    new = insert(model, Options(**RAW, target_layer="Relu_4", check=False))
    assert new.report.target["grid"] == (80, 80)
    assert len(new.model.SerializeToString()) < len(model.SerializeToString()) + 100_000
    onnx.checker.check_model(new.model)


def finest(b):
    """A cell for each pixel."""
    x = b.node("Relu", b.node("Conv", "image", b.weight(CHANNELS, 3, 3, 3), pads=[1] * 4))
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), CHANNELS)


def test_many_masks_are_proved_in_a_small_image(monkeypatch):
    sizes = []

    def counted(loaded, graph, size):
        plain = run_plain(loaded, graph, size)
        sizes.append(plain.size)
        return plain

    monkeypatch.setattr(pipeline, "run_plain", counted)
    new = insert(classifier(finest, size=("height", "width")), Options(**RAW, form="masked"))
    assert new.report.form == "masked runs"
    assert sizes == [28]


def test_a_model_that_takes_no_small_image_is_run_on_a_larger_one():
    def coarse(b):
        x = b.node("Conv", "image", b.weight(CHANNELS, 3, 40, 40))
        return b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), CHANNELS)

    loaded = load(classifier(coarse, size=("height", "width")), {})
    assert run_plain(loaded, loaded.view(), 28).size == 224
