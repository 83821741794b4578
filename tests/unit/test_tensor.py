"""Formulas over `Tensor` against NumPy, run in onnxruntime."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from model_zoo_fixtures.testbed import models
from xai_insert.formats.backend import load
from xai_insert.methods.tensor import Tensor, tensor

A, B = np.float32([[-1.5, 0.0, 2.0]]), np.float32([[0.5, -2.0, 4.0]])
FORMULAS = {
    "blend": (lambda a, b: b * a + (1.0 - b) * 3.0, lambda a, b: b * a + (1 - b) * 3),
    "quotient": (lambda a, b: a / b - A, lambda a, b: a / b - A),
    "product": (lambda a, b: a.sum(1) @ b, lambda a, b: a.sum(1, keepdims=True) @ b),
    "least": (lambda a, b: a.at_most(b).at_least(-1.0), lambda a, b: np.maximum(np.minimum(a, b), -1)),
    "tent": (lambda a, b: a.tent() + a.magnitude(), lambda a, b: np.maximum(1 - abs(a), 0) + abs(a)),
    "greater": (lambda a, b: a.exceeds(b), lambda a, b: (a > b).astype(np.float32)),
    "rounded": (lambda a, b: (b * b).sqrt().floor(), lambda a, b: np.floor(np.sqrt(b * b))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_is_what_numpy_makes_of_it(name):
    emitted, expected = FORMULAS[name]
    loaded = load(models.classifier(models.CLOSED["mean"]), {})
    surgeon = loaded.surgeon()
    op = surgeon.ops
    result = emitted(Tensor(op, op.constant(A)), tensor(op, B)).handle
    surgeon.add_output(result, "result", "float32", expected(A, B).shape)
    session = ort.InferenceSession(ir.to_proto(loaded.native).SerializeToString())
    feed = {session.get_inputs()[0].name: np.zeros((1, 3, models.SIDE, models.SIDE), np.float32)}
    np.testing.assert_allclose(session.run(["result"], feed)[0], expected(A, B), rtol=1e-6)
