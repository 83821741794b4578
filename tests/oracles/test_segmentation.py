"""Semantic segmenters: class scores before softmax, argmax and the last resize, told by structure."""

import json

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest
from click.testing import CliRunner

from model_zoo_fixtures.shapes import semantic
from model_zoo_fixtures.shapes.dataset import HELD_OUT_SEED, multi_object_scene
from model_zoo_fixtures.testbed import models, oracle
from xai_insert import Explainer, Options, errors, insert, plan_insertion
from xai_insert.cli.explain import main as explain
from xai_insert.methods.named import seg_recipro_cam
from xai_insert.probe import classes
from xai_insert.probe.resizes import resize_of

K, SIDE = 5, 32


def image(batch=2, side=SIDE):
    return np.random.default_rng(0).standard_normal((batch, 3, side, side)).astype(np.float32)


def head(b, x, classes=K):
    return b.node("Conv", x, b.weight(classes, models.CHANNELS, 1, 1), b.weight(classes))


def enlarged(b, x, times=4.0, mode="linear"):
    scales = b.const(np.array([1, 1, times, times], np.float32))
    return b.node("Resize", x, "", scales, mode=mode, coordinate_transformation_mode="half_pixel")


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("times", [4, 2])
def test_the_model_lays_its_output_over_the_image(times, kind):
    """Corners on corners before the head: what is as large as the image says of each pixel what lies there."""
    b = models.Builder(size=(SIDE, SIDE))
    scales = b.const(np.array([1, 1, times, times], np.float32))
    x = b.node("Resize", coarse(b), "", scales, mode="linear", coordinate_transformation_mode="align_corners")
    scores = head(b, b.node("Relu", b.node("Conv", x, b.weight(models.CHANNELS, 6, 3, 3), pads=[1] * 4)))
    model = b.model(b.node("Softmax", scores, axis=1))
    found = insert(models.as_format(model, kind)).report.saliency_map["rectangle"]
    assert (found is None) is (times == 4)


def coarse(b):
    """A feature at stride 4."""
    return b.node("Relu", b.node("Conv", b.backbone(), b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2]))


def deeplab(b):
    scores = head(b, coarse(b))
    return scores, [enlarged(b, scores)]


def softmaxed(b):
    scores = head(b, coarse(b))
    return scores, [b.node("Softmax", enlarged(b, scores), axis=1)]


def softmax_then_resize(b):
    scores = head(b, coarse(b))
    return scores, [enlarged(b, b.node("Softmax", scores, axis=1))]


def argmax(b, keepdims=0, **last):
    scores = head(b, coarse(b))
    return scores, [b.node("ArgMax", enlarged(b, scores), axis=1, keepdims=keepdims)]


def argmax_of_few(b):
    scores = head(b, coarse(b), 2)
    return scores, [b.node("ArgMax", enlarged(b, scores), axis=1, keepdims=0)]


def argmax_as_float(b):
    scores, (labels,) = argmax(b)
    return scores, [b.node("Cast", labels, to=onnx.TensorProto.FLOAT)]


def argmax_enlarged(b):
    scores = head(b, coarse(b))
    labels = b.node("Cast", b.node("ArgMax", scores, axis=1, keepdims=1), to=onnx.TensorProto.FLOAT)
    return scores, [enlarged(b, labels, mode="nearest")]


def logits_and_labels(b):
    scores = head(b, coarse(b))
    whole = enlarged(b, scores)
    return scores, [b.node("ArgMax", whole, axis=1, keepdims=0), whole]


def channels_last(b):
    scores = head(b, coarse(b))
    return scores, [b.node("Softmax", b.node("Transpose", enlarged(b, scores), perm=[0, 2, 3, 1]), axis=-1)]


def last_channels(b):
    """A head as a product with channels last, as Keras and SegFormer's own code write it."""
    x = b.node("Transpose", coarse(b), perm=[0, 2, 3, 1])
    scores = b.node("Add", b.node("MatMul", x, b.weight(6, K)), b.weight(K))
    return scores, [b.node("Softmax", scores, axis=-1)]


def segformer(b):
    """Raw logits at stride 4."""
    scores = head(b, coarse(b))
    return scores, [scores]


