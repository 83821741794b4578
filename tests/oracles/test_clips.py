"""Models of clips: maps over time, rows and columns, against Recipro-CAM and ViT Recipro-CAM by their definitions."""

from itertools import product

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.models import Builder
from xai_insert import Options, errors, insert

FRAMES, SIDE, CHANNELS, CLASSES, WIDTH = 8, 16, 6, 5, 8
GRID = (4, 8, 8)
SHAPES = {
    "NCTHW": ["N", 3, FRAMES, SIDE, SIDE],
    "NTCHW": ["N", FRAMES, 3, SIDE, SIDE],
    "NTHWC": ["N", FRAMES, SIDE, SIDE, 3],
}
TO_NCTHW = {"NTCHW": [0, 2, 1, 3, 4], "NTHWC": [0, 4, 1, 2, 3]}


class Net:
    """A network of clips whose feature `[N, C, 4, 8, 8]`, or tokens of 4 x 2 x 2 tubes, ends as `end` says."""

    def __init__(self, end, layout="NCTHW", batch="N"):
        b = self.b = Builder()
        x = "clip" if layout == "NCTHW" else b.node("Transpose", "clip", perm=TO_NCTHW[layout])
        shape = [batch if size == "N" else size for size in SHAPES[layout]]
        scores = self.tokens(x, end) if "token" in end else self.pooled(x, end)
        self.logits = scores
        clip = helper.make_tensor_value_info("clip", TensorProto.FLOAT, shape)
        self.model = b.model(scores, inputs=[clip])

    def pooled(self, x, end):
        b = self.b
        x = b.node("Conv", x, b.weight(CHANNELS, 3, 3, 3, 3), pads=[1] * 6, strides=[2, 2, 2])
        x = b.node("Relu", x)
        x = self.feature = b.node("Relu", b.node("Conv", x, b.weight(CHANNELS, CHANNELS, 3, 3, 3), pads=[1] * 6))
        if end == "flatten":
            return b.linear(b.node("Flatten", x), CHANNELS * int(np.prod(GRID)))
        if end == "window":
            x = b.node("AveragePool", x, kernel_shape=GRID)
        elif end == "reduce":
            x = b.node("ReduceMean", x, axes=[2, 3, 4], keepdims=1)
        else:
            x = b.node(end, x)
        return b.linear(b.node("Flatten", x), CHANNELS)

    def tokens(self, x, end):
        b, count = self.b, 16
        x = b.node("Conv", x, b.weight(WIDTH, 3, 2, 8, 8, scale=0.1), strides=[2, 8, 8])
        order = [0, 3, 4, 2, 1] if end.endswith("time last") else [0, 2, 3, 4, 1]
        x = b.node("Reshape", b.node("Transpose", x, perm=order), b.const(np.array([0, count, WIDTH])))
        if end.startswith("class token"):
            first = b.node("Add", b.node("Mul", b.node("Slice", x, b.const([0]), b.const([1]), b.const([1])),
                           b.const(np.float32(0))), b.weight(1, 1, WIDTH))  # fmt: skip
            x, count = b.node("Concat", first, x, axis=1), count + 1
        x = self.residual = b.node("Add", x, b.weight(1, count, WIDTH))
        y = self.feature = b.node("LayerNormalization", x, b.weight(WIDTH), b.weight(WIDTH))
        query, key, value = (b.node("Add", b.node("MatMul", y, b.weight(WIDTH, WIDTH)), b.weight(WIDTH)) for _ in "qkv")
        shares = b.node("Softmax", b.node("MatMul", query, b.node("Transpose", key, perm=[0, 2, 1])), axis=-1)
        x = b.node("Add", x, b.node("MatMul", b.node("MatMul", shares, value), b.weight(WIDTH, WIDTH)))
        if end.startswith("class token"):
            return b.linear(b.node("Gather", x, b.const(np.array(0)), axis=1), WIDTH)
        self.feature = x
        return b.linear(b.node("ReduceMean", x, axes=[1], keepdims=0), WIDTH)


def clips(layout, count=2):
    shape = [count, *SHAPES[layout][1:]]
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)


