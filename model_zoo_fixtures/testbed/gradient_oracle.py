"""Derivatives of an ONNX graph by central differences in float64, and those that the pullback writes into it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.models import Builder, as_format
from xai_insert.formats.backend import load
from xai_insert.methods.gradients.pullback import pullback

Array = np.ndarray
Network = Callable[[Builder], str]
STEP = 1e-5
VECTOR, MAP = (2, 3, 5), (1, 4, 6, 7)


def one(kind: str, *operands: Any, **attributes: Any) -> Network:
    """A network of one operator."""
    return lambda b: b.node(kind, "image", *(b.const(np.asarray(item)) for item in operands), **attributes)


def f32(*shape: int, low: float | None = None) -> Array:
    """Normal numbers, or their magnitudes above `low`."""
    array = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return array if low is None else np.abs(array) + np.float32(low)


class Erf(OpRun):
    """The evaluator's own rounds to 32 bits."""

    op_domain = ""

    def _run(self, x):
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """Likewise."""

    op_domain = ""

    def _run(self, x, approximate=None):
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))),)


class GridSample(OpRun):
    """Likewise. Bilinear; zeros or the border outside."""

    op_domain = ""

    def _run(self, x, points, align_corners=0, mode=None, padding_mode=None):
        made = np.zeros((*x.shape[:2], *points.shape[1:3]))
        sides = np.array(x.shape[:1:-1])  # width and height
        places = points * ((sides - 1) if align_corners else sides) / 2 + (sides - 1) / 2
        if padding_mode == "border":
            places = np.clip(places, 0, sides - 1)
        for n, i, j in np.ndindex(points.shape[:3]):
            across, down = (np.maximum(0, 1 - np.abs(places[n, i, j, a] - np.arange(sides[a]))) for a in (0, 1))
            made[n, :, i, j] = down @ x[n] @ across
        return (made.astype(x.dtype),)


def plain(network: Network, shape: tuple[int, ...], opset: int = 17, batch: int | str | None = None) -> onnx.ModelProto:
    """`image`, of `shape`, to `result`; with `batch` in place of its first size."""
    b = Builder(opset=opset)
    result = network(b)
    sizes = list(shape) if batch is None else [batch, *shape[1:]]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, sizes)
    return b.model(result, inputs=[image])


def in_float64(model: onnx.ModelProto) -> ReferenceEvaluator:
    """The same graph on numbers of 64 bits."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for tensor in twin.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in [*twin.graph.input, *twin.graph.output, *twin.graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return ReferenceEvaluator(twin, new_ops=[Erf, Gelu, GridSample])


def differences(model: onnx.ModelProto, x: Array, seeds: Array) -> Array:
    """Central differences of `sum(seed * result)` by `x`, for each of the seeds."""
    runner = in_float64(model)
    run = lambda a: runner.run(None, {"image": a})[0]  # noqa: E731
    x = x.astype(np.float64)
    found = np.zeros((len(seeds), x.size))
    for index in range(x.size):
        change = np.zeros(x.size)
        change[index] = STEP
        change = change.reshape(x.shape)
        slope = (run(x + change) - run(x - change)) / (2 * STEP)
        found[:, index] = (seeds * slope).reshape(len(seeds), -1).sum(axis=1)
    return found.reshape(len(seeds), *x.shape)


def written(model: onnx.ModelProto, kind: str, x: Array, seeds: Array, *, together: bool) -> tuple[Array, Array, Array]:
    """Derivative by `image` in a format, for seeds that run together or one seed; the result with and without it."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    given = seeds if together else seeds[0]
    twin.graph.input.append(helper.make_tensor_value_info("seed", TensorProto.FLOAT, given.shape))
    twin.graph.node.append(helper.make_node("Identity", ["seed"], ["kept"]))
    twin.graph.output.append(helper.make_tensor_value_info("kept", TensorProto.FLOAT, given.shape))
    outputs = pulled_back(as_format(twin, kind), {"image": x, "seed": given}, len(seeds) if together else None)
    before = run(as_format(model, kind), {"image": x})
    return outputs[2], outputs[0], before[0]


def pulled_back(model: onnx.ModelProto | ov.Model, feeds: Mapping[str, Array], count: int | None) -> list[Array]:
    """Every output of a model of the inputs `image` and `seed`, the derivative of its first result by `image` last."""
    loaded = load(model, {})
    graph = loaded.view()
    surgeon = loaded.surgeon()
    image, seed = graph.inputs
    result = graph.outputs[0]
    (gradient,) = pullback(surgeon, graph, [image], {result: surgeon.handle(seed)}, count)
    shape = (*([] if count is None else [count]), *image.sizes)
    gradient = surgeon.ops.mul(gradient, surgeon.ops.constant(np.ones((), np.float32)))  # never the input itself
    surgeon.add_output(gradient, "gradient", "float32", shape)
    return run(loaded.result_like(model), feeds)


def run(model: onnx.ModelProto | ov.Model, feeds: Mapping[str, Array]) -> list[Array]:
    """Every output, on the CPU in float32."""
    if isinstance(model, onnx.ModelProto):
        return oracle.session(model).run(None, feeds)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    by_name = {name: array for name, array in feeds.items() if any(name in port.get_names() for port in model.inputs)}
    return [np.array(array) for array in compiled(by_name).values()]


def assert_is_derivative(
    network: Network,
    shape: tuple[int, ...],
    kind: str,
    *,
    opset: int = 17,
    together: bool = False,
    x: Array | None = None,
    tolerance: float = 1e-4,
    reference: Network | None = None,
    batch: str | None = None,
) -> None:
    """The pullback is the derivative (of `reference`, which computes the same), and the result of the model stays.

    With `batch` the first size is open, under that name.
    """
    model = plain(network, shape, opset, batch)
    evaluated = model if reference is None else plain(reference, shape, opset)
    rng = np.random.default_rng(5)
    x = rng.standard_normal(shape) if x is None else x
    size = in_float64(evaluated).run(None, {"image": x.astype(np.float64)})[0].shape
    seeds = rng.standard_normal((2, *size)).astype(np.float32)
    wanted = differences(evaluated, x.astype(np.float32), seeds)
    got, after, before = written(model, kind, x.astype(np.float32), seeds, together=together)
    wanted = wanted if together else wanted[0]
    assert got.shape == wanted.shape
    scale = np.abs(wanted).max()
    assert scale > 1e-3, "the network is degenerate, so the comparison says nothing"
    np.testing.assert_allclose(got, wanted, atol=tolerance * scale, rtol=0)
    np.testing.assert_allclose(after, before, atol=1e-6 * np.abs(before).max(), rtol=0)


def assert_plain_is_derivative(
    model: ov.Model, reference: Network, shape: tuple[int, ...], tolerance: float = 1e-4
) -> None:
    """The pullback through a model of the inputs `image` and `seed`, of two seeds, is the derivative of `reference`."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal(shape).astype(np.float32)
    seeds = rng.standard_normal(tuple(model.inputs[1].shape)).astype(np.float32)
    wanted = differences(plain(reference, shape, 17, None), x, seeds)
    got = pulled_back(model, {"image": x, "seed": seeds}, len(seeds))[-1]
    np.testing.assert_allclose(got, wanted, atol=tolerance * np.abs(wanted).max(), rtol=0)
