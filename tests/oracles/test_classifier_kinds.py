"""Kinds of classifiers whose numbers coincide: the grid is that of the image, and the map is the definition's."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models, oracle
from xai_insert import Options, insert

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


KINDS = {
    "as many tokens as channels": as_many_tokens_as_channels,
    "averaged heads": averaged_heads,
    "backbones": backbones,
    "capsules": capsules,
    "gated streams": gated_streams,
    "members": members,
    "queries": queries,
    "rows, then columns": rows_then_columns,
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