def definition(net, images):
    """Scores with one place kept at a time, `[B, K, t, h, w]`."""
    parts = oracle.Parts(net.model, net.feature, net.logits)
    feature = parts.feature(images)
    grid = feature.shape[2:] if feature.ndim == 5 else (4, 2, 2)
    maps = np.zeros((len(images), CLASSES, *grid))
    for number, place in enumerate(product(*map(range, grid))):
        kept = np.zeros_like(feature)
        where = (slice(None), slice(None), *place) if feature.ndim == 5 else (slice(None), number)
        kept[where] = feature[where]
        maps[(slice(None), slice(None), *place)] = parts.head(images, kept)
    return maps


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(
    ("end", "layout"),
    [
        ("GlobalAveragePool", "NCTHW"),
        ("GlobalMaxPool", "NTCHW"),
        ("window", "NTHWC"),
        ("reduce", "NTCHW"),
        ("flatten", "NCTHW"),
        ("mean of tokens", "NTCHW"),
    ],
)
def test_recipro_cam(end, layout, kind):
    net, images = Net(end, layout), clips(layout)
    model = models.as_format(net.model, kind)
    wanted = definition(net, images)
    plain = oracle.run(model, images)
    result = insert(model, Options(output_dtype="f32"))
    assert result.report.method == "recipro-cam"
    assert result.report.form == "closed form"
    assert result.report.place == "blocks"
    outputs = oracle.run(result.model, images)
    maps = outputs.pop("saliency_map")
    np.testing.assert_allclose(maps, wanted, atol=1e-5 * np.abs(wanted).max())
    for name, array in plain.items():
        np.testing.assert_array_equal(outputs[name], array)


@pytest.mark.parametrize("reference", ["self", "input", "classes"])
def test_likeness_of_clips(reference, tmp_path):
    """Products of the vectors of every place with the clip's own, with one that is fed, or with stored ones."""
    net, images = Net("GlobalAveragePool"), clips("NCTHW")
    vectors, given = definition(net, images), np.random.default_rng(5).normal(size=(2, CLASSES)).astype(np.float32)
    np.save(tmp_path / "rows.npy", given)
    chosen = {"class_embeddings": tmp_path / "rows.npy"} if reference == "classes" else {"reference": reference}
    made = insert(net.model, Options(output_dtype="f32", **chosen)).model
    session = ort.InferenceSession(made.SerializeToString())
    fed = {"clip": images} | ({"reference": given} if reference == "input" else {})
    (own, maps) = session.run([net.logits, "saliency_map"], fed)
    if reference == "classes":
        rows, lengths = (np.linalg.norm(array, axis=1, keepdims=True) for array in (given, vectors))
        wanted = 100 * np.einsum("kd,bdthw->bkthw", given / rows, vectors / lengths)
    else:
        wanted = np.einsum("bd,bdthw->bthw", own if reference == "self" else given, vectors)[:, None]
    np.testing.assert_allclose(maps, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", models.FORMATS)
def test_masked_runs_are_the_same(kind):
    net, images = Net("GlobalMaxPool", "NTCHW"), clips("NTCHW")
    model = models.as_format(net.model, kind)
    wanted = definition(net, images)
    maps = oracle.run(insert(model, Options(output_dtype="f32", form="masked")).model, images)["saliency_map"]
    np.testing.assert_allclose(maps, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("end", ["class token", "class token, time last"])
@pytest.mark.parametrize(("kernel", "form"), [("gaussian", "auto"), ("point", "auto"), ("gaussian", "masked")])
def test_vit_recipro_cam_keeps_the_kernel_of_one_time(kind, kernel, form, end):
    net, images = Net(end), clips("NCTHW")
    model = models.as_format(net.model, kind)
    parts = oracle.Parts(net.model, [net.feature, net.residual], net.logits)
    features = parts.features(images)
    weights = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    wanted = np.zeros((len(images), CLASSES, 4, 2, 2))
    for t, i, j in product(range(4), range(2), range(2)):
        mask = np.zeros((4, 2, 2), np.float32)
        mask[t, i, j] = 1
        if kernel == "gaussian":
            for a, b in product(range(2), range(2)):
                mask[t, a, b] = weights[1 + a - i, 1 + b - j]
        mask = mask.transpose(1, 2, 0) if end.endswith("time last") else mask
        mask = np.concatenate([[1], mask.reshape(-1)])[None, :, None].astype(np.float32)
        wanted[:, :, t, i, j] = parts.head(images, *(feature * mask for feature in features))
    result = insert(model, Options(output_dtype="f32", kernel=kernel, form=form))
    assert result.report.method == "vit-recipro-cam"
    maps = oracle.run(result.model, images)["saliency_map"]
    np.testing.assert_allclose(maps, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", models.FORMATS)
def test_bytes_are_scaled_over_all_times(kind):
    net, images = Net("GlobalAveragePool"), clips("NCTHW")
    model = models.as_format(net.model, kind)
    raw = definition(net, images)
    low, high = (end(axis=(2, 3, 4), keepdims=True) for end in (raw.min, raw.max))
    outputs = oracle.run(insert(model, Options(range=True)).model, images)
    assert outputs["saliency_map"].shape == (2, CLASSES, *GRID)
    assert np.mean(np.abs(outputs["saliency_map"] - np.floor(255 * (raw - low) / (high - low))) <= 1) > 0.999
    ends = np.stack([low, high], -1).reshape(2, CLASSES, 2)
    np.testing.assert_allclose(outputs["saliency_range"], ends, atol=1e-4)


def test_best_classes_and_another_size():
    net, images = Net("GlobalAveragePool"), clips("NCTHW")
    raw = definition(net, images)
    outputs = oracle.run(insert(net.model, Options(output_dtype="f32", top_k=2)).model, images)
    for maps, classes, all_ in zip(outputs["saliency_map"], outputs["saliency_classes"], raw, strict=True):
        np.testing.assert_allclose(maps, all_[classes], atol=1e-4)
    larger = oracle.run(insert(net.model, Options(saliency_size=(12, 14))).model, images)["saliency_map"]
    assert larger.shape == (2, CLASSES, 4, 12, 14)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_derivatives(kind):
    net, images = Net("GlobalAveragePool"), clips("NCTHW")
    result = insert(models.as_format(net.model, kind), Options(output_dtype="f32", method="hirescam", top_k=CLASSES))
    outputs = oracle.run(result.model, images)
    parts = oracle.Parts(net.model, net.feature, net.logits)
    nothing = parts.head(images, np.zeros_like(parts.feature(images)))
    wanted = definition(net, images) - nothing[..., None, None, None]  # a linear head has no more than its bias beside
    for maps, classes, all_ in zip(outputs["saliency_map"], outputs["saliency_classes"], wanted, strict=True):
        np.testing.assert_allclose(maps, all_[classes], atol=1e-5)


def test_other_methods_are_refused_in_words():
    for net, method in ((Net("GlobalAveragePool"), "activation-map"), (Frames("N"), "grad-cam")):
        with pytest.raises(errors.XaiInsertError, match="not for clips, or not for frames"):
            insert(net.model, Options(method=method))


def test_what_are_frames_and_what_channels_must_be_told():
    model = Net("GlobalAveragePool").model
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 3
    with pytest.raises(errors.NotVisionModelError, match="which axis holds channels"):
        insert(model)


@pytest.mark.parametrize("turned", ["time", "columns"])
def test_a_clip_that_runs_backwards_is_not_taken_for_one_that_does_not(turned):
    net = Net("GlobalAveragePool")
    axis = {"time": 2, "columns": 4}[turned]
    for node in net.model.graph.node:
        for index, name in enumerate(node.input):
            if name == "clip":
                node.input[index] = "turned"
    ends = {"start": [-1], "end": [-(2**31)], "axis": [axis], "step": [-1]}
    net.model.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), k) for k, v in ends.items())
    net.model.graph.node.insert(0, helper.make_node("Slice", ["clip", *ends], ["turned"], name="turn"))
    if turned == "time":
        with pytest.raises(errors.TargetNotFoundError):
            insert(net.model)
        return
    images = clips("NCTHW")
    maps = oracle.run(insert(net.model, Options(output_dtype="f32")).model, images)["saliency_map"]
    np.testing.assert_allclose(maps, definition(net, images)[..., ::-1], atol=1e-4)


