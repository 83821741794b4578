"""Each rule of the pullback against central differences in float64, in both formats."""

import numpy as np
import openvino as ov
import openvino.opset13 as opset
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model_zoo_fixtures.testbed.gradient_oracle import assert_is_derivative, assert_plain_is_derivative
from model_zoo_fixtures.testbed.models import FORMATS

KINDS = pytest.mark.parametrize("kind", FORMATS)
VECTOR = (2, 3, 5)
MAP = (1, 4, 6, 7)


def one(kind, *operands, **attributes):
    """A network of one operator."""
    return lambda b: b.node(kind, "image", *(b.const(np.asarray(item)) for item in operands), **attributes)


def f32(*shape, low=None):
    array = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return array if low is None else np.abs(array) + np.float32(low)


POSITIVE = np.random.default_rng(2).uniform(0.3, 2.0, VECTOR)
FUNCTIONS = {
    **{name: (one(name), None) for name in ("Relu", "Sigmoid", "Tanh", "Exp", "Softplus", "Softsign", "Erf", "Abs")},
    **{name: (one(name), None) for name in ("Neg", "Sin", "Cos", "HardSwish", "Mish", "Elu", "Selu", "LeakyRelu")},
    "Celu": (one("Celu", alpha=0.7), None),
    "Elu of another slope": (one("Elu", alpha=0.6), None),
    "LeakyRelu of another slope": (one("LeakyRelu", alpha=0.3), None),
    "ThresholdedRelu": (one("ThresholdedRelu", alpha=0.4), None),
    "Shrink": (one("Shrink", lambd=0.4, bias=0.2), None),
    "HardSigmoid": (one("HardSigmoid", alpha=0.3, beta=0.4), None),
    "PRelu": (one("PRelu", f32(3, 1)), None),
    **{name: (one(name), POSITIVE / 3) for name in ("Tan", "Asin", "Acos", "Atanh")},
    **{name: (one(name), None) for name in ("Atan", "Sinh", "Cosh", "Asinh")},
    "Acosh": (one("Acosh"), POSITIVE + 1),
    "Log": (one("Log"), POSITIVE),
    "Sqrt": (one("Sqrt"), POSITIVE),
    "Reciprocal": (one("Reciprocal"), POSITIVE),
    "Clip": (one("Clip", np.float32(-0.5), np.float32(0.8)), None),
    "Clip from below": (one("Clip", np.float32(-0.5)), None),
    "Add": (one("Add", f32(5)), None),
    "Mod": (one("Mod", f32(5, low=0.5), fmod=1), POSITIVE),
    "Sub from": (lambda b: b.node("Sub", b.const(f32(2, 3, 5)), "image"), None),
    "Mul": (one("Mul", f32(3, 1)), None),
    "Div": (one("Div", f32(3, 1, low=0.5)), None),
    "Div by it": (lambda b: b.node("Div", b.const(f32(5)), "image"), POSITIVE),
    "square": (one("Pow", np.float32(2)), None),
    "root": (one("Pow", np.float32(0.5)), POSITIVE),
    "powers": (one("Pow", f32(5, low=1.0)), POSITIVE),
    "power of it": (lambda b: b.node("Pow", b.const(f32(5, low=0.5)), "image"), None),
    "Max": (one("Max", f32(5)), None),
    "Min": (one("Min", f32(3, 5)), None),
    "Where": (lambda b: b.node("Where", b.const(f32(3, 5) > 0), "image", b.const(f32(5))), None),
    "Mean": (lambda b: b.node("Mean", "image", b.const(f32(2, 3, 5)), "image"), None),
    "Sum": (lambda b: b.node("Sum", "image", b.const(f32(2, 3, 5)), "image"), None),
    "a floor beside": (lambda b: b.node("Add", b.node("Floor", "image"), b.node("Exp", "image")), None),
}


@KINDS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, kind):
    network, x = FUNCTIONS[name]
    opset = 18 if name == "Mish" else 17
    assert_is_derivative(network, VECTOR, kind, x=x, opset=opset, together=len(name) % 2 == 0)


@KINDS
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate, kind):
    assert_is_derivative(one("Gelu", approximate=approximate), VECTOR, kind, opset=20)


