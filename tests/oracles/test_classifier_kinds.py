"""Kinds of classifiers whose numbers coincide: the grid is that of the image, and the map is the definition's."""

import numpy as np
import onnx
import pytest

from model_zoo_fixtures.testbed import models, oracle
from xai_insert import Options, errors, insert
from xai_insert.graph.shape import holds_pixels

SIDE = 64
SCORES = 5


class Net:
    """A network on one image, of which the last feature map is remembered."""

    def __init__(self, *size):
        self.b = models.Builder(batch=1, size=size or (SIDE, SIDE))
        self.features = []

    def patches(self, width, side=8):
        """A convolution to cells of 8 pixels: `[1, width, h, w]`."""
        b = self.b
        x = b.node("Conv", "image", b.weight(width, 3, side, side, scale=0.1), strides=[side, side])
        self.features.append(b.node("Relu", x))
        return self.features[-1]

    def pooled(self, width):
        return self.b.node("Flatten", self.b.node("GlobalAveragePool", self.patches(width)))

    def ints(self, *values):
        return self.b.const(np.array(values, np.int64))

    def product(self, x, width, classes):
        return self.b.node("MatMul", x, self.b.weight(width, classes))


def as_many_tokens_as_channels():
    """64 tokens of 64 channels in 4 heads of 16."""
    net = Net()
    b = net.b
    tokens = b.node("Transpose", b.node("Reshape", net.patches(64), net.ints(1, 64, 64)), perm=[0, 2, 1])
    heads = b.node("Relu", b.node("Reshape", tokens, net.ints(1, 64, 4, 16)))
    joined = net.product(b.node("Reshape", heads, net.ints(1, 64, 64)), 64, 64)
    return net, b.model(net.product(b.node("ReduceMean", joined, axes=[1], keepdims=0), 64, SCORES)), (8, 8)


def averaged_heads():
    net = Net()
    each = net.b.node("Reshape", net.product(net.pooled(16), 16, 4 * SCORES), net.ints(1, 4, SCORES))
    return net, net.b.model(net.b.node("ReduceMean", each, axes=[1], keepdims=0)), (8, 8)


def rows_then_columns():
    net = Net(SIDE, 96)
    rows = net.b.node("ReduceMean", net.patches(16), axes=[2], keepdims=0)
    both = net.b.node("ReduceMean", rows, axes=[2], keepdims=0)
    return net, net.b.model(net.product(both, 16, SCORES)), (8, 12)


def capsules():
    """The length of 16 numbers is the score of a class."""
    net = Net()
    each = net.b.node("Reshape", net.product(net.pooled(16), 16, 16 * SCORES), net.ints(1, SCORES, 16))
    squares = net.b.node("ReduceSum", net.b.node("Mul", each, each), net.ints(2), keepdims=0)
    return net, net.b.model(net.b.node("Sqrt", squares)), (8, 8)


def distances():
    """Minus the squared distance to a prototype of each class, of as many numbers as the map has places."""
    net = Net()
    b = net.b
    apart = b.node("Sub", b.node("Unsqueeze", net.pooled(64), net.ints(1)), b.weight(1, SCORES, 64))
    squares = b.node("Pow", apart, b.const(np.array(2, np.float32)))
    return net, b.model(b.node("Neg", b.node("ReduceSum", squares, net.ints(2), keepdims=0))), (8, 8)


def samples():
    """The mean over 64 stored masks of the pooled vector, as Monte-Carlo dropout has it."""
    net = Net()
    b = net.b
    dropped = b.node("Mul", b.node("Unsqueeze", net.pooled(16), net.ints(1)), b.weight(1, 64, 16))
    shares = b.node("Softmax", net.product(dropped, 16, SCORES), axis=-1)
    return net, b.model(b.node("ReduceMean", shares, axes=[1], keepdims=0)), (8, 8)


def queries():
    """One stored query for each class, and a product with weights of the class, summed over the channels."""
    net = Net()
    b, width = net.b, 64
    keys = b.node("Reshape", net.patches(width), net.ints(1, width, 64))
    values = b.node("Transpose", keys, perm=[0, 2, 1])
    shares = b.node("Softmax", b.node("MatMul", b.weight(1, SCORES, width, scale=0.1), keys), axis=-1)
    read = b.node("Mul", b.node("MatMul", shares, values), b.weight(SCORES, width))
    return net, b.model(b.node("ReduceSum", read, net.ints(-1), keepdims=0)), (8, 8)