def test_an_ir_stays_one(tmp_path):
    onnx.save(Net("GlobalAveragePool", batch=2).model, tmp_path / "net.onnx")
    result = insert(ov.Core().read_model(tmp_path / "net.onnx"))
    assert oracle.run(result.model, clips("NCTHW"))["saliency_map"].shape == (2, CLASSES, *GRID)


class Frames:
    """A network of images that sees the frames of a clip in its batch, and the mean of their scores.

    `packed` ones come one behind the other in the channels of an image, which is scaled first.
    """

    def __init__(self, batch, end="mean", *, packed=False):
        b = Builder()
        x = b.node("Mul", "clip", b.const(np.float32(1.5))) if packed else "clip"
        x = b.node("Reshape", x, b.const(np.array([-1, 3, SIDE, SIDE])))
        x = b.node("Relu", b.node("Conv", x, b.weight(CHANNELS, 3, 3, 3), pads=[1] * 4, strides=[2, 2]))
        self.feature = b.node("Relu", b.node("Conv", x, b.weight(CHANNELS, CHANNELS, 3, 3), pads=[1] * 4))
        x = b.node("Relu", b.linear(b.node("Flatten", b.node("GlobalAveragePool", self.feature)), CHANNELS, 7))
        x = b.node("Reshape", b.linear(x, 7), b.const(np.array([-1, FRAMES, CLASSES])))
        mode = {"mean": "ReduceMean", "max": "ReduceMax"}[end]
        self.logits = b.node(mode, x, axes=[1], keepdims=0)
        shape = [FRAMES * 3, SIDE, SIDE] if packed else [FRAMES, 3, SIDE, SIDE]
        clip = helper.make_tensor_value_info("clip", TensorProto.FLOAT, [batch, *shape])
        self.model = b.model(self.logits, inputs=[clip])


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize("form", ["closed", "masked"])
@pytest.mark.parametrize("packed", [False, True])
def test_consensus_of_frames(kind, batch, form, packed):
    net, images = Frames(batch, packed=packed), clips("NTCHW")
    images = images.reshape(2, FRAMES * 3, SIDE, SIDE) if packed else images
    model = models.as_format(net.model, kind)
    parts = oracle.Parts(net.model, net.feature, net.logits)
    feature = parts.feature(images).reshape(2, FRAMES, CHANNELS, 8, 8)
    wanted = np.zeros((2, CLASSES, FRAMES, 8, 8))
    for t, i, j in product(range(FRAMES), range(8), range(8)):
        kept = np.zeros_like(feature)
        kept[:, t, :, i, j] = feature[:, t, :, i, j]
        wanted[:, :, t, i, j] = parts.head(images, kept.reshape(-1, CHANNELS, 8, 8))
    result = insert(model, Options(output_dtype="f32", form=form))
    assert result.report.form == ("closed form" if form == "closed" else "masked runs")
    outputs = oracle.run(result.model, images)
    np.testing.assert_allclose(outputs.pop("saliency_map"), wanted, atol=1e-5 * np.abs(wanted).max())
    for name, array in oracle.run(model, images).items():
        np.testing.assert_array_equal(outputs[name], array)
    low, high = (end(axis=(2, 3, 4), keepdims=True) for end in (wanted.min, wanted.max))
    maps = oracle.run(insert(model, Options(form=form)).model, images)["saliency_map"]
    assert np.mean(np.abs(maps - np.floor(255 * (wanted - low) / (high - low))) <= 1) > 0.999


