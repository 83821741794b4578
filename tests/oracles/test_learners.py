"""Trees, linear models and support vectors of `ai.onnx.ml` behind features: their scores by masked runs."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.fused_models import RAW, WANTED, Net, images
from xai_insert import Options, insert
from xai_insert.errors import CheckFailedError

KINDS = {
    "tree": (
        "TreeEnsembleClassifier",
        {
            "nodes_treeids": [0] * 7,
            "nodes_nodeids": list(range(7)),
            "nodes_featureids": [0, 3, 5, 0, 0, 0, 0],
            "nodes_values": [0.01, 0.008, 0.012, 0.0, 0.0, 0.0, 0.0],
            "nodes_modes": ["BRANCH_LEQ"] * 3 + ["LEAF"] * 4,
            "nodes_truenodeids": [1, 3, 5, 0, 0, 0, 0],
            "nodes_falsenodeids": [2, 4, 6, 0, 0, 0, 0],
            "class_treeids": [0] * 8,
            "class_nodeids": [3, 3, 4, 4, 5, 5, 6, 6],
            "class_ids": [0, 1] * 4,
            "class_weights": [0.9, 0.1, 0.2, 0.8, 0.6, 0.4, 0.3, 0.7],
            "classlabels_int64s": [0, 1],
            "post_transform": "NONE",
        },
    ),
    "linear": (
        "LinearClassifier",
        {"coefficients": np.linspace(-1, 1, 16).tolist(), "intercepts": [0.1, -0.1], "classlabels_ints": [0, 1]},
    ),
    "support vectors": (
        "SVMClassifier",
        {
            "support_vectors": np.linspace(-0.03, 0.03, 32).tolist(),
            "coefficients": [1.0, -0.5, 0.7, -1.2],
            "rho": [0.1],
            "vectors_per_class": [2, 2],
            "kernel_type": "RBF",
            "kernel_params": [50.0, 0.0, 3.0],
            "prob_a": [-1.0],
            "prob_b": [0.1],
            "classlabels_ints": [0, 1],
        },
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_learners_behind_features(kind):
    """The scores of the learner are explained by masked runs; its label stays as it is."""
    op, attributes = KINDS[kind]
    n = Net(15)
    x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[16, 16], pads=[1] * 4))
    n(op, n("Flatten", n("GlobalAveragePool", x)), domain="ai.onnx.ml", outputs=["label", "scores"], **attributes)
    model = n.model("scores", classes=2)
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["b"]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    result = insert(model, RAW)
    assert result.report.form == "masked runs"
    assert result.report.map_difference <= 1e-5
    found = oracle.run(result.model, images())
    plain = oracle.run(model, images())
    assert np.array_equal(found["label"], plain["label"])
    assert found["saliency_map"].shape == (2, 2, 4, 4)
    assert np.ptp(found["saliency_map"]) > 0


def steps(thresholds, *, is_relative=False):
    """One tree behind the mean of a map; or behind how large it is beside the maximum."""
    op, attributes = KINDS["tree"]
    n = Net(15)
    x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[16, 16], pads=[1] * 4))
    pooled = n("GlobalAveragePool", x)
    pooled = n("Div", pooled, n("Add", n("GlobalMaxPool", x), n.const(np.float32(1e-6)))) if is_relative else pooled
    far = {**attributes, "nodes_values": [*thresholds, 0.0, 0.0, 0.0, 0.0]}
    n(op, n("Flatten", pooled), domain="ai.onnx.ml", outputs=["label", "scores"], **far)
    model = n.model("scores", classes=2)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


def test_learners_of_which_one_cell_passes_thresholds_in_loud_images():
    """Scores in steps: in noise a mean of one cell lies below every threshold, in images of 0 to 255 it does not."""
    model = steps([0.9, 0.8, 0.95])
    result = insert(model, RAW)
    assert result.report.map_difference == 0
    assert "the scores change in steps" in result.report.reason
    parts = oracle.Parts(model, result.report.target["name"], "scores")
    for loudness in (1, 64):
        image = loudness * images()
        maps = oracle.run(result.model, image)["saliency_map"]
        np.testing.assert_array_equal(maps, parts.definition(image, (2, 3)).reshape(maps.shape))
        assert (np.ptp(maps, axis=(2, 3)) > 0).all() == (loudness > 1)


def test_learners_of_which_one_cell_passes_no_threshold():
    """One cell of sixteen gives a sixteenth of its maximum in any image, and the words say so, not of a dead head."""
    model = steps([0.2, 0.25, 0.15], is_relative=True)
    with pytest.raises(CheckFailedError, match=r"scores change in steps.*--method activation-map"):
        insert(model, RAW)
    assert insert(model, Options(method="activation-map")).report.output_difference == 0


@pytest.mark.parametrize("kind", KINDS)
def test_learners_whose_scores_leave_as_maps(kind):
    """No output tells the sizes of the scores; those before the ZipMap are explained, and the maps are kept."""
    op, attributes = KINDS[kind]
    n = Net(15)
    x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[16, 16], pads=[1] * 4))
    scaled = n("Scaler", n("Flatten", n("GlobalAveragePool", x)), domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
    n(op, scaled, domain="ai.onnx.ml", outputs=["label", "scores"], **attributes)
    n("ZipMap", "scores", domain="ai.onnx.ml", outputs=["named"], classlabels_strings=["cat", "dog"])
    model = n.model("scores", classes=2)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    wanted = oracle.run(insert(model, WANTED).model, images())["saliency_map"]
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output[0].CopyFrom(helper.make_value_info("named", helper.make_sequence_type_proto(kind)))
    new = insert(model, RAW).model
    found = oracle.run(new, images())
    assert np.array_equal(found["saliency_map"], wanted)
    assert found["named"] == oracle.run(model, images())["named"]
    assert set(found["named"][0]) == {"cat", "dog"}
