"""The rules of the pullback at sizes, axes and windows that are drawn, against central differences in float64."""

import numpy as np
import openvino as ov
import openvino.opset13 as opset
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model_zoo_fixtures.testbed.gradient_oracle import assert_is_derivative, assert_plain_is_derivative
from model_zoo_fixtures.testbed.models import FORMATS

KINDS = pytest.mark.parametrize("kind", FORMATS)
DRAWN = settings(max_examples=4, deadline=None, derandomize=True)


def f32(*shape):
    return np.random.default_rng(1).uniform(0.5, 1.5, shape).astype(np.float32)


def sizes(least=1, most=4, smallest=1, largest=5):
    return st.lists(st.integers(smallest, largest), min_size=least, max_size=most).map(tuple)


def function(draw):
    name = draw(st.sampled_from(["Sigmoid", "Tanh", "Exp", "Softplus", "Erf", "HardSwish", "Elu", "Relu", "Neg"]))
    return sizes(), lambda b, shape: b.node(name, "image")


def two_operands(draw):
    """Each side may be wider than the other."""
    name = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "Max", "Min"]))
    is_first, wide = draw(st.booleans()), draw(st.lists(st.booleans(), min_size=6, max_size=6))

    def network(b, shape):
        other = b.const(f32(2, *(3 if size == 1 and more else size for size, more in zip(shape, wide, strict=False))))
        return b.node(name, *(("image", other) if is_first else (other, "image")))

    return sizes(), network


def product(draw):
    rows, is_second = draw(st.integers(1, 4)), draw(st.booleans())

    def network(b, shape):
        if is_second:
            return b.node("MatMul", b.const(f32(2, *[1] * (len(shape) - 2), rows, shape[-2])), "image")
        return b.node("MatMul", "image", b.const(f32(shape[-1], rows)))

    return sizes(least=2), network


def along_an_axis(draw):
    name, place = draw(st.sampled_from(["Softmax", "LogSoftmax"])), draw(st.integers(0, 3))
    return sizes(smallest=2, largest=4), lambda b, shape: b.node(name, "image", axis=place % len(shape))


