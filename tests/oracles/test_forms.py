"""A part of the matrix that `python -m benchmarks.exactness.forms` measures, see docs/forms.md."""

import re

import pytest

from benchmarks.exactness import forms
from benchmarks.lib.tables import Setting

PART = ["ONNX", "saved, extended", "fused as vit", "nested functions", "float16", "QDQ", "QOperator", "dynamic"]
PART += ["4 bits, dequantised", "IR version 10"]
LATER = ["then saved, all", "then saved as IR"]


@pytest.mark.parametrize("architecture", ["ResNet", "DeiT"])
def test_a_part_of_the_matrix(architecture):
    cells = list(forms.measured(architecture, PART + LATER))
    assert [cell.form for cell in cells] == PART + LATER
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
