"""OpenVINO reads each operation that a branch in ONNX is written in, and gives what onnxruntime gives.

The rest of a branch is a Loop (`tests/oracles/test_reshaped.py`) and copies of the model's own operations. So OpenVINO
reads every inserted ONNX file whose plain one it reads, and no insertion has to import it to know.
"""

import inspect

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import openvino as ov
import pytest

from model_zoo_fixtures.testbed import models
from xai_insert import Options, errors, insert
from xai_insert.formats.backend import load
from xai_insert.formats.onnx.model import OnnxModel
from xai_insert.graph.ops import Ops, Windows

RNG = np.random.default_rng(0)
MAP = RNG.standard_normal((2, 4, 6, 6), np.float32)
ROWS = RNG.standard_normal((2, 5), np.float32)
KERNEL = RNG.standard_normal((4, 1, 3, 3), np.float32)
BOXES = np.float32([[[0, 0, 4, 4], [0, 0, 4, 4.5], [10, 10, 14, 14]]])
SCORES = np.float32([[[0.9, 0.8, 0.7]]])
LIES = Windows((2, 2), (1, 1), (1, 1), (1, 1), 4)
TWO = np.array([2], np.int64)


def given(op, x, array):
    """A constant that is not known before the model runs."""
    nothing = op.mul(op.reduce(x, "max", [0, 1, 2, 3]), op.constant(np.float32(0)))
    return op.add(op.constant(array), op.reshape(nothing, [1] * array.ndim))


CASES = {
    "constant": lambda op, x, r: op.constant(ROWS),
    "add": lambda op, x, r: op.add(x, x),
    "sub": lambda op, x, r: op.sub(x, op.constant(MAP)),
    "mul": lambda op, x, r: op.mul(x, x),
    "div": lambda op, x, r: op.div(x, op.constant(np.float32(3))),
    "maximum": lambda op, x, r: op.maximum(x, op.constant(np.float32(0))),
    "sqrt": lambda op, x, r: op.sqrt(op.mul(x, x)),
    "floor": lambda op, x, r: op.floor(x),
    "nonzero_or": lambda op, x, r: op.nonzero_or(op.maximum(x, op.constant(np.float32(0))), op.constant(np.float32(1))),
    "matmul": lambda op, x, r: op.matmul(x, x),
    "matmul_transposed": lambda op, x, r: op.matmul_transposed(r, r),
    "conv1x1": lambda op, x, r: op.conv1x1(x, op.constant(np.ones((3, 4, 1, 1), np.float32))),
    "mixed_channels": lambda op, x, r: op.mixed_channels(op.constant(np.ones((2, 3, 4), np.float32)), x, [2, 4]),
    "reduce": lambda op, x, r: op.reduce(op.reduce(x, "mean", [2]), "max", [3]),
    "reshape": lambda op, x, r: op.reshape(x, [op.size(x, 0), -1]),
    "unsqueeze": lambda op, x, r: op.unsqueeze(r, [1]),
    "transpose": lambda op, x, r: op.transpose(x, [0, 2, 3, 1]),
    "slice": lambda op, x, r: op.slice(x, 1, 1, 3),
    "concat": lambda op, x, r: op.concat([x, x], 1),
    "expand": lambda op, x, r: op.expand(op.unsqueeze(r, [0]), [3, 1, 1]),
    "softmax": lambda op, x, r: op.softmax(x, 1),
    "resize": lambda op, x, r: op.resize(x, 9, op.size(x, 3)),
    "largest": lambda op, x, r: op.largest(r, 3),
    "gather": lambda op, x, r: op.gather(r, op.constant(np.array([1, 0, 1]))),
    "equal": lambda op, x, r: op.equal(r, op.constant(ROWS)),
    "greater": lambda op, x, r: op.greater(r, op.constant(np.float32(0))),
    "sigmoid": lambda op, x, r: op.sigmoid(x),
    "top": lambda op, x, r: op.top(r, op.constant(TWO))[0],
    "take": lambda op, x, r: op.take(r, op.top(r, op.constant(TWO))[1], 1),
    "suppress": lambda op, x, r: op.suppress(given(op, x, BOXES), given(op, x, SCORES), 2, 0.5, 0.1),
    "mark": lambda op, x, r: op.mark(op.mul(r, op.constant(np.float32(0))), op.constant(np.array([[0, 1], [1, 4]]))),
    "cumulative": lambda op, x, r: op.cumulative(x, 2),
    "isolated": lambda op, x, r: op.isolated(r, 5),
    "in_planes": lambda op, x, r: op.in_planes(x, lambda maps: op.sub(maps, op.reduce(maps, "max", [2, 3]))),
    "numbers": lambda op, x, r: op.numbers(op.size(r, 1)),
    "function": lambda op, x, r: op.concat([op.function(name, x) for name in ("exp", "erf", "tanh", "sin", "cos")], 1),
    "power": lambda op, x, r: op.power(op.mul(x, x), op.constant(np.float32(1.5))),
    "convolve": lambda op, x, r: op.convolve(x, op.constant(KERNEL), LIES),
    "spread": lambda op, x, r: op.spread(x, op.constant(KERNEL), LIES, [1, 1]),
    "interleave": lambda op, x, r: op.interleave([x, None, None, None], 2) or x,  # None in ONNX
    "pad": lambda op, x, r: op.pad(x, [0, 0, 1, 2], [0, 0, 0, 1]),
    "pick": lambda op, x, r: op.pick(x, [3, 1], 1),
    "cast": lambda op, x, r: op.cast(x, "int64"),
    "size": lambda op, x, r: op.size(x, 2),
    "number": lambda op, x, r: op.number(op.size(x, 2)),
}


