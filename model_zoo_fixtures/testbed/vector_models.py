"""Models that give vectors: embeddings, images compared with texts, and two images; built by hand."""

import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import models

WIDTH, WORDS, LENGTH = models.CLASSES, 11, 4
CHANNELS = models.CHANNELS
TOLERANCE = 1e-5
IMAGES = ("image", "other")


def projected(b):
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), models.CHANNELS)


def by_operator(b, x):
    return b.node("LpNormalization", x, axis=1, p=2)


def by_norm(b, x):
    length = b.node("Clip", b.node("ReduceL2", x, axes=[1], keepdims=1), b.const(np.array(1e-12, np.float32)))
    return b.node("Div", x, b.node("Expand", length, b.node("Shape", x)))


def by_squares(b, x):
    total = b.node("ReduceSum", b.node("Mul", x, x), b.const(np.array([1])), keepdims=1)
    return b.node("Div", x, b.node("Sqrt", b.node("Add", total, b.const(np.array(1e-12, np.float32)))))


def by_reciprocal(b, x):
    total = b.node("ReduceSum", b.node("Pow", x, b.const(np.array(2, np.float32))), b.const(np.array([1])), keepdims=1)
    return b.node("Mul", x, b.node("Reciprocal", b.node("Sqrt", total)))


NORMS = {"operator": by_operator, "norm": by_norm, "squares": by_squares, "reciprocal": by_reciprocal}


def model_of(norm_of=by_operator, kind="onnx", **settings):
    b = models.Builder(**settings)
    x = projected(b)
    return models.as_format(b.model(x if norm_of is None else norm_of(b, x)), kind)


def run(model, images, **more):
    """Outputs by name; `more` are further inputs."""
    if not isinstance(model, ov.Model):
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_outputs()]
        return dict(zip(names, session.run(None, {"image": images, **more}), strict=True))
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"image": images, **more})
    return {min(port.get_names()): np.array(value) for port, value in found.items()}


def assert_close(got, wanted):
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE * np.abs(wanted).max())
    assert np.ptp(wanted, axis=(-2, -1)).min() > 1e-4


def text_embedding(b):
    words = b.node("Gather", b.weight(WORDS, WIDTH, scale=1), "ids", axis=0)
    return by_norm(b, b.node("ReduceMean", words, axes=[1], keepdims=0))


def scaled(b, x):
    return b.node("Mul", x, b.node("Exp", b.const(np.array(2.5, np.float32))))


def texts_first(b, image, text):
    """transformers: of the texts, and the transpose of that; SigLIP adds a bias."""
    product = b.node("MatMul", text, b.node("Transpose", image, perm=[1, 0]))
    of_text = b.node("Add", scaled(b, product), b.const(np.array([-3], np.float32)))
    return [b.node("Transpose", of_text, perm=[1, 0]), of_text, text, image]


def both(form, tower=projected, *, frozen=None, batch="N"):
    b = models.Builder(size=(8, 12), batch=batch)
    image = by_squares(b, tower(b))
    text = text_embedding(b) if frozen is None else b.const(frozen)
    outputs = [name for name in form(b, image, text) if frozen is None or name != text]
    kinds = [("image", TensorProto.FLOAT, [batch, 3, 8, 12]), ("ids", TensorProto.INT64, ["P", LENGTH])]
    inputs = [helper.make_tensor_value_info(*kind) for kind in kinds[: 2 if frozen is None else 1]]
    return b.model(*outputs, inputs=inputs), image


def pooled(b, x):
    return b.node("Flatten", b.node("GlobalAveragePool", x))


def joined(b, first, second):
    """RGB-D: late fusion of two streams by a classifier of both."""
    return b.linear(b.node("Concat", pooled(b, first), pooled(b, second), axis=1), 2 * CHANNELS)


def two(head, *, batch="N"):
    """A model of two images, and the names of the maps that its head reads."""
    b = models.Builder(batch=batch)
    features = [b.backbone(name) for name in IMAGES]
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, 12, 12]) for name in IMAGES]
    return b.model(head(b, *features), inputs=kinds), features
