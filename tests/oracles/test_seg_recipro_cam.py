"""Seg-Recipro-CAM, the reason of the region of a class: its definition, by closed forms and by masked runs."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.segmenter_models import LAST, SIDE, K, build, coarse, enlarged, image
from xai_insert import Options, errors, insert
from xai_insert.methods.named import seg_recipro_cam
from xai_insert.probe.resizes import resize_of

LINEAR = [
    "deeplab", "softmaxed", "argmax", "argmax_enlarged", "logits_and_labels", "channels_last", "last_channels",
    "segformer", "unet",
]  # fmt: skip


def reasons_by_definition(model, target, last, images, channels_last=False):
    """Seg-Recipro-CAM by runs of what stands behind the feature, one for each place, in NumPy around onnxruntime."""
    parts = oracle.Parts(model, target, last)
    features = parts._backbone(images)[0]
    grid = (1, 2) if channels_last else (2, 3)

    def scores(kept):
        found = parts._head(images, kept)
        return found.transpose(0, 3, 1, 2) if channels_last else found

    plain = scores(features)
    regions = np.eye(plain.shape[1])[plain.argmax(axis=1)].transpose(0, 3, 1, 2)
    sizes = [features.shape[axis] for axis in grid]
    maps = np.zeros((*plain.shape[:2], *sizes))
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            mask = np.zeros(features.shape, np.float32)
            mask[(slice(None),) * grid[0] + (row, column)] = 1
            kept = scores(features * mask)
            maps[:, :, row, column] = (kept * regions).sum(axis=(2, 3)) / np.maximum(regions.sum(axis=(2, 3)), 1)
    return maps


def layer_of(model, scores):
    """What the linear layer reads that gives the scores."""
    made_by = {node.output[0]: node for node in model.graph.node}
    node = made_by[scores]
    while node.op_type not in ("Conv", "MatMul"):
        node = made_by[node.input[0]]
    return node.input[0]


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("batch", [2, "N"])
@pytest.mark.parametrize("name", LINEAR)
def test_the_reason_of_a_region_is_its_definition(name, batch, kind):
    model, scores = build(name, batch=batch)
    images = image(2)
    resizes = [node.output[0] for node in model.graph.node if node.op_type == "Resize"]
    last = resizes[-1] if resizes and name != "argmax_enlarged" else scores
    wanted = reasons_by_definition(model, layer_of(model, scores), last, images, name in LAST)
    for form in ("auto", "masked"):
        options = Options(method="seg-recipro-cam", output_dtype="f32", form=form)
        result = insert(models.as_format(model, kind), options)
        assert result.report.output_difference == 0
        assert result.report.map_difference < 1e-5
        assert result.report.form == ("closed form" if form == "auto" else "masked runs")
        maps = oracle.run(result.model, images)["saliency_map"]
        np.testing.assert_allclose(maps, wanted, rtol=0, atol=1e-4 * np.ptp(wanted, axis=(2, 3)).max())


def wide_head(b, x):
    """A layer that reads neighbours, enlarged: what a place says reaches pixels of others."""
    scores = b.node("Conv", x, b.weight(K, 6, 3, 3), b.weight(K), pads=[1] * 4)
    return x, enlarged(b, scores)


def shares(b, x):
    """Probabilities that are enlarged: those are what tells the class of a pixel."""
    return x, enlarged(b, b.node("Softmax", b.node("Conv", x, b.weight(K, 6, 1, 1), b.weight(K)), axis=1))


def two_levels(b, x):
    """Scores of two levels, added, as LR-ASPP and FCN have them: masked is what both are made of."""
    low = b.node("Conv", x, b.weight(K, 6, 1, 1), b.weight(K))
    y = b.node("Relu", b.node("Conv", x, b.weight(6, 6, 3, 3), b.weight(6), pads=[1] * 4, strides=[2, 2]))
    high = enlarged(b, b.node("Conv", y, b.weight(K, 6, 1, 1)), 2.0)
    return x, enlarged(b, b.node("Add", high, low))


def listed_sizes(b, x):
    """A coarser level, brought to the sizes of the finer one that are read off it, the batch among them."""
    y = b.node("Relu", b.node("Conv", x, b.weight(6, 6, 3, 3), b.weight(6), pads=[1] * 4, strides=[2, 2]))
    sizes = b.node("Concat", cut_first(b, b.node("Shape", x)), b.const(np.array([8, 8])), axis=0)
    y = b.node("Resize", y, "", "", sizes, mode="nearest", coordinate_transformation_mode="asymmetric")
    high, low = (b.node("Conv", item, b.weight(K, 6, 1, 1)) for item in (y, x))
    return x, enlarged(b, b.node("Add", high, low))


def cut_first(b, sizes):
    return b.node("Slice", sizes, *(b.const(np.array([number])) for number in (0, 2, 0)))


def finer(b, x):
    """A transposed convolution with a map for each class, as U-Nets end in."""
    scores = b.node("ConvTranspose", x, b.weight(6, K, 2, 2), b.weight(K), strides=[2, 2])
    return x, enlarged(b, scores, 2.0)


def blocks(b, x):
    scores = b.node("DepthToSpace", b.node("Conv", x, b.weight(4 * K, 6, 1, 1)), blocksize=2, mode="CRD")
    return x, scores


def two_biases(b, x):
    scores = b.node("Conv", x, b.weight(K, 6, 1, 1), b.weight(K))
    return x, enlarged(b, b.node("Add", scores, b.weight(1, K, 1, 1)))


def one_for_all(b, x):
    """A number that is added to the scores of all classes."""
    return x, enlarged(b, b.node("Add", b.node("Conv", x, b.weight(K, 6, 1, 1)), b.const(np.float32(3))))


HEADS = {
    item.__name__: item
    for item in (wide_head, shares, two_levels, listed_sizes, finer, blocks, two_biases, one_for_all)
}


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(("batch", "at_once"), [(1, None), (2, 1), ("N", 7)])
@pytest.mark.parametrize("name", HEADS)
def test_another_head_runs_once_for_each_place(name, batch, at_once, kind):
    b = models.Builder(size=(SIDE, SIDE), batch=batch)
    target, last = HEADS[name](b, coarse(b))
    model, images = b.model(b.node("ArgMax", last, axis=1, keepdims=0)), image(1 if batch == 1 else 2)
    wanted = reasons_by_definition(model, target, last, images)
    form = "masked" if name == "wide_head" else "auto"
    options = Options(method="seg-recipro-cam", output_dtype="f32", mask_batch=at_once, form=form)
    result = insert(models.as_format(model, kind), options)
    assert (result.report.form, result.report.output_difference) == ("masked runs", 0)
    assert result.report.map_difference < 1e-5
    maps = oracle.run(result.model, images)["saliency_map"]
    assert np.ptp(wanted, axis=(2, 3)).max() > 0
    np.testing.assert_allclose(maps, wanted, rtol=0, atol=1e-4 * np.ptp(wanted, axis=(2, 3)).max())


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("enlarges", [True, False])
@pytest.mark.parametrize(
    ("kernel", "pads", "apart"),
    [((3, 3), (1, 1, 1, 1), 1), ((3, 3), (2, 2, 2, 2), 2), ((3, 2), (2, 0, 0, 1), 1), ((5, 1), (2, 0, 2, 0), 1)],
)
def test_a_layer_that_reads_neighbours_has_a_closed_form(kernel, pads, apart, enlarges, kind):
    b = models.Builder(size=(SIDE, SIDE))
    target = coarse(b)
    x = b.node("Conv", target, b.weight(K, 6, *kernel), b.weight(K), pads=pads, dilations=[apart] * 2)
    last = enlarged(b, x) if enlarges else x
    model, images = b.model(b.node("ArgMax", last, axis=1, keepdims=0)), image()
    wanted = reasons_by_definition(model, target, last, images)
    result = insert(models.as_format(model, kind), Options(method="seg-recipro-cam", output_dtype="f32"))
    assert (result.report.form, result.report.target["grid"]) == ("closed form", (8, 8))
    maps = oracle.run(result.model, images)["saliency_map"]
    np.testing.assert_allclose(maps, wanted, rtol=0, atol=1e-4 * np.ptp(wanted, axis=(2, 3)).max())


def test_a_closed_form_that_is_wrong_is_found(monkeypatch):
    """By what a place moves, which is little beside the score of a region of many pixels."""
    b = models.Builder(size=(SIDE, SIDE))
    scores = b.node("Conv", coarse(b), b.weight(K, 6, 1, 1), b.const(np.linspace(30, 31, K, dtype=np.float32)))
    model = b.model(enlarged(b, scores))
    monkeypatch.setattr(seg_recipro_cam, "resize_of", lambda *_: [np.roll(m, 1, 1) for m in resize_of(*_)])
    with pytest.raises(errors.DefinitionError):
        insert(model, Options(method="seg-recipro-cam"))
    monkeypatch.undo()
    assert insert(model, Options(method="seg-recipro-cam")).report.form == "closed form"


def test_what_is_not_linear_has_no_closed_form():
    b = models.Builder(size=(SIDE, SIDE))
    model = b.model(shares(b, coarse(b))[1])
    assert insert(model, Options(method="seg-recipro-cam")).report.form == "masked runs"
    with pytest.raises(errors.CannotFreeBatchError, match=r"no closed form: .* is not resized as it is"):
        insert(model, Options(method="seg-recipro-cam", form="closed"))


def test_no_map_lies_on_every_path():
    model, _ = build("lraspp")  # whose lower level reads the image itself
    with pytest.raises(errors.UnsupportedTaskError, match="once for each place of a map"):
        insert(model, Options(method="seg-recipro-cam"))