def test_every_operation_is_here():
    assert set(CASES) == {name for name, _ in inspect.getmembers(Ops, inspect.isfunction) if name[0] != "_"}


@pytest.mark.parametrize("opset", [13, 18])
def test_both_runtimes_give_the_same(opset):
    b = models.Builder(opset=opset, size=(6, 6), channels=4, batch=2)
    loaded = load(b.model(b.node("Relu", "image")), {})
    image = next(iter(loaded.view().inputs))
    surgeon = loaded.surgeon()
    op, x = surgeon.ops, surgeon.handle(image)
    rows = op.slice(op.reshape(x, [2, -1]), 1, 0, 5)
    for name, write in CASES.items():
        surgeon.add_output(op.cast(write(op, x, rows), "float64"), name, "float64", (None,))
    model = ir.to_proto(loaded.native)
    for output in model.graph.output[1:]:
        output.type.tensor_type.ClearField("shape")
    content = model.SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    wanted = session.run([*CASES], {"image": MAP})
    compiled = ov.Core().compile_model(ov.Core().read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([MAP])
    for name, array in zip(CASES, wanted, strict=True):
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_check_reads_the_model_in_openvino_if_asked(monkeypatch):
    model = models.classifier(models.CLOSED["mean"])
    asked = []
    own = OnnxModel.elsewhere
    monkeypatch.setattr(OnnxModel, "elsewhere", lambda self: asked.append(own(self)) or asked[-1])
    insert(model)
    assert not asked
    insert(model, Options(check_in="openvino"))
    assert len(asked) == 1


def test_another_map_in_openvino_is_refused(monkeypatch):
    """The runner is that of a model whose map is another: of other weights in front of it."""
    b = models.Builder(rng=np.random.default_rng(1))
    other = insert(b.model(models.CLOSED["mean"](b))).model
    monkeypatch.setattr(OnnxModel, "elsewhere", lambda self: load(other, {}).runner())
    with pytest.raises(errors.CheckFailedError, match="nothing was written"):
        insert(models.classifier(models.CLOSED["mean"]), Options(check_in="openvino"))


def test_a_model_that_openvino_does_not_read_is_refused_in_a_line(monkeypatch):
    def unread(self):
        raise errors.ModelFileError("OpenVINO cannot read the file: no operation Foo")

    monkeypatch.setattr(OnnxModel, "elsewhere", unread)
    with pytest.raises(errors.CheckFailedError, match="no operation Foo; nothing was written"):
        insert(models.classifier(models.CLOSED["mean"]), Options(check_in="openvino"))
