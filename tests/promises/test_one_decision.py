"""A dry run, the plan and the insertion say the same: form, cost, reason and refusal."""

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import instance_models, models
from model_zoo_fixtures.testbed.quick import some
from model_zoo_fixtures.testbed.unknown_models import UNKNOWN, head
from xai_insert import Options, errors, insert, plan_insertion
from xai_insert.formats.backend import load
from xai_insert.pipeline import splice
from xai_insert.tasks.choose import make_plan

MASKED = {
    **models.MASKED,
    **{name: head(change) for name, change in UNKNOWN.items()},
    "softmax over the batch": head(lambda b, x: b.node("Softmax", x, axis=0)),
    "rows of the batch joined": head(
        lambda b, x: b.node("Add", x, b.node("ReduceMean", x, axes=[0], keepdims=1)),
    ),
}
NETWORKS = {**models.CLOSED, **MASKED}
MEASURED = {"check", "output_difference", "map_difference", "place", "seconds"}


def said(report):
    return {key: value for key, value in report.as_dict().items() if key not in MEASURED}


@pytest.mark.parametrize("kind", some(models.FORMATS, "onnx"))
@pytest.mark.parametrize("name", NETWORKS)
def test_a_dry_run_says_what_the_insertion_does(name, kind):
    model = models.as_format(models.classifier(NETWORKS[name]), kind)
    done = insert(model, Options(check=name != "softmax over the batch")).report  # of one image its map is constant
    planned = plan_insertion(model)
    assert said(planned) == said(done)
    assert done.form == ("masked runs" if name in MASKED and kind == "onnx" else done.form)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_plan_is_what_is_spliced(name):
    loaded = load(models.classifier(NETWORKS[name]), {})
    graph = loaded.view()
    plan = make_plan(loaded, graph, Options())
    assert splice(loaded, graph, plan, Options()).plan == plan


@pytest.mark.parametrize(
    "options",
    [Options(top_k=2), Options(saliency_size=(3, 4)), Options(feature_vector=True, output_dtype="f32")],
    ids=["top-k", "size", "feature vector"],
)
@pytest.mark.parametrize("name", ["global average pool", "attention"])
def test_options_change_both_alike(name, options):
    model = models.classifier(NETWORKS[name])
    assert said(plan_insertion(model, options)) == said(insert(model, options).report)


def branching(b, x):
    """A head with a subgraph, which ONNX's editor does not copy."""
    parts = [
        helper.make_graph(
            [helper.make_node(kind, [x], [f"{kind}_inside"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"{kind}_inside", TensorProto.FLOAT, [None, models.CHANNELS])],
        )
        for kind in ("Tanh", "Neg")
    ]
    above = b.node("Greater", b.node("ReduceMax", x, keepdims=0), b.const(np.array(0.2, np.float32)))
    return b.node("If", above, then_branch=parts[0], else_branch=parts[1])


REFUSED = {
    "a subgraph in the head": (lambda: models.classifier(head(branching)), Options()),
    "no pooled feature": (lambda: instance_models.listed("pasted"), Options(feature_vector=True)),
    "too many positions": (
        lambda: models.classifier(models.MASKED["attention"], size=(300, 300)),
        Options(target_layer="Relu_4"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_dry_run_refuses_what_the_insertion_refuses(name):
    make, options = REFUSED[name]
    for check in (True, False):
        told = []
        for function in (plan_insertion, insert):
            with pytest.raises(errors.XaiInsertError) as caught:
                function(make(), dataclasses.replace(options, check=check))
            told.append((type(caught.value), str(caught.value)))
        assert told[0] == told[1]


def test_a_dry_run_says_that_nothing_is_proved_yet():
    model = models.classifier(models.CLOSED["global average pool"])
    assert plan_insertion(model).check == "not yet"
    text = plan_insertion(model).text()
    assert "checked  not yet" in text
    assert "if the closed form is not the definition, masked runs" in text
    left_out = insert(model, Options(check=False)).report
    assert left_out.check == plan_insertion(model, Options(check=False)).check == "left out"
    assert "checked  left out (--no-check)" in left_out.text()
    assert insert(model).report.check == "done"
