"""What an ONNX model says about what was added: names of sizes, texts for viewers, nothing that a runtime warns of."""

import subprocess
import sys

import onnx
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.explaining import SHAPES
from xai_insert import Options, insert


@pytest.mark.parametrize("batch", ["N", "frames"])
def test_an_open_batch_keeps_its_name(batch):
    model = models.classifier(models.CLOSED["mean"], batch=batch)
    inserted = insert(model, Options(feature_vector=True)).model
    names = {output.name: output.type.tensor_type.shape.dim[0].dim_param for output in inserted.graph.output}
    assert names["saliency_map"] == names["feature_vector"] == batch


def test_inputs_that_do_not_agree_name_no_batch():
    model = models.classifier(models.CLOSED["mean"], batch="N")
    model.graph.input.append(onnx.helper.make_tensor_value_info("unused", 1, ["M", 2]))
    (*_, added) = insert(model).model.graph.output
    assert added.type.tensor_type.shape.dim[0].dim_param == "saliency_map_0"


def test_added_nodes_say_so():
    inserted = insert(models.classifier(models.CLOSED["mean"])).model
    texts = {node.name: node.doc_string for node in inserted.graph.node if node.name.startswith("xai/")}
    assert len(texts) > 3
    assert all("added by xai-insert" in text for text in texts.values())
    assert inserted.graph.output[-1].doc_string == "saliency_map, added by xai-insert"


@pytest.mark.parametrize("name", ["shapes_cnn", "shapes_segmenter", "shapes_vit"])
def test_onnxruntime_warns_of_nothing(tmp_path, name):
    insert(SHAPES / f"{name}.onnx").save(tmp_path / "xai.onnx")
    code = "import onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "xai.onnx"], capture_output=True, text=True, check=True
    )
    assert "Removing initializer" not in run.stderr
