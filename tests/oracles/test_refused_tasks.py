"""Models of tasks that have no map: refused in words that name the task, and told what decides otherwise."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.models import CHANNELS, Builder
from model_zoo_fixtures.testbed.vector_models import run
from xai_insert import Options, errors, insert, plan_insertion

SIDE, WORDS, LENGTH = 16, 11, 4
GRID = SIDE // 2
PLACES = GRID * GRID


def image(name="image", channels=3, batch=1):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels, SIDE, SIDE])


def ids(length=LENGTH):
    return helper.make_tensor_value_info("ids", TensorProto.INT64, [1, length])


def tokens(b, x, width=CHANNELS):
    return b.node("Transpose", b.node("Reshape", x, b.const(np.array([1, width, PLACES]))), perm=[0, 2, 1])


def words(b, width=CHANNELS):
    return b.node("Gather", b.weight(WORDS, width, scale=1), "ids", axis=0)


def attended(b, query, context, width=CHANNELS):
    """Attention of one head, with its residual."""
    scores = b.node("MatMul", query, b.node("Transpose", context, perm=[0, 2, 1]))
    return b.node(
        "Add",
        query,
        b.node("MatMul", b.node("Softmax", scores, axis=-1), b.node("MatMul", context, b.weight(width, width))),
    )


def mean_of(b, x, axes=(1,)):
    return b.node("ReduceMean", x, axes=list(axes), keepdims=0)


def document(b):
    """Words and patches in one sequence, read off the first word, as LayoutLMv3 does."""
    joined = b.node("Concat", words(b), tokens(b, b.backbone()), axis=1)
    first = b.node("Gather", attended(b, joined, joined), b.const(np.array(0)), axis=1)
    return [b.linear(first, CHANNELS)], [image(), ids()]


def question(b):
    """A product of what is seen and what is asked."""
    asked = b.node("MatMul", mean_of(b, words(b)), b.weight(CHANNELS, CHANNELS))
    seen = b.node("Flatten", b.node("GlobalAveragePool", b.backbone()))
    return [b.linear(b.node("Mul", seen, asked), CHANNELS)], [image(), ids()]


def caption(b):
    """A score of each word behind each word so far."""
    told = attended(b, words(b), tokens(b, b.backbone()))
    return [b.node("MatMul", told, b.weight(CHANNELS, WORDS))], [image(), ids()]


def reader(b):
    """Scores of the characters of each column, with the blank of CTC."""
    columns = b.node("Transpose", mean_of(b, b.backbone(), (2,)), perm=[0, 2, 1])
    return [b.node("LogSoftmax", b.node("MatMul", columns, b.weight(CHANNELS, 37)), axis=2)], [image()]


def enlarged(b):
    x = b.node("Conv", b.backbone(), b.weight(48, CHANNELS, 1, 1))
    return [b.node("DepthToSpace", x, blocksize=4)], [image()]


def depth(b):
    x = b.node("Relu", b.node("Conv", b.backbone(), b.weight(1, CHANNELS, 1, 1)))
    return [b.node("Squeeze", x, b.const(np.array([1])))], [image()]


def flow(b):
    """Two frames, and how far each place moves between them."""
    x = b.node("Concat", b.backbone("image"), b.backbone("next"), axis=1)
    return [b.node("Conv", x, b.weight(2, 2 * CHANNELS, 1, 1))], [image(), image("next")]


def tracker(b):
    """A response for each place of the search image: the template slid over it."""
    kernel = b.node("MaxPool", b.backbone("template"), kernel_shape=[4, 4], strides=[4, 4])
    return [b.node("Conv", b.backbone(), kernel, pads=[0, 0, 1, 1])], [image(), image("template")]


def features(b):
    """The neck of a promptable segmenter: features for another model."""
    return [b.node("Conv", b.backbone(), b.weight(32, CHANNELS, 4, 4), strides=[4, 4])], [image()]


def body(b):
    """Places of key points, in three coordinates."""
    x = b.linear(b.node("Flatten", b.backbone()), CHANNELS * PLACES, 51)
    return [b.node("Reshape", x, b.const(np.array([1, 17, 3])))], [image()]


def codes(b):
    """Bits by which images are found again."""
    return [b.node("Sign", b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), CHANNELS))], [image()]


def bits(b):
    """The same from a comparison, as -1 and 1."""
    told = b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), CHANNELS)
    ends = [b.const(np.array(value, np.float32)) for value in (0, 1, -1)]
    return [b.node("Where", b.node("Greater", told, ends[0]), *ends[1:])], [image()]


def in_cells(b):
    """A score for each of the four pixels of a cell, and for none, as SuperPoint gives it."""
    return b.node("Conv", b.backbone(), b.weight(5, CHANNELS, 1, 1))


def described(b):
    """Vectors of length one, for each place."""
    return b.node("LpNormalization", b.node("Conv", b.backbone(), b.weight(32, CHANNELS, 1, 1)), axis=1, p=2)


def cells(b):
    return [in_cells(b), described(b)], [image()]


def points(b):
    """The same laid out."""
    shares = b.node("Softmax", in_cells(b), axis=1)
    shares = b.node("Slice", shares, *(b.const(np.array([value])) for value in (0, 4, 1)))
    laid = b.node("DepthToSpace", shares, blocksize=2, mode="CRD")
    return [b.node("Squeeze", laid, b.const(np.array([1]))), described(b)], [image()]


TASKS = {
    document: "image and the text 'ids'",
    question: "image and the text 'ids'",
    caption: "caption",
    reader: "text",
    enlarged: "super-resolution",
    depth: "depth",
    flow: "optical flow",
    tracker: "heat map",
    features: "features",
    body: "key points",
    codes: "codes for retrieval",
    bits: "pass a threshold",
    cells: "score of interest points for each of the 2x2 pixels",
    points: "most likely scores interest points",
}


def model_of(task):
    b = Builder(batch=1, size=(SIDE, SIDE))
    outputs, inputs = task(b)
    return b.model(*outputs, inputs=inputs)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_task_without_a_map_is_named(task, kind):
    with pytest.raises(errors.XaiInsertError, match=TASKS[task]) as caught:
        plan_insertion(models.as_format(model_of(task), kind))
    assert "--input NAME" not in str(caught.value), "there is no map of one input either"


@pytest.mark.parametrize("kind", models.FORMATS)
def test_answers_to_a_question_are_explained_on_request(kind):
    """The refusal names the option; the map is that of masked features with the question as it is fed, in NumPy."""
    plain = model_of(question)
    result = insert(models.as_format(plain, kind), Options(method="recipro-cam", output_dtype="f32"))
    rng = np.random.default_rng(5)
    x, asked = rng.standard_normal((1, 3, SIDE, SIDE)).astype(np.float32), rng.integers(0, WORDS, (1, LENGTH))
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in plain.graph.initializer}
    pool = next(node for node in plain.graph.node if node.op_type == "GlobalAveragePool")
    table, into, *_ = (
        weights[node.input[index]]
        for kind, index in (("Gather", 0), ("MatMul", 1))
        for node in plain.graph.node
        if node.op_type == kind
    )
    last = next(node for node in plain.graph.node if node.op_type == "Gemm")
    tapped = onnx.ModelProto()
    tapped.CopyFrom(plain)
    tapped.graph.output.add(name=pool.input[0]).type.tensor_type.elem_type = TensorProto.FLOAT
    feature = run(tapped, x, ids=asked)[pool.input[0]]
    told = table[asked].mean(1) @ into
    cells = np.moveaxis(feature, 1, -1) / PLACES * told[:, None, None]
    wanted = np.moveaxis(cells @ weights[last.input[1]].T + weights[last.input[2]], -1, 1)
    found = run(result.model, x, ids=asked)["saliency_map"]
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_mask_without_an_axis_of_classes_is_one_on_request(kind):
    """As CLIPSeg gives that of a prompt; the refusal names the option, and the map is what the last layer gives."""
    b = Builder(batch="N", size=(SIDE, SIDE))
    scores = b.node("ConvTranspose", b.backbone(), b.weight(CHANNELS, 1, 2, 2), strides=[2, 2])
    plain = b.model(b.node("Squeeze", scores, b.const(np.array([1]))))
    with pytest.raises(errors.UnsupportedTaskError, match="--method class-score-map says that it is a mask"):
        plan_insertion(models.as_format(plain, kind))
    result = insert(models.as_format(plain, kind), Options(method="class-score-map", output_dtype="f32"))
    x = np.random.default_rng(5).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    (mask,) = run(plain, x).values()
    np.testing.assert_allclose(run(result.model, x)["saliency_map"][:, 0], mask, atol=1e-5)


def pathways(b):
    """Two rates of frames, as SlowFast has them, without a bias: doubled pixels double every score."""
    slow = b.node("Slice", "image", *(b.const(np.array([value])) for value in (0, 8, 2, 4)))
    parts = []
    for frames, width in ((slow, 5), ("image", 3)):
        x = b.node("Relu", b.node("Conv", frames, b.weight(width, 3, 1, 3, 3), pads=[0, 1, 1] * 2, strides=[1, 2, 2]))
        parts.append(b.node("ReduceMean", x, axes=[2, 3, 4], keepdims=0))
    return b.node("MatMul", b.node("Concat", *parts, axis=1), b.weight(8, 4))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_pathways_of_different_rates_are_explained_by_the_clip(kind):
    """The refusal names the option; the map of a score that is homogeneous in the pixels adds up to it (Euler)."""
    b = Builder(batch=1)
    clip = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, SIDE, SIDE])
    model = models.as_format(b.model(pathways(b), inputs=[clip]), kind)
    with pytest.raises(errors.TargetNotFoundError, match="--method input-x-gradient"):
        plan_insertion(model)
    result = insert(model, Options(method="input-x-gradient", classes=(0, 1, 2, 3), output_dtype="f32"))
    x = np.random.default_rng(5).standard_normal((1, 3, 8, SIDE, SIDE)).astype(np.float32)
    outputs = oracle.run(result.model, x)
    scores = next(value for value in outputs.values() if value.ndim == 2 and value.dtype == np.float32)
    assert outputs["saliency_map"].shape == (1, 4, 8, SIDE, SIDE)
    np.testing.assert_allclose(outputs["saliency_map"].sum((2, 3, 4)), scores, atol=1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_segmenter_of_tokens_asks_for_its_open_sides(kind):
    """As SegFormer is exported with free height and width, where it has positions for one size."""
    b, scores = segmenter_of_tokens(positions=8 * 12)
    plain = b.model(scores)
    with pytest.raises(
        errors.UnsupportedTaskError, match=r"while height and width are open: fix them, --input-shape im"
    ):
        plan_insertion(models.as_format(plain, kind))
    done = plan_insertion(models.as_format(plain, kind), Options(input_shapes={"image": (1, 3, 32, 48)}))
    assert (done.task, done.saliency_map["shape"]) == ("semantic segmentation", (1, 5, 8, 12))


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("size", [(32, 48), (64, 32)])
@pytest.mark.parametrize("batch", [1, "N"])
def test_a_segmenter_of_tokens_follows_its_open_sides(batch, size, kind):
    b, scores = segmenter_of_tokens(batch=batch)
    plain = b.model(scores)
    result = insert(models.as_format(plain, kind), Options(output_dtype="f32"))
    x = np.random.default_rng(4).standard_normal((1 if batch == 1 else 2, 3, *size)).astype(np.float32)
    np.testing.assert_allclose(oracle.run(result.model, x)["saliency_map"], oracle.run(plain, x)[scores], 1e-4, 1e-4)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("judged", [False, True])
def test_a_segmenter_of_squares_follows_its_open_sides(judged, kind):
    """As DPT, which counts the rows of its tokens by a root and enlarges corners on corners."""
    b = Builder(batch="N", size=("H", "W"))
    x = b.node("Conv", "image", b.weight(CHANNELS, 3, 8, 8), strides=[8, 8])
    rows = b.node("Transpose", b.node("Reshape", x, b.const(np.array([0, CHANNELS, -1]))), perm=[0, 2, 1])
    prefixed = b.node("Concat", b.node("ReduceMean", rows, axes=[1], keepdims=1), rows, axis=1)
    rows = b.node("Slice", prefixed, *(b.const(np.array([number])) for number in (1, 2**31, 1)))
    count = b.node("Cast", b.node("Gather", b.node("Shape", rows), b.const(np.array([1]))), to=TensorProto.FLOAT)
    side = b.node("Cast", b.node("Sqrt", count), to=TensorProto.INT64)
    sizes = b.node("Concat", b.const(np.array([0])), side, side, b.const(np.array([CHANNELS])), axis=0)
    x = b.node("Transpose", b.node("Reshape", rows, sizes), perm=[0, 3, 1, 2])
    twice = b.const(np.array([1, 1, 2, 2], np.float32))
    for _ in range(2):
        x = b.node("Resize", x, "", twice, mode="linear", coordinate_transformation_mode="align_corners")
        x = b.node("Conv", x, b.weight(CHANNELS, CHANNELS, 1, 1))
    scores = b.node("Conv", x, b.weight(5, CHANNELS, 1, 1))
    plain = b.model(b.node("ArgMax", scores, axis=1) if judged else scores, *([scores] if judged else []))
    result = insert(models.as_format(plain, kind), Options(output_dtype="f32"))
    x = np.random.default_rng(4).standard_normal((2, 3, 96, 96)).astype(np.float32)
    np.testing.assert_allclose(oracle.run(result.model, x)["saliency_map"], oracle.run(plain, x)[scores], 1e-4, 1e-4)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_classifier_of_tokens_follows_its_open_sides(kind):
    """As SegFormer's and PVT v2's, whose inference with open sides does not know the number of channels."""
    b, maps = segmenter_of_tokens(batch="N")
    pooled = b.node("Relu", b.node("ReduceMean", maps, axes=[2, 3], keepdims=0))
    scores = b.node("MatMul", pooled, b.weight(5, 4))
    plain = b.model(scores, maps)
    result = insert(models.as_format(plain, kind), Options(output=scores, output_dtype="f32"))
    x = np.random.default_rng(4).standard_normal((2, 3, 32, 48)).astype(np.float32)
    features = oracle.run(plain, x)[maps]
    weight = next(onnx.numpy_helper.to_array(item) for item in plain.graph.initializer if item.dims == [5, 4])
    wanted = np.einsum("nchw,ck->nkhw", np.maximum(features / 96, 0), weight)
    np.testing.assert_allclose(oracle.run(result.model, x)["saliency_map"], wanted, 1e-4, 1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_tokens_laid_out_by_the_other_side_are_torn(kind):
    b, scores = segmenter_of_tokens(order=(3, 2))
    with pytest.raises(errors.UnsupportedTaskError, match="fix them"):
        insert(models.as_format(b.model(scores), kind))


def segmenter_of_tokens(batch=1, positions=0, order=(2, 3)):
    """Tokens of an image of any size, attended, and laid out again by its sizes, as SegFormer has them."""
    b = Builder(batch=batch, size=("H", "W"))
    x = b.node("Conv", "image", b.weight(CHANNELS, 3, 4, 4), strides=[4, 4])
    rows = b.node("Transpose", b.node("Reshape", x, b.const(np.array([0, CHANNELS, -1]))), perm=[0, 2, 1])
    if positions:
        rows = b.node("Add", rows, b.weight(1, positions, CHANNELS))
    rows = b.node("MatMul", attended(b, rows, rows), b.weight(CHANNELS, CHANNELS))
    shape = b.node("Shape", x)
    first = b.node("Slice", shape, b.const(np.array([0])), b.const(np.array([2])))
    sizes = b.node("Concat", first, b.node("Gather", shape, b.const(np.array(order)), axis=0), axis=0)
    maps = b.node("Reshape", b.node("Transpose", rows, perm=[0, 2, 1]), sizes)
    return b, b.node("Conv", maps, b.weight(5, CHANNELS, 1, 1))
