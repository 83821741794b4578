"""Metadata that another tool has damaged: one line, and no run."""

import onnx
import pytest

from model_zoo_fixtures.testbed.explaining import IMAGES, call
from xai_insert import errors
from xai_insert.explain.metadata import require_sound

NAMES = ["logits", "saliency_map"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("first_label", "99999999999999999999"),
        ("first_label", "\N{SUPERSCRIPT TWO}"),
        ("classes", "1 2"),
        ("background", "some"),
        ("classes_at", "1"),
        ("score_at", "-1"),
        ("bins_at", "0"),
        ("threshold", "nan"),
        ("rectangle", "0 0 1"),
        ("suppression_overlap", ""),
    ],
)
def test_entries_that_are_no_such_numbers_are_refused(key, text):
    with pytest.raises(errors.ModelFileError, match=f"{key!r} is {text!r}"):
        require_sound({key: text}, NAMES)


def test_entries_as_they_are_written():
    about = {"first_label": "-1", "classes": "", "background": "none", "classes_at": "0", "rectangle": "0 0 .5 1"}
    require_sound(about | {"threshold": "1e-3", "frames": "2 0.5"}, NAMES)


def test_the_command_line_says_so(inserted_shapes, tmp_path):
    model = onnx.load(inserted_shapes / "shapes.onnx")
    model.metadata_props.add(key="xai_insert.first_label", value="9" * 20)
    onnx.save(model, tmp_path / "model.onnx")
    result = call(tmp_path / "model.onnx", IMAGES[0], "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "'first_label'" in result.stderr
