"""The methods that are made of derivatives, beside closed forms and differences computed outside the tool."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models, oracle
from xai_insert import Options, errors, insert, insert_file, plan_insertion
from xai_insert.methods.gradients import pullback
from xai_insert.methods.gradients.activations import RULES

SHAPES = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes"
KINDS = pytest.mark.parametrize("kind", models.FORMATS)
METHODS = ("hirescam", "grad-cam", "layercam")


def image(batch=2, size=(models.SIDE, models.SIDE)):
    return np.random.default_rng(3).standard_normal((batch, 3, *size)).astype(np.float32)


def inserted(model, x, **options):
    result = insert(model, Options(output_dtype="f32", **options))
    assert result.report.output_difference == 0
    assert result.report.map_difference < 0.02
    return result.report, oracle.run(result.model, x)


@KINDS
@pytest.mark.parametrize("batch", [1, 2])
def test_hirescam_is_reciprocam_but_for_a_constant_where_the_head_pools_and_is_linear(batch, kind):
    """S_k[p] = W_k F[p] / hw + b_k for Recipro-CAM, and the derivative of the score by F[p] is W_k / hw."""
    model = models.as_format(models.classifier(models.CLOSED["global average pool"]), kind)
    x = image(batch)
    report, outputs = inserted(model, x, method="hirescam", top_k=models.CLASSES)
    maps, classes = outputs["saliency_map"], outputs["saliency_classes"]
    masked = oracle.run(insert(model, Options(output_dtype="f32")).model, x)["saliency_map"]
    assert (report.method, report.form) == ("hirescam", "derivative")
    for item in range(batch):
        assert sorted(classes[item]) == list(range(models.CLASSES))
        difference = masked[item][classes[item]] - maps[item]
        assert np.ptp(difference, axis=(1, 2)).max() < 1e-5 * np.abs(masked).max()


@KINDS
@pytest.mark.parametrize("method", METHODS)
def test_each_formula_where_the_derivative_is_known(method, kind):
    """Behind a mean and a linear layer the derivative is the class's row of weights over the number of places."""
    b = models.Builder()
    network = models.CLOSED["global average pool"](b)
    weight = next(tensor for tensor in b.weights if tuple(tensor.dims) == (models.CLASSES, models.CHANNELS))
    rows = np.frombuffer(weight.raw_data, np.float32).reshape(models.CLASSES, models.CHANNELS)
    plain = b.model(network)
    x = image()
    _, outputs = inserted(models.as_format(plain, kind), x, method=method)
    feature = oracle.Parts(plain, "relu4_0", network).feature(x)
    best = outputs["saliency_classes"]
    assert outputs["saliency_map"].shape == (2, 1, 6, 6)
    np.testing.assert_array_equal(best[:, 0], outputs[plain.graph.output[0].name].argmax(axis=1))
    slope = rows[best[:, 0]][:, :, None, None] / 36
    expected = {
        "hirescam": (slope * feature).sum(axis=1),
        "grad-cam": np.maximum((slope * feature).sum(axis=1), 0),
        "layercam": np.maximum((np.maximum(slope, 0) * feature).sum(axis=1), 0),
    }[method]
    np.testing.assert_allclose(outputs["saliency_map"][:, 0], expected, atol=1e-6 * np.abs(slope * feature).max() * 6)


def deep(b, *, pads_apart=False):
    """Three stages, the grid halved between them; a padding of its own is no stage."""
    x, margin = b.backbone(), b.const(np.array([0, 0, 1, 1] * 2))
    for _ in range(2):
        x = b.node("Pad", x, margin) if pads_apart else x
        pads = [0 if pads_apart else 1] * 4
        x = b.node("Conv", x, b.weight(models.CHANNELS, models.CHANNELS, 3, 3), pads=pads, strides=[2, 2])
        x = b.node("Relu", x)
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), models.CHANNELS)


@KINDS
@pytest.mark.parametrize("pads_apart", [False, True])
def test_stages_are_counted_from_the_end(pads_apart, kind):
    model = models.as_format(models.classifier(partial(deep, pads_apart=pads_apart)), kind)
    for layer, grid in (("LAST", (2, 2)), ("-1", (2, 2)), ("-2", (3, 3)), ("-3", (6, 6))):
        report, outputs = inserted(model, image(), method="layercam", target_layer=layer)
        assert report.target["grid"] == grid
        assert outputs["saliency_map"].shape == (2, 1, *grid)
    with pytest.raises(errors.TargetNotFoundError, match=r"no stage -4 .* -3 '.*' .*6, 6"):
        plan_insertion(model, Options(target_layer="-4"))
    assert insert(model, Options(target_layer="-2")).report.target["grid"] == (3, 3)


