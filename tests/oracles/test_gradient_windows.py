"""Rules of the pullback over axes and windows (norms, convolutions, pools), against central differences in float64."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model_zoo_fixtures.testbed.gradient_oracle import MAP, assert_is_derivative, f32, one
from model_zoo_fixtures.testbed.models import FORMATS

KINDS = pytest.mark.parametrize("kind", FORMATS)


def normalised(name, *sizes, **attributes):
    return one(name, *(f32(size, low=0.5) for size in sizes), **attributes)


NORMS = {
    "LayerNormalization": (normalised("LayerNormalization", 7, 7, axis=-1), 17),
    "over two axes": (lambda b: b.node("LayerNormalization", "image", b.const(f32(6, 7)), axis=2), 17),
    "InstanceNormalization": (normalised("InstanceNormalization", 4, 4), 17),
    "BatchNormalization": (normalised("BatchNormalization", 4, 4, 4, 4), 17),
    "LpNormalization": (one("LpNormalization", axis=1, p=2), 17),
    "Softmax": (one("Softmax", axis=1), 17),
    "Softmax over the last": (one("Softmax", axis=-1), 17),
    "LogSoftmax": (one("LogSoftmax", axis=1), 17),
    **{
        name: (one(name, np.array([1, 3]), keepdims=int(len(name) % 2)), 18)
        for name in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp")
    },
    "ReduceSumSquare": (one("ReduceSumSquare", np.array([2]), keepdims=0), 18),
    "ReduceProd": (one("ReduceProd", np.array([1]), keepdims=0), 18),
    "ReduceSum": (one("ReduceSum", np.array([2, 3]), keepdims=0), 17),
    "ReduceLogSum": (lambda b: b.node("ReduceLogSum", b.node("Exp", "image"), b.const(np.array([1]))), 18),
    "GlobalAveragePool": (one("GlobalAveragePool"), 17),
    "GlobalMaxPool": (one("GlobalMaxPool"), 17),
}


@KINDS
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_norms_and_reductions(name, together, kind):
    network, opset = NORMS[name]
    assert_is_derivative(network, MAP, kind, opset=opset, together=together)


@KINDS
@pytest.mark.parametrize("together", [False, True])
def test_group_norm(together, kind):
    scale, bias = f32(4, low=0.5), f32(4)

    def network(b):
        x = b.node("GroupNormalization", "image", b.const(scale), b.const(bias), num_groups=2)
        return b.node("Reshape", b.node("CastLike", x, "image"), b.const(np.array(MAP)))  # the checker knows no sizes

    def in_parts(b):  # the evaluator rounds to 32 bits
        x = b.node("Reshape", "image", b.const(np.array([1, 2, 84])))
        x = b.node("LayerNormalization", x, b.const(np.ones(84, np.float32)), axis=-1)
        x = b.node("Mul", b.node("Reshape", x, b.const(np.array(MAP))), b.const(scale.reshape(4, 1, 1)))
        return b.node("Add", x, b.const(bias.reshape(4, 1, 1)))

    assert_is_derivative(network, MAP, kind, opset=21, together=together, reference=in_parts)


@KINDS
@pytest.mark.parametrize("together", [False, True])
def test_norm_of_neighbours(together, kind):
    def in_parts(b):  # the evaluator takes the batch for the channels
        square = b.node("Reshape", b.node("Mul", "image", "image"), b.const(np.array([1, 4, 42])))
        near = np.abs(np.arange(4)[:, None] - np.arange(4)) < 2
        sums = b.node("MatMul", b.const((near * 0.9 / 3).astype(np.float32)), square)
        below = b.node("Pow", b.node("Add", sums, b.const(np.float32(0.8))), b.const(np.float32(0.6)))
        return b.node("Div", "image", b.node("Reshape", below, b.const(np.array(MAP))))

    network = one("LRN", size=3, alpha=0.9, beta=0.6, bias=0.8)
    assert_is_derivative(network, MAP, kind, together=together, reference=in_parts)


def test_old_softmax_takes_the_axes_that_follow_too():
    def reference(b):
        flat = b.node("Softmax", b.node("Reshape", "image", b.const(np.array([4, 42]))), axis=1)
        return b.node("Reshape", flat, b.const(np.array(MAP)))

    assert_is_derivative(one("Softmax", axis=2), MAP, "onnx", opset=11, reference=reference)


def resized(mode, coordinates, *, scales=None, sizes=None, **attributes):
    def network(b):
        factors = b.const(np.array([] if scales is None else [1, 1, *scales], np.float32))
        operands = [factors] if sizes is None else [factors, b.const(np.array([1, 4, *sizes]))]
        modes = {"mode": mode, "coordinate_transformation_mode": coordinates, **attributes}
        return b.node("Resize", "image", "", *operands, **modes)

    return network


RESIZES = {
    "nearest": resized("nearest", "asymmetric", scales=(2, 2), nearest_mode="floor"),
    "nearest, other sizes": resized("nearest", "half_pixel", sizes=(9, 5), nearest_mode="round_prefer_floor"),
    "linear": resized("linear", "half_pixel", sizes=(12, 14)),
    "linear, coarser": resized("linear", "pytorch_half_pixel", sizes=(4, 5)),
    "corners": resized("linear", "align_corners", sizes=(11, 9)),
    "cubic": resized("cubic", "half_pixel", sizes=(12, 14)),
    "cubic, coarser": resized("cubic", "pytorch_half_pixel", sizes=(4, 5), cubic_coeff_a=-0.5),
    "cubic corners": resized("cubic", "align_corners", sizes=(11, 9)),
    "along three sides": lambda b: b.node(
        "Unsqueeze",
        b.node(
            "Resize",
            b.node("Squeeze", "image", b.const(np.array([0]))),
            "",
            b.const(np.ones(0, np.float32)),
            b.const(np.array([8, 12, 14])),
            mode="linear",
        ),
        b.const(np.array([0])),
    ),
    "asymmetric": resized("linear", "asymmetric", scales=(2, 3)),
}


@KINDS
@pytest.mark.parametrize("name", RESIZES)
def test_interpolations(name, kind):
    assert_is_derivative(RESIZES[name], MAP, kind, together=len(name) % 2 == 0)


def convolved(out, groups, kernel, **attributes):
    def network(b):
        weight = b.const(f32(out, 4 // groups, *kernel))
        return b.node("Conv", "image", weight, b.const(f32(out)), group=groups, **attributes)

    return network


@KINDS
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    sides=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    together=st.booleans(),
)
@example(sides=2, groups=1, kernel=1, stride=2, dilation=1, pads=(0, 0), together=True)
@example(sides=2, groups=2, kernel=3, stride=2, dilation=1, pads=(1, 1), together=False)
@example(sides=3, groups=1, kernel=3, stride=2, dilation=1, pads=(1, 0), together=False)
def test_convolutions(kind, sides, groups, kernel, stride, dilation, pads, together):
    attributes = {"strides": [stride] * sides, "dilations": [dilation] * sides}
    attributes["pads"] = [min(pad, (kernel - 1) * dilation) for pad in pads for _ in range(sides)]
    least = (kernel - 1) * dilation + 1  # one step more along the first, for what a step leaves out
    shape = (1, 4, *(min(least + more, 7) for more in (stride, 1, 0)[:sides]))
    network = convolved(4, groups, (kernel,) * sides, **attributes)
    assert_is_derivative(network, shape, kind, together=together)


@KINDS
@settings(max_examples=5, deadline=None, derandomize=True)
@given(grouped=st.booleans(), kernel=st.integers(2, 3), stride=st.integers(1, 3), pad=st.integers(0, 1))
def test_transposed_convolutions(kind, grouped, kernel, stride, pad):
    attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "output_padding": [min(1, stride - 1)] * 2}
    weight = f32(4, 3, kernel, kernel)

    def network(b):
        return b.node("ConvTranspose", "image", b.const(weight), group=2 if grouped else 1, **attributes)

    def in_groups(b):  # the evaluator knows no groups
        halves = b.node("Split", "image", axis=1, outputs=2)
        pairs = zip(halves, (weight[:2], weight[2:]), strict=True)
        return b.node("Concat", *(b.node("ConvTranspose", x, b.const(w), **attributes) for x, w in pairs), axis=1)

    assert_is_derivative(network, (1, 4, 3, 2), kind, reference=in_groups if grouped else None)


@KINDS
@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_convolutions_that_keep_the_size(auto, kind):
    network = convolved(4, 1, (3, 2), strides=[2, 2], auto_pad=auto)
    assert_is_derivative(network, MAP, kind)


def means_of_functions(b):
    """The derivative by a mean is the same for every cell, and what comes before the mean gives it the map's sizes."""
    a = b.node("Relu", "image")
    sums = b.node("Add", b.node("Sigmoid", a), b.node("Tanh", "image"))
    pooled = b.node("AveragePool", b.node("Sigmoid", sums), kernel_shape=[6, 7])
    rows = b.node("ReduceSum", b.node("Elu", a), b.const(np.array([2], np.int64)), keepdims=1)
    return b.node("Add", b.node("Add", b.node("GlobalAveragePool", a), pooled), rows)