def aspp(b, pool=None):
    """Coarse scores given as they are: each place is joined with the mean of the image, or with what `pool` makes."""
    x = b.node("Conv", coarse(b), b.weight(6, 6, 2, 2), strides=[2, 2])
    pooled = b.node("GlobalAveragePool", x) if pool is None else b.node(pool, x, kernel_shape=[2, 2], strides=[2, 2])
    side = SIDE // 8
    times = float(side) if pool is None else 2.0
    spread = enlarged(b, b.node("Relu", b.node("Conv", pooled, b.weight(6, 6, 1, 1))), times)
    joined = b.node("Concat", b.node("Conv", x, b.weight(6, 6, 1, 1)), spread, axis=1)
    scores = head(b, b.node("Relu", b.node("Conv", joined, b.weight(models.CHANNELS, 12, 1, 1))))
    return scores, [scores]


def unet(b):
    x = b.node("Relu", b.node("ConvTranspose", coarse(b), b.weight(6, 6, 2, 2), strides=[2, 2]))
    x = b.node("Relu", b.node("ConvTranspose", x, b.weight(6, 6, 2, 2), strides=[2, 2]))
    scores = head(b, x)
    return scores, [scores]


def lraspp(b):
    """Scores of two levels, added."""
    low = head(b, b.node("Conv", "image", b.weight(6, 3, 4, 4), strides=[4, 4]))
    high = enlarged(b, head(b, b.node("Conv", coarse(b), b.weight(6, 6, 2, 2), strides=[2, 2])), 2.0)
    scores = b.node("Add", high, low)
    return scores, [enlarged(b, scores)]


