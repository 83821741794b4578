"""Models without a map: the message names the true cause, and what to do."""

import re

import numpy as np
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.models import CHANNELS, CLASSES, Builder
from model_zoo_fixtures.testbed.transformer_models import WIDTH, block, heads_of, linear
from xai_insert import Options, errors, insert, plan_insertion

SIDE, FRAMES = 16, 9
GRID = SIDE // 2


def ints(b, *values):
    return b.const(np.array(values, np.int64))


def floats(*shape, name="image"):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])


def cut(b, x, axis, start, end, step=1):
    return b.node("Slice", x, *(ints(b, value) for value in (start, end, axis, step)))


def scores(b, x, axes=(2, 3), width=CHANNELS):
    return b.linear(b.node("ReduceMean", x, axes=list(axes), keepdims=0), width)


def of_frames(b, clip):
    return b.node("Relu", b.node("Conv", clip, b.weight(CHANNELS, 3, 2, 4, 4), strides=[2, 4, 4]))


def differences(b):
    frames = [cut(b, "image", 2, start, start + FRAMES - 1) for start in (1, 0)]
    return [scores(b, of_frames(b, b.node("Sub", *frames)), (2, 3, 4))], [floats(3, FRAMES, SIDE, SIDE)]


def reversed_in_time(b):
    clip = cut(b, "image", 2, -1, -FRAMES - 1, -1)
    return [scores(b, of_frames(b, clip), (2, 3, 4))], [floats(3, FRAMES, SIDE, SIDE)]


def three_frames(b):
    return [scores(b, of_frames(b, "image"), (2, 3, 4))], [floats(3, 3, SIDE, SIDE)]


def bands(b):
    x = b.node("Unsqueeze", "image", ints(b, 1))
    x = b.node("Relu", b.node("Conv", x, b.weight(CHANNELS, 1, 3, 4, 4), strides=[1, 4, 4]))
    return [scores(b, x, (2, 3, 4))], [floats(12, SIDE, SIDE)]


def quarters_exchanged(b):
    """A quarter's place stands for another's, in another order than the image's."""
    x = b.node("Reshape", "image", ints(b, -1, 3, 2, GRID, 2, GRID))
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 4, 1, 3, 5]), ints(b, -1, 3, GRID, GRID))
    x = b.node("Relu", b.node("Conv", x, b.weight(CHANNELS, 3, 2, 2), strides=[2, 2]))
    x = b.node("Transpose", b.node("Reshape", x, ints(b, -1, 2, 2, CHANNELS, 4, 4)), perm=[0, 3, 2, 4, 1, 5])
    return [scores(b, b.node("Reshape", x, ints(b, -1, CHANNELS, 8, 8)))], [floats(3, SIDE, SIDE)]


def two_images_in_a_batch(b):
    x = b.backbone(b.node("Concat", "image", "other", axis=0))
    one, other = b.node("Split", b.node("ReduceMean", x, axes=[2, 3], keepdims=0), outputs=2, axis=0)
    apart = b.node("Abs", b.node("Sub", one, other))
    return [b.linear(apart, CHANNELS)], [floats(3, SIDE, SIDE), floats(3, SIDE, SIDE, name="other")]


def last_frame(b):
    x = b.backbone(b.node("Reshape", "image", ints(b, -1, 3, SIDE, SIDE)))
    each = b.node("Reshape", scores(b, x), ints(b, -1, FRAMES - 1, CLASSES))
    last = cut(b, each, 1, FRAMES - 2, FRAMES - 1)
    return [b.node("Squeeze", last, ints(b, 1))], [floats(FRAMES - 1, 3, SIDE, SIDE)]


def compared(b, x):
    return b.node("Cast", b.node("Greater", x, b.const(np.float32(0.5))), to=TensorProto.FLOAT)


def thresholded(b):
    return [compared(b, scores(b, b.backbone()))], [floats(3, SIDE, SIDE)]


def maps_of(b, width):
    return b.node("Conv", b.backbone(), b.weight(width, CHANNELS, 1, 1))


def mask(b):
    return [compared(b, b.node("Sigmoid", maps_of(b, 1)))], [floats(3, SIDE, SIDE)]