POOLS = {
    "means of functions": means_of_functions,
    "mean of all": one("AveragePool", kernel_shape=[6, 7]),
    "mean of all, twice": lambda b: b.node(
        "Add", b.node("AveragePool", "image", kernel_shape=[6, 7]), b.node("GlobalAveragePool", "image")
    ),
    "mean": one("AveragePool", kernel_shape=[2, 3], strides=[2, 2]),
    "mean with pads": one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "mean that counts pads": one(
        "AveragePool", kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "mean, a last part": one("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "max": one("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    "max with pads": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max, overlapping": one("MaxPool", kernel_shape=[3, 2], strides=[1, 1]),
    "max of a kernel larger than the map": one("MaxPool", kernel_shape=[9, 8], pads=[3, 3, 3, 3]),
    "max, a last part": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
}


@KINDS
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", POOLS)
def test_pools(name, together, kind):
    assert_is_derivative(POOLS[name], MAP, kind, together=together)


@pytest.mark.parametrize("together", [False, True])
def test_a_pool_whose_kernel_is_as_large_as_its_channels_are_many(together):
    """As `transformers` pools EfficientNet: the weight of its transpose would take gigabytes."""
    pool = one("AveragePool", kernel_shape=[3000, 2000], strides=[3000, 2000], ceil_mode=1)
    assert_is_derivative(pool, MAP, "onnx", together=together, reference=one("GlobalAveragePool"))


@KINDS
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    corners=st.booleans(),
    border=st.booleans(),
    points=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    seed=st.integers(0, 99),
    together=st.booleans(),
)
def test_sampling(kind, corners, border, points, seed, together):
    attributes = {"align_corners": int(corners), "padding_mode": "border" if border else "zeros"}
    places = np.random.default_rng(seed).uniform(-1.3, 1.3, (2, *points, 2)).astype(np.float32)
    network = lambda b: b.node("GridSample", "image", b.const(places), **attributes)  # noqa: E731
    assert_is_derivative(network, (2, 1, 3, 2), kind, together=together)


@KINDS
@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_sampling_by_its_places(corners, padding, kind):
    def network(b):
        moved = b.node("Mul", b.node("Tanh", "image"), b.const(np.float32(1.3)))
        return b.node("GridSample", b.const(f32(2, 3, 4, 5)), moved, align_corners=corners, padding_mode=padding)

    assert_is_derivative(network, (2, 1, 3, 2), kind, together=padding == "zeros")
