"""A part of the matrix that `python -m benchmarks.exactness.forms` measures, see docs/forms.md."""

import re

import numpy as np
import onnx
import pytest

from benchmarks.exactness import form_tools, forms
from benchmarks.lib.tables import Setting
from model_zoo_fixtures.testbed import deployed, oracle

PART = ["ONNX", "saved, extended", "nested functions", "float16", "QDQ", "QOperator", "IR version 10"]
LATER = ["then saved, all", "then saved as IR"]
OF_TRANSFORMERS = ["fused as vit", "dynamic", "4 bits, dequantised"]


@pytest.mark.long
@pytest.mark.parametrize(("architecture", "part"), [("ResNet", PART + LATER), ("DeiT", OF_TRANSFORMERS)])
def test_a_part_of_the_matrix(architecture, part):
    cells = list(forms.measured(architecture, part))
    assert [cell.form for cell in cells] == part
    for cell in cells:
        assert "closed form" in cell.method or cell.form in LATER, cell
        assert cell.moved <= 5e-6, cell
        if cell.form in forms.FLOATS:
            assert cell.difference <= 1e-5, cell
        elif cell.shifted <= 0.05:
            assert cell.correlation >= 0.95, cell


def test_a_row_replaces_its_like_and_leaves_the_others(tmp_path):
    setting = Setting("command", {}, {"onnx": "1"})
    page = tmp_path / "forms.md"
    for name, difference in (("ViT", 1.0), ("ResNet", 2.0), ("ViT", 3.0)):
        cell = forms.Cell("ONNX", "method, form", difference, 1.0, 0.0, 0.0)
        forms.write_section(page, name, [cell, forms.Cell("QDQ", "refused: why")], setting)
    forms.write_section(page, "ViT", [forms.Cell("IR", "method, form")], setting)
    text = page.read_text()
    assert text.count("| IR |") == 1
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["ResNet", "ViT"]
    assert "3.0e+00" in text
    assert "1.0e+00" not in text
    assert "| QDQ | refused: why |" in text


@pytest.fixture
def one_image(tmp_path):
    """A transformer that takes one image, so that its sizes are constants."""
    model = onnx.load(deployed.SHAPES / "shapes_vit.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path := tmp_path / "plain.onnx")
    return path


@pytest.mark.parametrize("version", [9, 10, 15])
def test_a_transformer_in_an_old_set_computes_the_same(version, one_image, tmp_path):
    made = form_tools.BEFORE[f"set {version}"](one_image, tmp_path / "made.onnx")
    assert made.opset_import[0].version == version
    image = deployed.scenes(1)
    wanted, found = (oracle.run(model, image) for model in (onnx.load(one_image), made))
    for name, scores in wanted.items():
        assert np.allclose(found[name], scores, rtol=0, atol=1e-5 * np.abs(scores).max())


def test_a_set_without_the_operator_is_refused(one_image, tmp_path):
    with pytest.raises(onnx.checker.ValidationError, match="Erf"):
        form_tools.BEFORE["set 8"](one_image, tmp_path / "made.onnx")