@KINDS
def test_a_cast_between_floats(kind):
    cast = lambda b: b.node("Exp", b.node("Cast", "image", to=1))  # noqa: E731
    assert_is_derivative(cast, VECTOR, kind, reference=one("Exp"))


def mixed(b):
    """Broadcast on both sides."""
    x = b.node("ReduceMean", "image", axes=[2], keepdims=1)
    y = b.node("ReduceMax", "image", axes=[1], keepdims=0)
    y = b.node("Reshape", y, b.const(np.array([2, 1, 5])))
    return b.node("Mul", b.node("Add", x, y), b.node("Sigmoid", x))


def rows_by_columns(b):
    """As decomposed relative positions are read: a batch axis apart from two free ones."""
    table = b.const(f32(2, 4, 5))
    return b.node(
        "Einsum", b.node("Reshape", "image", b.const(np.array([2, 3, 1, 5]))), table, equation="hbwc,hkc->bhwk"
    )


def joint_sums(b):
    """Summed over two axes, of two computed operands."""
    return b.node("Einsum", "image", b.node("Exp", "image"), equation="ijk,ljk->li")


def nothing_kept(b):
    """A slice without elements, joined with the rest."""
    none = b.node("Slice", "image", *(b.const(np.array([number])) for number in (5, 9, 2)))
    return b.node("Concat", b.node("Exp", "image"), none, axis=2)


def swish(b):
    x = b.node("Mul", "image", b.const(f32(3, 1)))
    return b.node("Mul", x, b.node("Sigmoid", x))


def gelu_in_parts(b):
    x = b.node("Add", "image", b.const(f32(5)))
    erf = b.node("Erf", b.node("Div", x, b.const(np.float32(2**0.5))))
    whole = b.node("Mul", x, b.node("Add", erf, b.const(np.float32(1))))
    return b.node("Mul", whole, b.const(np.float32(0.5)))


def norm_in_parts(b):
    centred = b.node("Sub", "image", b.node("ReduceMean", "image", axes=[2]))
    variance = b.node("ReduceMean", b.node("Pow", centred, b.const(np.float32(2))), axes=[2])
    deviation = b.node("Sqrt", b.node("Add", variance, b.const(np.float32(1e-5))))
    return b.node("Add", b.node("Mul", b.node("Div", centred, deviation), b.const(f32(5))), b.const(f32(5)))


def attention_in_parts(b):
    q, k, v = (b.node("MatMul", "image", b.const(f32(5, 4))) for _ in range(3))
    k = b.node("Mul", b.node("Tanh", k), b.const(np.float32(0.7)))
    scores = b.node("MatMul", b.node("Mul", q, b.const(np.float32(0.5))), b.node("Transpose", k, perm=[0, 2, 1]))
    return b.node("MatMul", b.node("Softmax", scores, axis=-1), v)


@KINDS
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "network",
    [mixed, rows_by_columns, joint_sums, nothing_kept, swish, gelu_in_parts, norm_in_parts, attention_in_parts],
)
def test_operators_together(network, together, kind):
    assert_is_derivative(network, VECTOR, kind, together=together)


def attention_with_shared_keys(b):
    """Two heads of queries, one of keys and values, and a mask that is computed."""
    q = b.node("Reshape", "image", b.const(np.array([1, 2, 3, 5])))
    first = b.node("Slice", q, *(b.const(np.array([number])) for number in (0, 1, 1)))
    k, v = (b.node("MatMul", first, b.const(f32(5, width))) for width in (5, 4))
    scores = b.node("Mul", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2])), b.const(np.float32(0.4)))
    mask = b.node("ReduceMean", first, axes=[3], keepdims=1)
    return b.node("MatMul", b.node("Softmax", b.node("Add", scores, mask), axis=-1), v)


def test_fused_attention_with_shared_keys():
    image = opset.parameter(VECTOR, np.float32, name="image")
    seed = opset.parameter((2, 1, 2, 3, 4), np.float32, name="seed")
    image.output(0).set_names({"image"})
    seed.output(0).set_names({"seed"})
    q = opset.reshape(image, [1, 2, 3, 5], False)
    first = opset.slice(q, [0], [1], [1], [1])
    k, v = (opset.matmul(first, opset.constant(f32(5, width)), False, False) for width in (5, 4))
    mask = opset.broadcast(opset.reduce_mean(first, np.array([3]), True), np.array([1, 1, 3, 3]))
    made = opset.scaled_dot_product_attention(q, k, v, mask, np.float32(0.4))
    model = ov.Model([made, seed], [image, seed])
    assert_plain_is_derivative(model, attention_with_shared_keys, VECTOR)


