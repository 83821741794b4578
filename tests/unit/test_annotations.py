"""Boxes that people have drawn: where they lie, whose they are, and what is said of damaged files."""

import json
from pathlib import Path

import numpy as np
import pytest

from xai_insert.evaluate.annotations import class_numbers, read_annotations
from xai_insert.evaluate.errors import AnnotationError
from xai_insert.evaluate.subject import Prepared, in_input
from xai_insert.explain.preprocessing import View

VOC = """<annotation><size><width>100</width><height>50</height></size>
<object><name> cat </name><bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>25</ymax></bndbox></object>
</annotation>"""


def coco(**changes):
    data = {
        "images": [
            {"id": 7, "file_name": "a/one.jpg", "width": 100, "height": 50},
            {"id": 8, "file_name": "b/one.jpg", "width": 100, "height": 50},
            {"id": 9, "file_name": "two.jpg"},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [10, 5, 10, 20]},
            {"image_id": 8, "category_id": 5, "bbox": [0, 0, 100, 50]},
            {"image_id": 9, "category_id": 5, "bbox": [1, 2, 3, 4]},
            {"image_id": 9, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    }
    return {**data, **changes}


@pytest.fixture
def write(tmp_path):
    def put(data, name="coco.json"):
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return put


def shares(annotations, path, width=100, height=50):
    return [(label, pytest.approx(box)) for label, box in annotations.of(Path(path)).shares(width, height)]


def test_coco(write):
    found = read_annotations(write(coco()))
    assert shares(found, "photos/a/one.jpg") == [("cat", (0.1, 0.1, 0.2, 0.5))]
    assert shares(found, "photos/b/one.png", 200, 100) == [("dog", (0, 0, 1, 1))], "of an image of twice the size"
    assert shares(found, "anywhere/two.png", 10, 10) == [("dog", (0.1, 0.2, 0.4, 0.6))], "no size is told; no crowd"
    assert found.of(Path("three.jpg")) is None
    with pytest.raises(AnnotationError, match="several images called one"):
        found.of(Path("one.jpg"))


def test_voc(write, tmp_path):
    write(VOC, "one.xml")
    assert shares(read_annotations(tmp_path), "photos/one.jpg") == [("cat", (0.1, 0.1, 0.2, 0.5))]


def test_an_image_that_was_turned(write):
    found = read_annotations(write(coco())).of(Path("a/one.jpg"))
    with pytest.raises(AnnotationError, match="an image of 100x50, but it is 50x100"):
        list(found.shares(50, 100))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{", "cannot read .*coco.json as COCO's"),
        ([], "cannot read .*coco.json as COCO's"),
        (coco(annotations=[{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}]), "KeyError: 1"),
        (coco(annotations=[{"image_id": 7, "category_id": 3, "bbox": [0, 0, 1]}]), "cannot read"),
        (coco(annotations=[{"image_id": 7, "category_id": 3, "bbox": [0, 0, 1, float("nan")]}]), "no numbers"),
    ],
    ids=["no JSON", "a list", "of no image", "three numbers", "no number"],
)
def test_damaged_coco(write, data, said):
    with pytest.raises(AnnotationError, match=said):
        read_annotations(write(data))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation>", "as PASCAL VOC's"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + VOC, "with a document type"),
        (VOC.replace("xmax", "x"), "as PASCAL VOC's"),
        (VOC.replace(">20<", ">inf<"), "no numbers"),
    ],
    ids=["cut off", "entities", "no edge", "no number"],
)
def test_damaged_voc(write, tmp_path, text, said):
    write(text, "one.xml")
    with pytest.raises(AnnotationError, match=said):
        read_annotations(tmp_path)


def test_nothing_there(tmp_path):
    for path, said in [
        (tmp_path / "a.json", "no such"),
        (tmp_path, "no annotations"),
        (Path(__file__), "unknown kind"),
    ]:
        with pytest.raises(AnnotationError, match=said):
            read_annotations(path)


def test_classes(write):
    found = read_annotations(write(coco()))
    assert class_numbers(found, [("dog", 1), ("fox", 2)]) == ({"dog": 1}, ["cat"])
    for known, said in [
        ([], "no names for its classes"),
        ([("fox", 0)], "classes unknown to the model: cat, dog; it has fox"),
        ([("cat", 0), ("cat", 1)], "several classes of the model are called 'cat'"),
    ]:
        with pytest.raises(AnnotationError, match=said):
            class_numbers(found, known)


@pytest.mark.parametrize(
    ("view", "box", "seen"),
    [
        (View(), (0.25, 0.5, 0.5, 1), (10, 10, 20, 20)),
        (View(in_input=(0, 0.25, 1, 0.75)), (0, 0, 0.5, 0.5), (0, 5, 20, 10)),  # a letterbox
        (View(in_image=(0.25, 0, 0.75, 1)), (0, 0, 0.5, 1), (0, 0, 20, 20)),  # a crop
        (View(in_image=(0.5, 0, 1, 1)), (0, 0, 0.5, 1), None),
    ],
)
def test_boxes_where_the_model_sees_them(view, box, seen):
    pixels = np.zeros((1, 3, 20, 40), np.float32)
    assert in_input(box, Prepared(pixels, pixels, view, None)) == (seen and pytest.approx(seen))