def backbones():
    """Two on one image, that meet behind their pools."""
    net = Net()
    parts = [net.product(net.pooled(16), 16, SCORES) for _ in range(2)]
    return net, net.b.model(net.b.node("Add", *parts)), (8, 8)


def members():
    """Four whole classifiers, whose scores are averaged."""
    net = Net()
    b = net.b
    each = [b.node("Unsqueeze", net.product(net.pooled(16), 16, SCORES), net.ints(1)) for _ in range(4)]
    return net, b.model(b.node("ReduceMean", b.node("Concat", *each, axis=1), axes=[1], keepdims=0)), (8, 8)


def gated_streams():
    """Two streams that are multiplied behind their linear layers."""
    net = Net()
    b = net.b
    parts = [net.product(b.node("Flatten", net.patches(4)), 4 * 64, 4) for _ in range(2)]
    return net, b.model(net.product(b.node("Relu", b.node("Mul", *parts)), 4, 1)), (8, 8)


def scores_in_four_axes(*, last=False):
    """`[1, 1, 1, K]`, by a reshape or by a transpose to channels last."""
    net = Net()
    b = net.b
    scores = b.node("Conv", b.node("GlobalAveragePool", net.patches(16)), b.weight(SCORES, 16, 1, 1))
    moved = b.node("Transpose", scores, perm=[0, 2, 3, 1]) if last else b.node("Reshape", scores, net.ints(1, 1, 1, 5))
    return net, b.model(b.node("Softmax", moved, axis=3)), (8, 8)


