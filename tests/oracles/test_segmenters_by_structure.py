"""What is a semantic segmenter, told by structure: which values of every place are scores of classes, and which not."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.segmenter_models import SIDE, K, aspp, build, coarse, enlarged, head, image
from xai_insert import Options, errors, insert, plan_insertion
from xai_insert.probe import classes


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


def probabilities(b):
    return b.node("Softmax", enlarged(b, head(b, coarse(b), 3)), axis=1)


def written(b):
    """The same in several operators."""
    powers = b.node("Exp", enlarged(b, head(b, coarse(b), 3)))
    return b.node("Div", powers, b.node("ReduceSum", powers, b.const(np.array([1]))))


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
    "sum of two written out": lambda b: b.node("Add", written(b), written(b)),
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
def test_the_least_of_distances_is_no_class_score(kind):
    """Prototypes whose nearest counts: the map is dark where a class is seen, unless it is asked for by name."""
    b = models.Builder(size=(SIDE, SIDE))
    distances = head(b, coarse(b))
    least = b.node("TopK", distances, b.const(np.array([1])), axis=1, largest=0, outputs=2)[1]
    model = models.as_format(b.model(b.node("Squeeze", least, b.const(np.array([1])))), kind)
    with pytest.raises(errors.UnsupportedTaskError, match=r"takes the least .* --method class-score-map writes it"):
        plan_insertion(model)
    assert plan_insertion(model, Options(method="class-score-map")).method == "class-score-map"
