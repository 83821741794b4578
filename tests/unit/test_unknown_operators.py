"""An operator that the toolkit does not know may mix any axes: never elementwise, in either format."""

import numpy as np
import onnx
import pytest
from onnx import helper

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.recipro_oracle import assert_is_definition
from model_zoo_fixtures.testbed.unknown_models import UNKNOWN, head
from xai_insert import Options, insert


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_operator_in_the_head_means_masked_runs(name, kind, check):
    model = models.as_format(models.classifier(head(UNKNOWN[name])), kind)
    options = Options(output_dtype="f32", check=check)
    form = insert(model, options).report.form
    assert_is_definition(model, 2, (2, 3), form=form, options=options)
    if kind == "onnx":
        assert form == "masked runs"


def test_the_reason_names_the_operator():
    report = insert(models.classifier(head(UNKNOWN["sums along the batch"]))).report
    assert report.form == "masked runs"
    assert report.reason == "it is not known which axes CumSum 'CumSum_7' mixes"


UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish LeakyRelu Log "
    "Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh ThresholdedRelu"
)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("operator", UNARY.split())
def test_elementwise_operators_keep_the_closed_form(operator, kind):
    def change(b, x):
        inside = b.node("Mul", b.node("Sigmoid", x), b.const(np.array(0.9, np.float32)))
        if operator == "Acosh":
            inside = b.node("Add", inside, b.const(np.array(1, np.float32)))
        return b.node("Add", x, b.node(operator, inside))

    model = models.as_format(models.classifier(head(change), opset=18), kind)
    assert_is_definition(model, 2, (2, 3))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_logical_and_variadic_operators_keep_the_closed_form(kind):
    def change(b, x):
        zero = b.const(np.array(0.1, np.float32))
        odd = b.node("Not", b.node("And", b.node("Greater", x, zero), b.node("Less", x, b.node("Neg", zero))))
        bad = b.node("Or", b.node("IsNaN", x), b.node("Xor", odd, b.node("IsInf", x)))
        mixed = b.node("Mean", x, b.node("Sum", x, b.node("Exp", x), zero))
        return b.node("Where", bad, mixed, x)

    model = models.as_format(models.classifier(head(change)), kind)
    assert_is_definition(model, 2, (2, 3))


def test_fused_activations_of_onnxruntime_keep_the_closed_form():
    def change(b, x):
        name = b.node("FastGelu", x, b.weight(models.CHANNELS), domain="com.microsoft")
        return b.node("QuickGelu", name, domain="com.microsoft")

    b = models.Builder()
    result = head(change)(b)
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, models.SIDE, models.SIDE])
    scores = helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, ["N", models.CLASSES])
    graph = helper.make_graph(b.nodes, "net", [image], [scores], b.weights)
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    report = insert(helper.make_model(graph, opset_imports=sets, ir_version=8)).report
    assert report.form == "closed form"
    assert report.map_difference < 1e-5
