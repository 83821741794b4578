"""Metadata that another tool has damaged: one line, and no run."""

import onnx
import pytest

from model_zoo_fixtures.testbed.explaining import IMAGES, call
from xai_insert import errors
from xai_insert.layouts.record import Layout


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
        Layout.read({key: text}, outputs=1)


def test_entries_as_they_are_written():
    about = {"first_label": "-1", "classes": "", "background": "none", "classes_at": "0", "rectangle": "0 0 .5 1"}
    read = Layout.read(about | {"threshold": "1e-3", "frames": "2 0.5"}, outputs=1)
    assert read == Layout(first_label=-1, classes_at=0, rectangle=(0, 0, 0.5, 1), threshold=1e-3, frames=(2, 0.5))


LAYOUTS = {
    "detector": Layout(3, first_label=1, box_format="corners-pixels", suppression_overlap=0.5),
    "segmenter": Layout(21, classes_at=1, class_axis=3),
    "instances": Layout(2, background=0, masks="pasted", box_format="centres-shares"),
    "anomalies": Layout(map_at=0, score_at=1, label_at=2, threshold=0.25),
    "key points": Layout(17, bins_at=(1, 0), rectangle=(0.0, 0.25, 1.0, 0.75)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_written_is_read(name):
    layout = LAYOUTS[name]
    assert Layout.read(layout.written(), outputs=3) == layout
    assert Layout.read(layout.written("background", "class_axis"), outputs=3) == layout


def test_a_label_that_was_written_for_the_maps_of_boxes_counts():
    assert Layout.read({"per_box_first_label": "1"}, 1).first_label == 1
    assert Layout.read({"first_label": "0", "per_box_first_label": "1"}, 1).first_label == 0


def test_the_command_line_says_so(inserted_shapes, tmp_path):
    model = onnx.load(inserted_shapes / "shapes.onnx")
    model.metadata_props.add(key="xai_insert.first_label", value="9" * 20)
    onnx.save(model, tmp_path / "model.onnx")
    result = call(tmp_path / "model.onnx", IMAGES[0], "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "'first_label'" in result.stderr