def recurrent(cell):
    """A recurrent layer over the cells, row by row, of which the last state is read."""
    net = Net(32, 48)
    b, gates = net.b, {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
    tokens = b.node("Reshape", net.patches(8), net.ints(1, 8, 24))
    steps = b.node("Transpose", tokens, perm=[2, 0, 1])
    weights = (b.weight(1, gates * 6, 8), b.weight(1, gates * 6, 6), b.weight(1, 2 * gates * 6))
    _, last = b.node(cell, steps, *weights, outputs=2, hidden_size=6)[:2]
    return net, b.model(net.product(b.node("Reshape", last, net.ints(1, 6)), 6, SCORES)), (4, 6)


def three_places():
    """Three cells of the map are read, and no others."""
    net = Net(32, 48)
    b = net.b
    row = b.node("Gather", net.patches(8), b.const(np.array([0, 1, 3])), axis=2)
    cells = b.node("Gather", row, b.const(np.array(4)), axis=3)
    return net, b.model(net.product(b.node("Reshape", cells, net.ints(1, 24)), 24, SCORES)), (4, 6)


def joined_streams():
    """As HRNet: streams of two grids with layers of their own, that meet behind their pools; one map feeds both."""
    net = Net(64, 96)
    b = net.b
    fine = b.node("Relu", b.node("Conv", net.patches(8), b.weight(8, 8, 1, 1)))
    coarse = b.node("Conv", net.features[0], b.weight(8, 8, 3, 3), pads=[1] * 4, strides=[2, 2])
    both = [b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", x))) for x in (fine, coarse)]
    return net, b.model(net.product(b.node("Concat", *both, axis=1), 16, SCORES)), (8, 12)


def likeness_to_stored():
    """Verification: the cosine to one stored vector, which is divided by its length in the model."""
    net = Net()
    b = net.b

    def unit(x):
        length = b.node("Clip", b.node("ReduceL2", x, axes=[1], keepdims=1), b.const(np.float32(1e-12)), "")
        return b.node("Div", x, b.node("Expand", length, net.ints(1, 8)))

    both = b.node("Mul", unit(net.pooled(8)), unit(b.weight(1, 8)))
    return net, b.model(b.node("ReduceSum", both, net.ints(1), keepdims=1)), (8, 8)


def mean_before_its_cells():
    """DINOv3 on ConvNeXt: the mean stands before the cells as a class token does, and is read behind a norm."""
    net = Net(32, 48)
    b = net.b
    cells = net.patches(8)
    both = [b.node("Reshape", x, net.ints(1, 8, -1)) for x in (b.node("GlobalAveragePool", cells), cells)]
    tokens = b.node("Concat", *(b.node("Transpose", x, perm=[0, 2, 1]) for x in both), axis=1)
    normed = b.node("LayerNormalization", tokens, b.weight(8, scale=1), b.weight(8), axis=-1)
    return net, b.model(net.product(b.node("Gather", normed, b.const(np.array(0)), axis=1), 8, SCORES)), (4, 6)


KINDS = {
    "mean before its cells": mean_before_its_cells,
    "likeness to a stored vector": likeness_to_stored,
    "LSTM": lambda: recurrent("LSTM"),
    "GRU": lambda: recurrent("GRU"),
    "RNN": lambda: recurrent("RNN"),
    "three places": three_places,
    "joined streams": joined_streams,
    "as many tokens as channels": as_many_tokens_as_channels,
    "averaged heads": averaged_heads,
    "backbones": backbones,
    "capsules": capsules,
    "distances": distances,
    "gated streams": gated_streams,
    "members": members,
    "queries": queries,
    "rows, then columns": rows_then_columns,
    "samples": samples,
    "scores in four axes": scores_in_four_axes,
    "scores in four axes, channels last": lambda: scores_in_four_axes(last=True),
}


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", KINDS)
def test_the_map_shows_the_image(name, kind):
    net, plain, grid = KINDS[name]()
    model = models.as_format(plain, kind)
    result = insert(model, Options(output_dtype="f32"))
    assert result.report.target["grid"] == grid
    assert result.report.place == "blocks"
    assert len(result.report.target["masked"]) == len(net.features)

    size = [dim.dim_value for dim in plain.graph.input[0].type.tensor_type.shape.dim]
    image = np.random.default_rng(3).standard_normal(size, dtype=np.float32)
    parts = oracle.Parts(plain, net.features, insert(plain).report.logits["name"])
    features = parts.features(image)
    wanted = []
    for row, column in np.ndindex(*grid):
        mask = np.zeros(grid, np.float32)
        mask[row, column] = 1
        wanted.append(parts.head(image, *(feature * mask for feature in features)))
    wanted = np.stack(wanted, axis=-1).reshape(1, -1, *grid)
    got = oracle.run(result.model, image)["saliency_map"]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(("dtype", "last"), [("int32", True), ("int64", False)])
def test_pixels_may_be_whole_numbers(dtype, last, kind):
    """As MoveNet takes them; attention masks of one channel are no image."""
    b = models.Builder(batch=1)
    shape, code = ([1, 12, 12, 3] if last else [1, 3, 12, 12]), onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    pixels = b.node("Cast", "image", to=onnx.TensorProto.FLOAT)
    pixels = b.node("Transpose", pixels, perm=[0, 3, 1, 2]) if last else pixels
    feature = b.backbone(b.node("Mul", pixels, b.const(np.array(1 / 255, np.float32))))
    rest = b.node("Flatten", b.node("GlobalAveragePool", feature))
    plain = b.model(b.linear(rest, 6), inputs=[onnx.helper.make_tensor_value_info("image", code, shape)])
    result = insert(models.as_format(plain, kind), Options(output_dtype="f32"))
    image = np.random.default_rng(3).integers(0, 256, shape).astype(dtype)
    wanted = oracle.Parts(plain, feature, b.nodes[-1].output[0]).definition(image, (2, 3))
    got = oracle.run(result.model, image)["saliency_map"]
    np.testing.assert_allclose(got, wanted.reshape(got.shape), rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert not holds_pixels((1, 1, 64, 64), "int64")


def derived(kind):
    """Scores of classes, and the numbers of an image that are computed from them, as outputs."""
    net = Net()
    b = net.b
    feature = net.pooled(8)
    scores = net.product(feature, 8, SCORES)
    shares = b.node("Softmax", scores, axis=1)
    best = b.node("ReduceMax", shares, axes=[1], keepdims=0)
    label = b.node("ArgMax", shares, axis=1, keepdims=0)
    if kind == "entropy":
        parts = b.node("Mul", shares, b.node("Log", shares))
        outputs = b.node("Neg", b.node("ReduceSum", parts, net.ints(1), keepdims=0)), shares
    elif kind == "expected value":
        steps = b.const(np.arange(SCORES, dtype=np.float32))
        outputs = shares, b.node("ReduceSum", b.node("Mul", shares, steps), net.ints(1), keepdims=1)
    else:
        energy = b.node("ReduceLogSumExp", scores, axes=[1], keepdims=1)
        length = b.node("ReduceL2", feature, axes=[1], keepdims=1)
        outputs = {
            "energy": (scores, energy),
            "confidence": (shares, best),
            "confidence and label": (best, label),
            "all": (best, energy, shares, label),
            "feature": (length, feature, scores, energy),
        }[kind]
    return net, scores, outputs


DERIVED = ["entropy", "expected value", "energy", "confidence", "confidence and label", "all", "feature"]


@pytest.mark.parametrize("kind", DERIVED)
def test_numbers_computed_from_the_classes_are_no_classes(kind):
    net, scores, outputs = derived(kind)
    plain = net.b.model(*outputs)
    result = insert(plain, Options(output_dtype="f32"))
    image = np.random.default_rng(3).standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)
    wanted = oracle.Parts(plain, net.features[0], scores).definition(image, (2, 3)).reshape(1, SCORES, 8, 8)
    got = oracle.run(result.model, image)["saliency_map"]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_a_number_of_a_layer_of_its_own_stays_a_rival():
    net = Net()
    feature = net.pooled(8)
    with pytest.raises(errors.AmbiguousModelError, match="2 outputs may hold the class scores"):
        insert(net.b.model(net.product(feature, 8, SCORES), net.product(feature, 8, 1)))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_blocks_folded_to_a_grid(kind):
    """MobileViTV2: the last grid is laid together of blocks of channels (Col2Im)."""
    b = models.Builder(opset=18)
    wide = b.node("Conv", b.backbone(), b.weight(4 * models.CHANNELS, models.CHANNELS, 1, 1))
    blocks = b.node("Reshape", wide, b.const(np.array([0, 4 * models.CHANNELS, 36])))
    grid = b.node("Col2Im", blocks, b.const(np.array([12, 12])), b.const(np.array([2, 2])), strides=[2, 2])
    pooled = b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", grid)))
    model = models.as_format(b.model(b.linear(pooled, models.CHANNELS)), kind)
    result = insert(model, Options(output_dtype="f32"))
    assert (result.report.form, result.report.target["grid"]) == ("closed form", (12, 12))
    images = np.random.default_rng(1).standard_normal((2, 3, 12, 12), dtype=np.float32)
    parts = oracle.Parts(model, result.report.target["name"], result.report.logits["name"])
    wanted = parts.definition(images, (2, 3)).reshape(2, SCORES, 12, 12)
    maps = oracle.run(result.model, images)["saliency_map"]
    np.testing.assert_allclose(maps, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("least", ["ArgMin", "TopK"])
def test_of_distances_the_least_counts(least, kind):
    """A map of what raises them is dark where a class is seen: written where the user wants it, and said."""
    net = Net()
    b = net.b
    apart = b.node("Sub", b.node("Unsqueeze", net.pooled(64), net.ints(1)), b.weight(1, SCORES, 64))
    scores = b.node("ReduceSum", b.node("Mul", apart, apart), net.ints(2), keepdims=0)
    if least == "ArgMin":
        best = b.node("ArgMin", scores, axis=1)
    else:
        best = b.node("TopK", scores, net.ints(1), outputs=2, axis=1, largest=0)[1]
    model = models.as_format(b.model(scores, best), kind)
    with pytest.raises(errors.UnsupportedTaskError, match=f"takes the least.*--num-classes {SCORES}"):
        insert(model)
    assert "takes the least" in insert(model, Options(num_classes=SCORES)).report.text()


@pytest.mark.parametrize("kind", models.FORMATS)
def test_positions_pooled_behind_a_softmax_are_one(kind):
    """X3D: the map is pooled to one cell, of whose softmax a mean over all cells is taken when the clip is longer."""

    def pooled(b):
        cell = b.node("GlobalAveragePool", b.backbone())
        return b.node("Conv", cell, b.weight(5, models.CHANNELS, 1, 1), b.weight(5))

    def averaged(b):
        last = b.node("Softmax", b.node("Transpose", pooled(b), perm=[0, 2, 3, 1]), axis=3)
        return b.node("Flatten", b.node("GlobalAveragePool", b.node("Transpose", last, perm=[0, 3, 1, 2])))

    image = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    wanted, found = (
        oracle.run(
            insert(models.as_format(models.classifier(net, batch=2), kind), Options(output_dtype="f32")).model, image
        )["saliency_map"]
        for net in (lambda b: b.node("Flatten", pooled(b)), averaged)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