def means(count, size):
    """`[count, size]`: of which cells an adaptive pool makes each of its own."""
    rows = np.zeros((count, size), np.float32)
    for row in range(count):
        low, end = row * size // count, -(-(row + 1) * size // count)
        rows[row, low:end] = 1 / (end - low)
    return rows


def adaptive_mean(b):
    return b.node("MatMul", b.node("MatMul", b.const(means(4, 6)), "image"), b.const(means(3, 7).T))


def shuffled(b):
    x = b.node("Transpose", b.node("Reshape", "image", b.const(np.array([1, 2, 2, 42]))), perm=[0, 2, 1, 3])
    return b.node("Reshape", x, b.const(np.array(MAP)))


def swish_of_slope(b):
    return b.node("Mul", "image", b.node("Sigmoid", b.node("Mul", "image", b.const(np.float32(1.5)))))


def squared_difference(b):
    apart = b.node("Sub", "image", b.const(f32(6, 1)))
    return b.node("Mul", apart, apart)


def rolled(b):
    return b.node("Gather", "image", b.const(np.array([4, 5, 0, 1, 2, 3])), axis=2)


def normalised_outside(b):
    """Epsilon is added behind the root."""
    centred = b.node("Sub", "image", b.node("ReduceMean", "image", axes=[2, 3]))
    deviation = b.node("Sqrt", b.node("ReduceMean", b.node("Mul", centred, centred), axes=[2, 3]))
    return b.node("Div", centred, b.node("Add", deviation, b.const(np.float32(0.1))))


def saturated(b):
    return b.node("HardSigmoid", b.node("Conv", "image", b.const(EIGHTFOLD)), alpha=1 / 6, beta=0.5)


EIGHTFOLD = 8 * np.eye(4, dtype=np.float32)[..., None, None]


def gate(x):
    """As of squeeze and excitation; at its upper end the runtime gives a little less than one."""
    zeros = np.array([0, 0])
    return opset.hsigmoid(opset.convolution(x, opset.constant(EIGHTFOLD), [1, 1], zeros, zeros, [1, 1]))


OF_OPENVINO = {
    "HSigmoid": (gate, saturated),
    "Swish": (lambda x: opset.swish(x, opset.constant(np.float32(1.5))), swish_of_slope),
    "SquaredDifference": (lambda x: opset.squared_difference(x, opset.constant(f32(6, 1))), squared_difference),
    "Roll": (lambda x: opset.roll(x, np.array([2]), np.array([2])), rolled),
    "MVN": (lambda x: opset.mvn(x, np.array([2, 3]), True, 0.1, "OUTSIDE_SQRT"), normalised_outside),
    "AdaptiveAvgPool": (lambda x: opset.adaptive_avg_pool(x, np.array([4, 3])), adaptive_mean),
    "ShuffleChannels": (lambda x: opset.shuffle_channels(x, 1, 2), shuffled),
}


@pytest.mark.parametrize("name", OF_OPENVINO)
def test_operators_of_openvino_alone(name):
    build, reference = OF_OPENVINO[name]
    image = opset.parameter(MAP, np.float32, name="image")
    made = build(image)
    seed = opset.parameter((2, *made.output(0).shape), np.float32, name="seed")
    image.output(0).set_names({"image"})
    seed.output(0).set_names({"seed"})
    assert_plain_is_derivative(ov.Model([made, seed], [image, seed]), reference, MAP)