def columns_by_a_matrix(b):
    coarse = b.node("MaxPool", b.backbone(), kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("MatMul", coarse, b.const(np.eye(GRID // 2, dtype=np.float32)[::-1] + np.float32(0.01)))
    return [b.node("Softmax", b.node("Conv", x, b.weight(5, CHANNELS, 1, 1)), axis=1)], [floats(3, SIDE, SIDE)]


def pairs_of_shares(b):
    pairs = b.node("Reshape", b.linear(b.node("ReduceMean", b.backbone(), axes=[2, 3], keepdims=0), CHANNELS, 10),
                   ints(b, -1, 5, 2))  # fmt: skip
    return [b.node("Softmax", pairs, axis=2)], [floats(3, SIDE, SIDE)]


def digits(b):
    """Softmaxes of ten digits at each of four positions, which one layer gives."""
    every = b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), CHANNELS, 40)
    return [b.node("Softmax", b.node("Reshape", every, ints(b, -1, 4, 10)), axis=2)], [floats(3, SIDE, SIDE)]


def groups(b):
    """GroupViT: tokens of groups stand behind the patches; alone they are read, and attend to the patches once more."""
    x = b.node("Conv", "image", b.weight(WIDTH, 3, 4, 4), strides=[4, 4])
    x = b.node("Transpose", b.node("Reshape", x, ints(b, 1, WIDTH, 16)), perm=[0, 2, 1])
    x = block(b, b.node("Concat", x, b.weight(1, 3, WIDTH), axis=1), 19)
    patches, asking = cut(b, x, 1, 0, 16), cut(b, x, 1, 16, 19)
    q, k, v = (heads_of(b, linear(b, y, WIDTH, WIDTH)) for y in (asking, patches, patches))
    shares = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    z = b.node("Transpose", b.node("MatMul", shares, v), perm=[0, 2, 1, 3])
    read = b.node("Add", asking, b.node("Reshape", z, ints(b, 0, 0, WIDTH)))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    return [scores(b, read, (1,), WIDTH)], [image]


CAUSES = {
    differences: r"axes of 6 and 4, .*frames that were subtracted.*--method input-x-gradient",
    reversed_in_time: "it is not known where (Slice|StridedSlice) .* puts it",
    three_frames: "which axis holds channels and which frames cannot be told",
    bands: r"axes of 6 and 10, of which one may hold bands.*--method input-x-gradient",
    quarters_exchanged: "Reshape .* cut it into parts .* in another order.*--method input-x-gradient",
    two_images_in_a_batch: "several inputs stand side by side in one batch, joined by Concat",
    last_frame: "of one frame, row or column of the image alone",
    thresholded: "pass a threshold, not by how much",
    mask: "a mask that says where scores pass a threshold",
    columns_by_a_matrix: "either its rows or its columns cannot be followed",
    pairs_of_shares: r"2 shares of one for each of 5 questions.*\[N, 5\*2\]",
    digits: r"10 shares of one for each of 4 questions.*\[N, 4\*10\]",
}


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("build", CAUSES, ids=lambda build: build.__name__)
def test_the_true_cause_is_named(build, kind):
    b = Builder(size=(SIDE, SIDE))
    outputs, inputs = build(b)
    with pytest.raises(errors.XaiInsertError, match=CAUSES[build]):
        plan_insertion(models.as_format(b.model(*outputs, inputs=inputs), kind))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_tokens_of_groups_are_no_patches(kind):
    b = Builder(size=(SIDE, SIDE))
    outputs, inputs = groups(b)
    cause = r"tokens beside the patches of .* \[1, 19, 8\] are read, and the last attention has none"
    model = models.as_format(b.model(*outputs, inputs=inputs), kind)
    with pytest.raises(errors.TargetNotFoundError, match=f"{cause}; .* --target-layer, of which LAST is"):
        plan_insertion(model, Options(method="vit-recipro-cam"))
    assert plan_insertion(model, Options(target_layer="LAST")).form == "masked runs"


@pytest.mark.parametrize("kind", models.FORMATS)
def test_of_several_maps_the_output_is_named(kind):
    """A depth beside classes: the option that the message names decides."""
    b = Builder(size=(SIDE, SIDE))
    classes = b.node("ArgMax", maps_of(b, 5), axis=1, keepdims=0)
    model = models.as_format(b.model(classes, b.node("Relu", maps_of(b, 1))), kind)
    with pytest.raises(errors.UnsupportedTaskError, match=f"--output {classes} chooses it"):
        plan_insertion(model)
    assert plan_insertion(model, Options(output=classes)).task == "semantic segmentation"


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("chosen", [None, "logits"])
def test_outputs_that_nothing_is_said_of_are_named(chosen, kind):
    """Those of another task, as masks beside the class of an image; none that are computed from the scores."""
    b = Builder()
    feature = b.backbone()
    logits = b.node("Identity", scores(b, feature))
    masks = b.node("Sigmoid", b.node("Conv", feature, b.weight(2, CHANNELS, 1, 1)))
    model = b.model(b.node("Softmax", logits), masks, feature)
    options = Options() if chosen is None else Options(output=model.graph.output[0].name)
    note = plan_insertion(models.as_format(model, kind), options).logits["note"]
    if chosen is None:
        assert f"not {masks!r} [?, 2, 6, 6]; --output or --method chooses another" in note
    else:
        assert not note


@pytest.mark.parametrize("kind", models.FORMATS)
def test_class_scores_beside_a_boundary_name_their_output(kind):
    """As segmenters are exported with all that they were trained for: one map of classes, one of edges."""
    b = Builder(size=(SIDE, SIDE))
    feature, sizes = b.backbone(), b.const(np.array([1, 1, 2, 2], np.float32))
    heads = [b.node("Conv", feature, b.weight(width, CHANNELS, 1, 1)) for width in (CLASSES, 1)]
    model = b.model(*(b.node("Resize", head, "", sizes, mode="linear") for head in heads))
    name = model.graph.output[0].name
    with pytest.raises(errors.UnsupportedTaskError, match=f"--output {name} chooses it"):
        plan_insertion(models.as_format(model, kind))
    assert plan_insertion(models.as_format(model, kind), Options(output=name)).task == "semantic segmentation"


def test_operators_that_onnx_does_not_have_are_said():
    """As of TensorFlow, where its converter warns and goes on: no runtime loads the file."""
    b = Builder()
    x = b.node("Relu", b.node("Conv", b.node("Erf", "image"), b.weight(CHANNELS, 3, 3, 3)))
    model = b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), CHANNELS))
    next(node for node in model.graph.node if node.op_type == "Erf").op_type = "Erfc"
    with pytest.raises(
        errors.TargetNotFoundError, match="; Erfc 'Erf_0' is no operator of ONNX, the exporter has left"
    ):
        plan_insertion(model)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_random_numbers_are_said(kind):
    """Noise behind the map, as of dropout that was exported in training mode: no two runs are alike."""
    b = Builder(size=(SIDE, SIDE))
    pooled = b.node("ReduceMean", b.backbone(), axes=[2, 3], keepdims=0)
    noisy = b.node("Mul", pooled, b.node("RandomUniformLike", pooled, low=0.5, high=1.5))
    model = models.as_format(b.model(b.linear(noisy, CHANNELS)), kind)
    said = r"RandomUniform.* draws random numbers, .* \(exported in training mode\?\)"
    assert re.search(said, plan_insertion(model).reason)
    with pytest.raises(errors.CheckFailedError, match=said):
        insert(model)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(("widths", "is_said"), [((4, 3), True), ((4, 4), False), ((5, 3), False)])
def test_a_vector_joined_of_four_numbers_and_others_may_hold_a_box(widths, is_said, kind):
    b = Builder()
    pooled = b.node("Flatten", b.node("GlobalAveragePool", b.backbone()))
    parts = [b.linear(pooled, CHANNELS, width) for width in widths]
    model = b.model(b.node("Concat", b.node("Sigmoid", parts[0]), b.node("Softmax", parts[1]), axis=1))
    note = plan_insertion(models.as_format(model, kind)).logits["note"]
    assert note.startswith("joined of 4 and 3 numbers: if four are a box") is is_said