def sub_pixels(b):
    """Scores made of channels by reshapes, as an IR has a pixel shuffle."""
    shape = [b.const(np.array(sizes)) for sizes in ([0, K, 2, 2, SIDE // 4, SIDE // 4], [0, K, SIDE // 2, SIDE // 2])]
    x = b.node("Transpose", b.node("Reshape", head(b, coarse(b), 4 * K), shape[0]), perm=[0, 1, 4, 2, 5, 3])
    scores = b.node("Reshape", x, shape[1])
    return scores, [b.node("Softmax", scores, axis=1)]


def depth_to_space(b):
    """Scores at half the resolution, made of channels by the operator for it, and given as they are."""
    scores = b.node("DepthToSpace", head(b, coarse(b), 4 * K), blocksize=2, mode="CRD")
    return scores, [scores]


def rows_of_places(b):
    """As Keras has it: a softmax in each row of `[N, h * w, K]`."""
    scores = head(b, coarse(b))
    last = b.node("Transpose", enlarged(b, scores), perm=[0, 2, 3, 1])
    return scores, [b.node("Softmax", b.node("Reshape", last, b.const(np.array([-1, SIDE * SIDE, K]))), axis=-1)]


def columns_of_places(b):
    scores = head(b, coarse(b))
    columns = b.node("Reshape", enlarged(b, scores), b.const(np.array([0, K, -1])))
    return scores, [b.node("Softmax", b.node("Transpose", columns, perm=[0, 2, 1]), axis=-1)]


def rows_of_all_images(b):
    """A softmax of a matrix, as TensorFlow's first versions had it."""
    scores = head(b, coarse(b))
    last = b.node("Transpose", enlarged(b, scores), perm=[0, 2, 3, 1])
    shares = b.node("Softmax", b.node("Reshape", last, b.const(np.array([-1, K]))), axis=-1)
    return scores, [b.node("Reshape", shares, b.const(np.array([-1, SIDE * SIDE, K])))]


NETWORKS = {
    item.__name__: item
    for item in (
        deeplab, softmaxed, softmax_then_resize, argmax, argmax_of_few, argmax_as_float, argmax_enlarged,
        logits_and_labels, channels_last, last_channels, segformer, aspp, unet, lraspp, sub_pixels, depth_to_space,
        rows_of_places, columns_of_places, rows_of_all_images,
    )
}  # fmt: skip
LAST = {"last_channels"}


def build(name, **more):
    b = models.Builder(size=(SIDE, SIDE), **more)
    scores, outputs = NETWORKS[name](b)
    return b.model(*outputs), scores


def raw_scores(model, name, scores, images):
    """The scores by a run of the plain model that gives them too, `[B, K, h, w]`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if scores not in [item.name for item in copy.graph.output]:
        copy.graph.output.extend([onnx.helper.make_empty_tensor_value_info(scores)])
    found = oracle.run(copy, images)[scores]
    return found.transpose(0, 3, 1, 2) if name in LAST else found


def in_bytes(maps):
    low, high = (function(maps, axis=(2, 3), keepdims=True) for function in (np.min, np.max))
    return np.floor(255 * (maps - low) / np.maximum(high - low, 1e-12))


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_is_what_is_compared(name, batch, kind):
    model, scores = build(name, batch=batch)
    images = image(1 if batch == 1 else 3)
    wanted = raw_scores(model, name, scores, images)
    plain = models.as_format(model, kind)
    before = oracle.run(plain, images)
    for dtype in ("f32", "u8"):
        result = insert(plain, Options(output_dtype=dtype))
        assert (result.report.task, result.report.method) == ("semantic segmentation", "class-score-map")
        assert result.report.output_difference == 0
        after = oracle.run(result.model, images)
        maps = after.pop("saliency_map")
        for key, array in before.items():
            np.testing.assert_array_equal(after[key], array)
        if dtype == "f32":
            np.testing.assert_allclose(maps, wanted, rtol=1e-5, atol=1e-5)
        else:
            assert np.mean(np.abs(maps.astype(float) - in_bytes(wanted)) <= 1) >= 0.999


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_size_may_be_asked_for(kind):
    model, _ = build("deeplab")
    result = insert(models.as_format(model, kind), Options(saliency_size=(20, 10)))
    assert oracle.run(result.model, image())["saliency_map"].shape == (2, K, 20, 10)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_the_feature_vector_is_the_mean_of_what_the_head_reads(kind):
    model, _ = build("deeplab")
    result = insert(models.as_format(model, kind), Options(feature_vector=True))
    relu = next(node.output[0] for node in reversed(model.graph.node) if node.op_type == "Relu")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend([onnx.helper.make_empty_tensor_value_info(relu)])
    wanted = oracle.run(copy, image())[relu].mean(axis=(2, 3))
    np.testing.assert_allclose(oracle.run(result.model, image())["feature_vector"], wanted, atol=1e-5)


def two_outputs(classes=K):
    b = models.Builder(size=(SIDE, SIDE))
    x = coarse(b)
    main, aux = head(b, x), head(b, x, classes)
    return b.model(enlarged(b, main), enlarged(b, aux)), (main, aux)


def test_of_several_the_user_chooses():
    model, (_, aux) = two_outputs()
    with pytest.raises(errors.UnsupportedTaskError, match=r"semantic segmentation with .* --output chooses one"):
        insert(model)
    name = model.graph.output[1].name
    result = insert(model, Options(output=name))
    assert result.report.logits["name"] == aux
    assert result.report.logits["output"] == name


def of_width(classes, last=None):
    b = models.Builder(size=(SIDE, SIDE))
    x = enlarged(b, head(b, coarse(b), classes))
    return b.model(x if last is None else b.node(last, x))


@pytest.mark.parametrize(("classes", "last"), [(1, None), (1, "Sigmoid"), (2, None), (3, None), (3, "Sigmoid")])
def test_few_values_for_a_place_may_be_anything(classes, last):
    model = of_width(classes, last)
    with pytest.raises(errors.UnsupportedTaskError, match="every place of the image"):
        insert(model)
    assert insert(model, Options(method="class-score-map")).report.saliency_map["shape"][1] == classes


def test_a_mean_of_parts_is_no_sign_of_classes():
    """As necks of detectors have them; the mean of the whole image is."""
    b = models.Builder(size=(SIDE, SIDE))
    model = b.model(*aspp(b, "AveragePool")[1])
    with pytest.raises(errors.XaiInsertError, match="class-score-map"):
        insert(model)
    assert insert(model, Options(method="class-score-map")).report.saliency_map["shape"][1] == K


def test_what_it_is_not_for():
    with pytest.raises(errors.TargetNotFoundError, match="leave --method to the tool"):
        insert(models.classifier(models.CLOSED["mean"]), Options(method="class-score-map"))
    model, _ = build("deeplab")
    for options in (Options(top_k=2), Options(kernel="point"), Options(per_box=True), Options(target_layer="Conv_0")):
        with pytest.raises(errors.XaiInsertError):
            plan_insertion(model, options)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(
    "name", ["deeplab", "argmax", "channels_last", "softmaxed", "logits_and_labels", "rows_of_places"]
)
def test_overlays_are_of_the_classes_in_the_image(name, kind, tmp_path):
    model, _ = build(name, batch=1)
    file = tmp_path / ("model.onnx" if kind == "onnx" else "model.xml")
    inserted = insert(models.as_format(model, kind)).model
    onnx.save(inserted, file) if kind == "onnx" else ov.save_model(inserted, file, compress_to_fp16=False)
    picture = (image(1)[0].transpose(1, 2, 0) * 60 + 120).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "scene.png"), picture[..., ::-1])
    arguments = [file, tmp_path / "scene.png", "-o", tmp_path / "out", "--raw", "npy", "--classes", "all"]
    done = CliRunner().invoke(explain, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    (record,) = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    outputs = oracle.run(model, picture.transpose(2, 0, 1)[None].astype(np.float32))
    found = next(iter(outputs.values()))
    is_labels = name in ("argmax", "logits_and_labels")
    labels = found if is_labels else found.argmax(axis={"channels_last": 3, "rows_of_places": 2}.get(name, 1))
    shares = np.bincount(labels.reshape(-1), minlength=K) / labels.size
    for item in record["predictions"]:
        assert item["score"] == pytest.approx(shares[item["class_id"]], abs=0.005)  # a runtime may use half precision
    for item in record["maps"]:  # a small object is there as much as a large one
        assert item["strength"] == pytest.approx(min(100 * shares[item["class_id"]], 1), abs=0.1)
    done = CliRunner().invoke(explain, [*map(str, arguments[:-2])])
    assert done.exit_code == 0, done.output
    (record,) = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()[-1:]]
    assert [item["class_id"] for item in record["maps"]] == [n for n in np.argsort(-shares) if shares[n] >= 0.01]


@pytest.mark.parametrize(("count", "first"), [(K, "name0"), (K - 1, "background")])
def test_model_api_names_no_background(count, first, tmp_path):
    model, _ = build("deeplab", batch=1)
    model.metadata_props.add(key="model_info labels", value=" ".join(f"name{n}" for n in range(count)))
    onnx.save(model, tmp_path / "model.onnx")
    (found,) = Explainer(tmp_path / "model.onnx").explain([np.zeros((SIDE, SIDE, 3), np.uint8)])
    named = dict(enumerate(["background"] * (count < K) + [f"name{n}" for n in range(count)]))
    assert named[0] == first
    assert {item.class_id: item.label for item in found.predictions}.items() <= named.items()
    with pytest.raises(errors.XaiInsertError, match=f"{K - 1} labels, but {K} classes"):
        Explainer(tmp_path / "model.onnx", labels=["x"] * (K - 1)).explain([np.zeros((SIDE, SIDE, 3), np.uint8)])


def probabilities(b):
    return b.node("Softmax", enlarged(b, head(b, coarse(b), 3)), axis=1)


def cut(b, x, start, end):
    return b.node("Slice", x, *(b.const(np.array([number])) for number in (start, end, 1)))


def background_last(b):
    x = probabilities(b)
    return b.node("Concat", cut(b, x, 1, 3), cut(b, x, 0, 1), axis=1)


def stacked(b):
    """Two models in one axis of their own, `[B, 2, 3, h, w]`."""
    both = b.node("Reshape", enlarged(b, head(b, coarse(b), 6)), b.const(np.array([0, 2, 3, SIDE, SIDE])))
    return b.node("Softmax", both, axis=2)


AFTER_SOFTMAX = {
    "no background": lambda b: cut(b, probabilities(b), 1, 3),
    "another order": lambda b: b.node("Gather", probabilities(b), b.const(np.array([2, 0, 1])), axis=1),
    "background last": background_last,
    "mean of two": lambda b: b.node(
        "Mul", b.node("Add", probabilities(b), probabilities(b)), b.const(np.float32(0.5).reshape(1))
    ),
    "mean of a stack": lambda b: b.node("ReduceMean", stacked(b), axes=[1], keepdims=0),
    "product": lambda b: b.node("Mul", b.node("Sigmoid", enlarged(b, head(b, coarse(b), 1))), probabilities(b)),
}


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("how", AFTER_SOFTMAX)
def test_what_is_made_of_a_softmax_is_of_classes(how, kind):
    b = models.Builder(size=(SIDE, SIDE))
    model = b.model(AFTER_SOFTMAX[how](b))
    (wanted,) = oracle.run(model, image()).values()
    result = insert(models.as_format(model, kind), Options(output_dtype="f32"))
    assert (result.report.method, result.report.place) == ("class-score-map", "blocks")
    np.testing.assert_allclose(oracle.run(result.model, image())["saliency_map"], wanted, atol=1e-5)


NO_CLASSES = {
    "an expected colour": lambda b: b.node(
        "Mul", probabilities(b), b.const(np.linspace(0, 1, 3, dtype=np.float32).reshape(1, 3, 1, 1))
    ),
    "colours weighed": lambda b: b.node("Mul", probabilities(b), enlarged(b, head(b, coarse(b), 3))),
    "one of two": lambda b: cut(b, probabilities(b), 1, 2),
}


@pytest.mark.parametrize("how", NO_CLASSES)
def test_a_softmax_is_no_sign_of_classes_where_more_is_done(how):
    b = models.Builder(size=(SIDE, SIDE))
    with pytest.raises(errors.UnsupportedTaskError, match="every place of the image"):
        insert(b.model(NO_CLASSES[how](b)))


@pytest.mark.parametrize("method", ["class-score-map", "anomaly-map"])
def test_a_mask_beside_features_is_chosen_by_name(method):
    """As of U^2-Net and ISNet, which give masks of several levels and features."""
    b = models.Builder(size=(SIDE, SIDE))
    x = coarse(b)
    mask = b.node("Sigmoid", enlarged(b, head(b, x, 1)))
    model = b.model(mask, b.node("Sigmoid", enlarged(b, head(b, x, 1))), x)
    with pytest.raises(errors.TargetNotFoundError, match="--output NAME"):
        insert(model, Options(method=method))
    with pytest.raises(errors.UnsupportedTaskError, match="--method class-score-map says that it is a mask"):
        insert(b.model(mask))
    assert insert(model, Options(method=method, output=mask)).report.method == method


def test_classes_of_every_place_beside_classes_of_the_image_are_chosen_by_name():
    b = models.Builder(size=(SIDE, SIDE))
    x = coarse(b)
    pooled = b.node("Flatten", b.node("GlobalAveragePool", x))
    places, scene = enlarged(b, head(b, x, 5)), b.linear(pooled, models.CHANNELS)
    model = b.model(places, scene)
    tasks = {name: insert(model, Options(output=name)).report.task for name in (places, scene)}
    assert [*tasks.values()] == ["semantic segmentation", "classification"]


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("is_read", [True, False])
def test_masks_and_their_features_are_refused_without_runs(kind, is_read, monkeypatch):
    """Heads that feed no mask may be a detector's, undecoded, so these are looked at."""

    class Searched(Exception):  # noqa: N818 - a sign, no error
        pass

    def search(*_):
        raise Searched

    b = models.Builder(size=(SIDE, SIDE))
    x = coarse(b)
    y = x if is_read else b.node("Conv", x, b.weight(18, 6, 1, 1))
    model = models.as_format(b.model(b.node("Sigmoid", enlarged(b, head(b, x, 1))), y), kind)
    monkeypatch.setattr(classes, "_Search", search)
    with pytest.raises(errors.UnsupportedTaskError if is_read else Searched):
        insert(model)


def labelled(b, how):
    """Scores of three classes, and outputs made of the best of them."""
    scores = head(b, coarse(b), 3)
    x = enlarged(b, scores)
    if how == "masks":
        return scores, [b.node("Greater", b.node("Sigmoid", x), b.const(np.float32(0.5)))]
    best = b.node("ArgMax", x, axis=1, keepdims=0)
    if how == "looked up":
        return scores, [b.node("Gather", b.const(np.array([7, 8, 11])), best, axis=0)]
    if how == "from one":
        return scores, [b.node("Add", best, b.const(np.array(1)))]
    sure = b.node("ReduceMax", b.node("Softmax", x, axis=1), axes=[1], keepdims=0)
    if how == "with the greatest":
        return scores, [sure, best]
    is_unsure = b.node("Less", sure, b.const(np.float32(0.5)))
    return scores, [b.node("Where", is_unsure, b.const(np.array(255)), best)]


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("how", ["masks", "from one", "looked up", "with the greatest", "unsure places"])
def test_what_is_made_of_the_best_class(how, kind, tmp_path):
    b = models.Builder(size=(SIDE, SIDE), batch=1)
    scores, outputs = labelled(b, how)
    model = b.model(*outputs)
    file = tmp_path / ("model.onnx" if kind == "onnx" else "model.xml")
    inserted = insert(models.as_format(model, kind), Options(output_dtype="f32")).model
    wanted = raw_scores(model, "", scores, image(1))
    np.testing.assert_allclose(oracle.run(inserted, image(1))["saliency_map"], wanted, rtol=1e-5, atol=1e-5)
    onnx.save(inserted, file) if kind == "onnx" else ov.save_model(inserted, file, compress_to_fp16=False)
    picture = (image(1)[0].transpose(1, 2, 0) * 60 + 120).clip(0, 255).astype(np.uint8)
    (found,) = Explainer(file).explain([picture])
    given = oracle.run(model, picture.transpose(2, 0, 1)[None].astype(np.float32))[outputs[-1]][0]
    called = {"from one": (1, 2, 3), "looked up": (7, 8, 11)}.get(how, (0, 1, 2))
    shares = [np.mean(given[k] if how == "masks" else given == called[k]) for k in range(3)]
    for item in found.predictions:
        assert item.score == pytest.approx(shares[item.class_id], abs=0.005)


def compared(how):
    """Values of places that are compared with each other, or of which several classes are kept."""
    b = models.Builder(size=(SIDE, SIDE), batch=1)
    scores = head(b, coarse(b))
    if how == "softmax over rows":
        return b.model(b.node("Softmax", scores, axis=2))
    if how == "argmax over columns":
        return b.model(b.node("ArgMax", scores, axis=3, keepdims=0))
    if how == "several classes":
        return b.model(b.node("TopK", scores, b.const(np.array([2])), axis=1, outputs=2)[1])
    if how == "columns of a line":  # as readers of text give them
        scores = head(b, b.node("ReduceMean", coarse(b), axes=[2], keepdims=1))
    rows = b.node("Transpose", b.node("Reshape", scores, b.const(np.array([1, K, -1]))), perm=[0, 2, 1])
    return b.model(rows if how == "rows of places" else b.node("Softmax", rows, axis=-1 if "line" in how else 1))


@pytest.mark.parametrize(
    "how",
    [
        "softmax over rows",
        "argmax over columns",
        "several classes",
        "rows of places",
        "softmax of places",
        "columns of a line",
    ],
)
@pytest.mark.parametrize("kind", models.FORMATS)
def test_what_is_compared_otherwise_is_no_segmenter(how, kind):
    with pytest.raises(errors.XaiInsertError):
        insert(models.as_format(compared(how), kind), Options(method="class-score-map"))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_an_image_of_any_size(kind):
    b = models.Builder(size=("H", "W"))
    scores, outputs = deeplab(b)
    model = b.model(*outputs)
    result = insert(models.as_format(model, kind), Options(output_dtype="f32"))
    images = np.random.default_rng(1).standard_normal((2, 3, 48, 32)).astype(np.float32)
    maps = oracle.run(result.model, images)["saliency_map"]
    assert maps.shape == (2, K, 12, 8)
    np.testing.assert_allclose(maps, raw_scores(model, "deeplab", scores, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["class-score-map", "seg-recipro-cam"])
def test_half_precision(method):
    b = models.Builder(size=(SIDE, SIDE), dtype=np.float16)
    scores = head(b, coarse(b))
    scales = b.const(np.array([1, 1, 4, 4]))
    b.weights[-1].CopyFrom(onnx.numpy_helper.from_array(np.array([1, 1, 4, 4], np.float32), scales))
    whole = b.node("Resize", scores, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    result = insert(b.model(whole), Options(method=method, output_dtype="f32"))
    outputs = oracle.run(result.model, image().astype(np.float16))
    assert outputs["saliency_map"].dtype == np.float32
    assert np.isfinite(outputs["saliency_map"]).all()
    assert outputs[whole].dtype == np.float16


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


@pytest.mark.parametrize("method", ["class-score-map", "seg-recipro-cam"])
def test_the_peak_lies_on_a_shape_of_the_class(method):
    """Of a segmenter whose head was fitted to shape scenes, on scenes that it has not seen."""
    scenes = [multi_object_scene(HELD_OUT_SEED + index) for index in range(60)]
    result = insert(semantic.shape_segmenter(), Options(method=method))
    outputs = oracle.run(result.model, semantic.pixels(scenes))
    hits = []
    for scene, maps, scores in zip(scenes, outputs["saliency_map"], outputs["classes"], strict=True):
        truth, said = semantic.labels(scene), scores.argmax(axis=0)
        for number in {item.class_id for item in scene.objects} & set(said.flat):
            row, column = np.unravel_index(int(maps[number].argmax()), maps[number].shape)
            hits.append(truth[4 * row + 2, 4 * column + 2] == number)
    assert len(hits) > 100
    assert np.mean(hits) >= 0.95