@pytest.mark.parametrize("kind", models.FORMATS)
def test_frames_in_the_channels_of_an_image_that_become_a_clip(kind):
    """3-D convolutions behind a reshape that takes the frames out of the channels."""
    net, images = Net("GlobalAveragePool", "NTCHW"), clips("NTCHW")
    images = images.reshape(2, FRAMES * 3, SIDE, SIDE)
    packed = net.b.const(np.array([-1, FRAMES, 3, SIDE, SIDE]))
    reshape = helper.make_node("Reshape", ["image", packed], ["clip"], name="apart")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", FRAMES * 3, SIDE, SIDE])
    net.b.nodes.insert(0, reshape)
    net.model = net.b.model(net.logits, inputs=[image])
    wanted = definition(net, images)
    result = insert(models.as_format(net.model, kind), Options(output_dtype="f32"))
    maps = oracle.run(result.model, images)["saliency_map"]
    np.testing.assert_allclose(maps, wanted, atol=1e-5 * np.abs(wanted).max())


def test_frames_whose_scores_are_joined_otherwise_are_refused_in_words():
    with pytest.raises(errors.TargetNotFoundError, match="frames of a clip stand in the batch"):
        insert(Frames("N", "max").model)
    with pytest.raises(errors.UnusedOptionError, match="--top-k"):
        insert(Frames("N").model, Options(top_k=2))


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("drops", ["Gather", "Squeeze"])
def test_frames_that_are_cut_out_one_by_one_are_masked_together(drops, kind):
    """As Keras' `TimeDistributed` writes an image network for each frame: one map of all."""
    b = Builder()
    layer, turned = b.weight(CHANNELS, 3, 2, 2), b.node("Transpose", "clip", perm=[1, 0, 2, 3, 4])
    features = []
    for frame in range(FRAMES):
        if drops == "Gather":
            image = b.node("Gather", turned, b.const(np.array(frame)), axis=0)
        else:
            bounds = [b.const(np.array([number])) for number in (frame, frame + 1, 0)]
            image = b.node("Squeeze", b.node("Slice", turned, *bounds), b.const(np.array([0])))
        features.append(b.node("Relu", b.node("Conv", image, layer, strides=[2, 2])))
    means = [b.node("ReduceMean", feature, axes=[2, 3], keepdims=0) for feature in features]
    clip = helper.make_tensor_value_info("clip", TensorProto.FLOAT, SHAPES["NTCHW"])
    model = b.model(b.node("MatMul", b.node("Sum", *means), b.weight(CHANNELS, CLASSES)), inputs=[clip])
    weights = [onnx.numpy_helper.to_array(item) for item in model.graph.initializer]
    images, last = clips("NTCHW"), next(item for item in weights if item.shape == (CHANNELS, CLASSES))
    cells = images.reshape(2, FRAMES, 3, 8, 2, 8, 2)
    feature = np.maximum(np.einsum("ntcirjs,kcrs->ntkij", cells, weights[0]), 0).sum(1)
    result = insert(models.as_format(model, kind), Options(output_dtype="f32"))
    assert len(result.report.target["masked"]) == FRAMES
    found = oracle.run(result.model, images)["saliency_map"]
    np.testing.assert_allclose(found, np.einsum("nkij,ko->noij", feature, last) / 64, atol=1e-5)