def reduction(draw):
    name = draw(st.sampled_from(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceLogSumExp"]))
    places, kept = draw(st.sets(st.integers(0, 3), min_size=1)), draw(st.integers(0, 1))

    def network(b, shape):
        axes = b.const(np.array(sorted({place % len(shape) for place in places})))
        return b.node(name, "image", axes, keepdims=kept)

    return sizes(), network


def layer_norm(draw):
    place = draw(st.integers(1, 2))

    def network(b, shape):
        axis = len(shape) - min(place, len(shape) - 1)
        return b.node("LayerNormalization", "image", b.const(f32(*shape[axis:])), axis=axis)

    return sizes(least=2, smallest=3, largest=4), network  # the derivative of a norm of two numbers is nothing


def root_mean_square_norm(draw):
    """In parts, as exporters write it."""
    del draw

    def network(b, shape):
        square = b.node("ReduceMean", b.node("Pow", "image", b.const(np.float32(2))), b.const(np.array([-1])))
        root = b.node("Sqrt", b.node("Add", square, b.const(np.float32(1e-5))))
        return b.node("Mul", b.node("Div", "image", root), b.const(f32(shape[-1])))

    return sizes(smallest=3, largest=4), network


def pool(draw):
    name = draw(st.sampled_from(["AveragePool", "MaxPool"]))
    kernel = [draw(st.integers(1, 3)) for _ in range(3)]
    stride, pad = draw(st.integers(1, 3)), draw(st.integers(0, 1))
    up = draw(st.booleans()) and not pad and stride <= min(kernel)  # else a window may begin behind the last cell

    def network(b, shape):
        sides = len(shape) - 2
        pads = [min(pad, side - 1) for side in kernel[:sides]] * 2
        given = {"kernel_shape": kernel[:sides], "strides": [stride] * sides, "pads": pads, "ceil_mode": int(up)}
        return b.node(name, "image", **given)

    return st.tuples(st.just(1), st.integers(1, 3), *[st.integers(3, 5)] * draw(st.integers(1, 3))), network


def movement(draw):
    """Turned, cut, joined again, taken from and padded."""
    order, step = draw(st.permutations(range(3))), draw(st.sampled_from([1, 2, -1]))
    axis, pads = draw(st.integers(0, 2)), draw(st.lists(st.integers(0, 2), min_size=6, max_size=6))
    places = draw(st.lists(st.integers(0, 1), min_size=1, max_size=3))

    def network(b, shape):
        x = b.node("Transpose", "image", perm=order)
        ends = (0, 100) if step > 0 else (-1, -100)
        cut = b.node("Slice", x, *(b.const(np.array([number])) for number in (*ends, axis, step)))
        x = b.node("Concat", cut, b.node("Exp", x), axis=axis)
        x = b.node("Gather", x, b.const(np.array(places)), axis=axis)
        return b.node("Pad", x, b.const(np.array(pads)))

    return sizes(least=3, most=3, smallest=2, largest=4), network


def interpolation(draw):
    mode = draw(st.sampled_from([("linear", "half_pixel"), ("linear", "align_corners"), ("nearest", "asymmetric")]))
    made = [draw(st.integers(2, 9)) for _ in range(2)]

    def network(b, shape):
        wanted = b.const(np.array([*shape[:2], *made]))
        given = {"mode": mode[0], "coordinate_transformation_mode": mode[1], "nearest_mode": "floor"}
        return b.node("Resize", "image", "", "", wanted, **given)

    return st.tuples(st.just(1), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6)), network


NORMS = (along_an_axis, reduction, layer_norm, root_mean_square_norm)


@KINDS
@pytest.mark.parametrize("drawn", [function, two_operands, product, *NORMS, pool, movement, interpolation])
@DRAWN
@given(data=st.data(), together=st.booleans())
def test_whatever_the_sizes(drawn, kind, data, together):
    shapes, network = drawn(data.draw)
    shape = data.draw(shapes)
    assume(np.prod(shape) > 1)
    assert_is_derivative(lambda b: network(b, shape), shape, kind, opset=18, together=together)


def scaled(b, x):
    return b.node("Mul", x, b.const(f32(4)))


def test_quantisers_are_passed_straight_through():
    """As if nothing had been rounded: a quantiser and back (as IR in other units between), and a FakeQuantize."""

    def rounded(b):
        by = b.const(np.float32(1 / 32)), b.const(np.uint8(128))
        return scaled(b, b.node("DequantizeLinear", b.node("QuantizeLinear", b.node("Tanh", "image"), *by), *by))

    smooth = lambda b: scaled(b, b.node("Tanh", "image"))  # noqa: E731
    for kind in FORMATS:
        assert_is_derivative(rounded, (2, 3, 4), kind, reference=smooth)
    fake_quantiser(opset.tanh, (-1, 1, -1, 1), smooth)


def test_a_rectifier_that_a_quantiser_stands_for():
    """Quantisation tools fold it into a range that begins at zero."""
    shift = f32(4) - 1

    def rounded(b):
        by = b.const(np.float32(1 / 64)), b.const(np.uint8(0))
        x = b.node("Add", "image", b.const(shift))
        return scaled(b, b.node("DequantizeLinear", b.node("QuantizeLinear", x, *by), *by))

    smooth = lambda b: scaled(b, b.node("Relu", b.node("Add", "image", b.const(shift))))  # noqa: E731
    for kind in FORMATS:
        assert_is_derivative(rounded, (2, 3, 4), kind, reference=smooth)
    fake_quantiser(lambda x: opset.add(x, opset.constant(shift)), (0, 4, 0, 4), smooth)


def fake_quantiser(function, bounds, reference):
    image = opset.parameter((2, 3, 4), np.float32, name="image")
    rounded = opset.fake_quantize(function(image), *(opset.constant(np.float32(bound)) for bound in bounds), 256)
    made = opset.multiply(rounded, opset.constant(f32(4)))
    seed = opset.parameter((2, 2, 3, 4), np.float32, name="seed")
    image.output(0).set_names({"image"})
    seed.output(0).set_names({"seed"})
    assert_plain_is_derivative(ov.Model([made, seed], [image, seed]), reference, (2, 3, 4))