PRODUCTS = {
    "weight behind": (one("MatMul", f32(5, 4)), VECTOR),
    "weight before": (lambda b: b.node("MatMul", b.const(f32(4, 3)), "image"), VECTOR),
    "vector behind": (one("MatMul", f32(5)), VECTOR),
    "Gemm": (one("Gemm", f32(5, 4), f32(4), alpha=0.5, beta=2.0), (3, 5)),
    "Gemm, both turned": (one("Gemm", f32(4, 3), f32(4), transA=1, transB=1), (3, 5)),
    "Gemm, bias": (lambda b: b.node("Gemm", b.const(f32(4, 3)), b.const(f32(3, 5)), "image", beta=0.7), (1, 5)),
    "itself": (lambda b: b.node("MatMul", "image", b.node("Transpose", "image", perm=[0, 2, 1])), VECTOR),
    "broadcast": (lambda b: b.node("MatMul", b.const(f32(2, 3, 4, 3)), b.node("Exp", "image")), (3, 3, 2)),
}


@KINDS
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name, together, kind):
    network, shape = PRODUCTS[name]
    assert_is_derivative(network, shape, kind, together=together)


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


SHAPES = {
    "Reshape": one("Reshape", np.array([2, 2, -1])),
    "Flatten": one("Flatten", axis=2),
    "Unsqueeze": one("Unsqueeze", np.array([1])),
    "Squeeze": one("Squeeze", np.array([0])),
    "Transpose": one("Transpose", perm=[0, 3, 1, 2]),
    "Slice": one("Slice", np.array([1, 2]), np.array([3, 7]), np.array([1, 3])),
    "every other": one("Slice", np.array([1]), np.array([6]), np.array([2]), np.array([2])),
    "backwards": one("Slice", np.array([-1]), np.array([-9]), np.array([3]), np.array([-1])),
    "one part of three": lambda b: b.node("Split", "image", b.const(np.array([1, 2, 1])), axis=1, outputs=3)[1],
    "swapped parts": lambda b: b.node("Concat", *b.node("Split", "image", axis=1, outputs=2)[::-1], axis=1),
    "joined": lambda b: b.node("Concat", "image", b.node("Exp", "image"), b.const(f32(1, 4, 6, 2)), axis=3),
    "Gather": one("Gather", np.array(2), axis=1),
    "Gather in order": one("Gather", np.array([1, 2, 3]), axis=2),
    "Gather twice": one("Gather", np.array([3, 1, 3, 3]), axis=3),
    "Gather of a grid": one("Gather", np.array([[0, 2], [2, 5]]), axis=2),
    "Expand": lambda b: b.node(
        "Expand", b.node("ReduceMax", "image", axes=[0, 2], keepdims=1), b.const(np.array([3, 4, 5, 7]))
    ),
    "Tile": one("Tile", np.array([2, 1, 1, 3])),
    "Pad": one("Pad", np.array([0, 0, 1, 2, 0, 1, 0, 3])),
    "Pad by reflection": one("Pad", np.array([0, 0, 2, 3, 0, 0, 1, 2]), mode="reflect"),
    "Pad by the edge": one("Pad", np.array([0, 0, 2, 0, 0, 0, 1, 2]), mode="edge"),
    "DepthToSpace": one("DepthToSpace", blocksize=2),
    "DepthToSpace, depth first": one("DepthToSpace", blocksize=2, mode="CRD"),
    "SpaceToDepth": lambda b: b.node(
        "SpaceToDepth", b.node("Pad", "image", b.const(np.eye(8)[7].astype(int))), blocksize=2
    ),
}


@KINDS
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_movements(name, together, kind):
    assert_is_derivative(SHAPES[name], MAP, kind, together=together)


@KINDS
@pytest.mark.parametrize("together", [False, True])
def test_blocks_laid_side_by_side(together, kind):
    """As MobileViTV2 ends its blocks of attention."""

    def network(b):
        blocks = b.node("Reshape", "image", b.const(np.array([1, 12, 14])))
        return b.node("Col2Im", blocks, b.const(np.array([4, 21])), b.const(np.array([2, 3])), strides=[2, 3])

    assert_is_derivative(network, MAP, kind, opset=18, together=together)


@KINDS
def test_negative_pads_cut_off(kind):
    both = one("Pad", np.array([0, 0, -1, 2, 0, 0, -2, 0]))

    def reference(b):
        x = b.node("Slice", "image", b.const(np.array([1])), b.const(np.array([4])), b.const(np.array([2])))
        return b.node("Pad", x, b.const(np.array([0, 0, 0, 2, 0, 0, 0, 0])))

    assert_is_derivative(both, MAP, kind, reference=reference)


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