@KINDS
@pytest.mark.parametrize("top_k", [1, 3])
def test_a_deeper_layer_by_differences(top_k, kind):
    """HiResCAM sums up to the slope of the score as all features grow; place by place, as those of one cell do."""
    plain = models.classifier(deep)
    model = models.as_format(plain, kind)
    x = image()
    _, outputs = inserted(model, x, method="hirescam", target_layer="-3", top_k=top_k)
    maps, classes = outputs["saliency_map"], outputs["saliency_classes"]
    parts = oracle.Parts(plain, "relu4_0", plain.graph.output[0].name)
    feature = parts.feature(x)
    for row, column in ((0, 0), (2, 3), (5, 4)):
        change = np.zeros_like(feature)
        change[:, :, row, column] = 1e-2 * feature[:, :, row, column]
        slope = (parts.head(x, feature + change) - parts.head(x, feature - change)) / 2e-2
        wanted = np.take_along_axis(slope, classes, axis=1)
        np.testing.assert_allclose(maps[:, :, row, column], wanted, atol=0.01 * np.abs(maps).max())


def test_the_walk_ends_at_the_target_and_is_one_for_all_classes():
    plain = models.classifier(deep)
    values = [name for node in plain.graph.node for name in node.output]

    def added(**options):
        nodes = insert(plain, Options(method="hirescam", **options)).model.graph.node
        return [node for node in nodes if not set(node.output).intersection(values)]

    behind = values[values.index("relu6_0") :]
    read = {name for node in added(target_layer="-2") for name in node.input}.intersection(values)
    assert "relu6_0" in read
    assert read <= set(behind)
    counts = {len(added(target_layer="-3", top_k=count)) for count in (2, 4)}
    assert len(counts) == 1


@KINDS
def test_input_times_gradient_has_the_size_of_the_image(kind):
    model = models.as_format(models.classifier(deep), kind)
    report, outputs = inserted(model, image(), method="input-x-gradient")
    assert outputs["saliency_map"].shape == (2, 1, models.SIDE, models.SIDE)
    assert report.target["grid"] == (models.SIDE, models.SIDE)
    with pytest.raises(errors.UnsupportedTaskError, match="leave out"):
        insert(model, Options(method="input-x-gradient", target_layer="-2"))


@pytest.mark.parametrize("suffix", ["xml", "onnx"])
@pytest.mark.parametrize("name", ["shapes_cnn", "shapes_vit"])
@pytest.mark.parametrize("method", ["hirescam", "layercam"])
def test_bundled_models(method, name, suffix, tmp_path):
    options = Options(method=method, target_layer="-2", top_k=2)
    report = insert_file(SHAPES / f"{name}.{suffix}", tmp_path / f"new.{suffix}", options)
    assert report.output_difference < 1e-6
    assert report.map_difference < 0.02
    assert report.method == method


def test_a_missing_rule_names_the_operator():
    def network(b):
        x = b.node("Hardmax", b.backbone(), axis=1)
        return b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), models.CHANNELS)

    with pytest.raises(errors.NoDerivativeError, match=r"Hardmax 'Hardmax_5'"):
        plan_insertion(models.classifier(network), Options(method="hirescam", target_layer="Relu_4"))


@KINDS
def test_a_wrong_rule_is_found_by_the_check(kind, monkeypatch):
    wrong = {**pullback._POINTWISE, "relu": RULES["sigmoid"]}
    monkeypatch.setattr(pullback, "_POINTWISE", wrong)
    model = models.as_format(models.classifier(deep), kind)
    with pytest.raises(errors.DefinitionError, match="slope"):
        insert(model, Options(method="hirescam", target_layer="-3"))


def two_layers(b, *, rounded):
    """Convolutions whose rectifiers a quantisation tool has folded into its ranges, or as they were."""

    def rectified(x):
        if not rounded:
            return b.node("Relu", x)
        by = b.const(np.float32(1 / 64)), b.const(np.uint8(0))
        return b.node("DequantizeLinear", b.node("QuantizeLinear", x, *by), *by)

    x = rectified(b.node("Conv", "image", b.weight(models.CHANNELS, 3, 3, 3, scale=0.2), strides=[2, 2]))
    x = rectified(b.node("Conv", x, b.weight(models.CHANNELS, models.CHANNELS, 3, 3, scale=0.1), strides=[2, 2]))
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), models.CHANNELS)


@pytest.mark.parametrize("layer", ["-1", "-2"])
def test_quantised_models_have_the_derivative_of_what_was_quantised(layer):
    x = image()
    maps = []
    for rounded in (True, False):
        model = models.classifier(partial(two_layers, rounded=rounded))
        report, outputs = inserted(model, x, method="hirescam", target_layer=layer, classes=(1,))
        assert report.form == "derivative"
        maps.append(outputs["saliency_map"])
    np.testing.assert_allclose(*maps, atol=0.1 * np.abs(maps[1]).max())
    assert np.corrcoef(*(item.ravel() for item in maps))[0, 1] > 0.99


def test_a_head_that_runs_masked_has_a_derivative():
    report, outputs = inserted(models.classifier(models.MASKED["attention"]), image(), method="hirescam")
    assert report.form == "derivative"
    assert outputs["saliency_map"].shape[:2] == (2, 1)
