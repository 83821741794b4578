"""Rules of the pullback for functions, products and those together, against central differences in float64."""

import numpy as np
import openvino as ov
import openvino.opset13 as opset
import pytest

from model_zoo_fixtures.testbed.gradient_oracle import (
    MAP,
    VECTOR,
    assert_is_derivative,
    assert_plain_is_derivative,
    f32,
    one,
)
from model_zoo_fixtures.testbed.models import FORMATS

KINDS = pytest.mark.parametrize("kind", FORMATS)
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


@KINDS
def test_an_einsum_of_one_row_each(kind):
    def network(b):
        weights = b.node("Softmax", b.node("ReduceMean", "image", axes=[2], keepdims=0), axis=-1)
        return b.node("Einsum", weights, "image", equation="bn,bnd->bd")

    assert_is_derivative(network, VECTOR, kind)