def places_named(b):
    """Elements of the first two axes, one of them twice."""
    return b.node("GatherND", b.node("Exp", "image"), b.const(np.array([[[0, 2], [2, 1]], [[2, -1], [1, 1]]])))


def stored_elements(b):
    places = np.random.default_rng(3).integers(-3, 3, (3, 4, 5))
    return b.node("GatherElements", b.node("Exp", "image"), b.const(places), axis=1)


def ordered_elements(b):
    """In the order of other elements, as tokens are sorted by their attention."""
    order = b.node("TopK", b.node("Mul", "image", b.const(f32(5))), b.const(np.array([2])), axis=1, outputs=2)[1]
    return b.node("GatherElements", b.node("Exp", "image"), order, axis=1)


def computed_rows(b):
    best = b.node("ArgMax", b.node("ReduceMean", "image", axes=[0, 1], keepdims=0), axis=0, keepdims=1)
    return b.node("Gather", b.node("Exp", "image"), best, axis=2)


@KINDS
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("network", [places_named, stored_elements, ordered_elements, computed_rows])
def test_what_is_taken(network, together, kind):
    assert_is_derivative(network, (3, 3, 5), kind, together=together)


def rows_written(b):
    """The first two rows, squared, over the third and the first."""
    first = b.node("Slice", "image", *(b.const(np.array([number])) for number in (0, 2, 0)))
    return b.node("ScatterND", "image", b.const(np.array([[2], [0]])), b.node("Mul", first, first))


def places_written(b):
    """A row of the exponentials over two single places of them each."""
    x = b.node("Exp", "image")
    picked = b.node("Gather", x, b.const(np.array(1)), axis=0)
    row = b.node("Slice", picked, *(b.const(np.array([number])) for number in (0, 2, 0)))
    return b.node("ScatterND", x, b.const(np.array([[0, 2], [2, 1]])), row)


def all_written(b):
    """Everything anew, as a sum in place is exported (MViTv2's relative positions)."""
    x = b.node("Exp", "image")
    return b.node("ScatterND", x, b.const(np.moveaxis(np.indices((3, 3, 5)), 0, -1)), b.node("Mul", x, "image"))


@KINDS
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("network", [rows_written, places_written, all_written])
def test_what_is_written_over(network, together, kind):
    assert_is_derivative(network, (3, 3, 5), kind, together=together)


@KINDS
def test_elements_written_over(kind):
    def network(b):
        x = b.node("Slice", "image", *(b.const(np.array([number])) for number in (1, 3, 1)))
        places = np.array([[[0, 2, 1, 2, 0], [1, 0, 2, 0, 2]]] * 3)
        return b.node("ScatterElements", "image", b.const(places), x, axis=1)

    assert_is_derivative(network, (3, 3, 5), kind, together=True)


@KINDS
def test_an_einsum_of_one_row_each(kind):
    def network(b):
        weights = b.node("Softmax", b.node("ReduceMean", "image", axes=[2], keepdims=0), axis=-1)
        return b.node("Einsum", weights, "image", equation="bn,bnd->bd")

    assert_is_derivative(network, VECTOR, kind)


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


@KINDS
@pytest.mark.parametrize("largest", [0, 1])
def test_the_largest(largest, kind):
    network = lambda b: b.node("TopK", "image", b.const(np.array([3])), largest=largest, outputs=2)[0]  # noqa: E731
    assert_is_derivative(network, VECTOR, kind, together=largest == 0)


@KINDS
@pytest.mark.parametrize("batch", [None, "N"])
def test_bounds_that_are_computed_from_known_sizes(batch, kind):
    def network(b):  # as exporters cut channels in halves where the batch is free
        channels = b.node("Gather", b.node("Shape", "image"), b.const(np.array(1)), axis=0)
        half = b.node("Div", b.node("Add", channels, b.const(np.array(1))), b.const(np.array(2)))
        zero, one = b.const(np.array([0])), b.const(np.array([1]))
        ends = [b.node("Unsqueeze", end, zero) for end in (half, channels)]
        first, second = b.node("Slice", "image", zero, ends[0], one), b.node("Slice", "image", *ends, one)
        return b.node("Concat", b.node("Exp", second), b.node("Sin", first), axis=1)

    assert_is_derivative(network, (2, 5, 2, 2), kind, batch=batch)
