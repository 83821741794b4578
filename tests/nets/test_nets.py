"""The generated networks themselves: that the builder's cells lie where it says, shown by changing the image."""

import dataclasses
from collections import defaultdict

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed.nets.classifiers import generate

PLACES = ((0.3, 0.2), (0.85, 0.4), (0.5, 0.8))  # of three blocks, none symmetric to another
MIXING = {"body mixer", "body transformer"}


def _values(sample, session, images):
    """What stands at the first masked value, for the first image where the batch is free."""
    groups = [images] if sample.static else [images[i : i + 1] for i in range(len(images))]
    return session.run(None, {"image": groups[0]})[0]


def _session(sample, name):
    model = type(sample.model)()
    model.CopyFrom(sample.model)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _moved(sample, target, session, before, row, column):
    """The cell that changes most, if the image changes around a place of the map; rows and columns in its frame."""
    height, width = target.grid
    images = sample.images()
    axes = (2, 3) if sample.image[0] == 3 else (1, 2)
    top, left, bottom, right = sample.region or (0, 0, 1, 1)
    rows, columns = (images.shape[axis] for axis in axes)
    spans = [slice(None)] * 4
    for axis, size, low, high, cell, cells in (
        (axes[0], rows, top, bottom, row, height),
        (axes[1], columns, left, right, column, width),
    ):
        start = size * (low + (high - low) * cell / cells)
        spans[axis] = slice(round(start), max(round(start + size * (high - low) / cells), round(start) + 1))
    changed = images.copy()
    changed[tuple(spans)] += 4.0
    moved = np.abs(_values(sample, session, changed) - before)
    labels = target.features[0].labels
    labels = np.broadcast_to(labels, moved.shape) if labels.shape[0] == 1 else labels
    if labels.shape != moved.shape:
        labels = np.tile(labels, (len(moved) // len(labels), *[1] * (labels.ndim - 1)))
    sums = np.bincount(labels[labels >= 0], moved[labels >= 0], height * width)
    return divmod(int(sums.argmax()), width)


@pytest.fixture(scope="module")
def found():
    """By kind of part, whether each block was found within one cell of where it is."""
    kinds = defaultdict(list)
    for seed in range(240):
        sample = generate(seed)
        for target in sample.targets[-1:]:
            height, width = target.grid
            session = _session(sample, target.features[0].name)
            before = _values(sample, session, sample.images())
            for place in PLACES:
                row, column = int(place[0] * height), int(place[1] * width)
                cell = _moved(sample, target, session, before, row, column)
                for tag in sample.tags:
                    kinds[tag].append(max(abs(cell[0] - row), abs(cell[1] - column)) <= 1)
    return kinds


def test_cells_lie_where_the_image_changes(found):
    """A part whose labels went astray would be wrong nearly always; one that mixes places hides some blocks."""
    shares = {tag: np.mean(hits) for tag, hits in found.items() if len(hits) >= 12}
    assert len(shares) > 40
    assert {tag: share for tag, share in shares.items() if share < (0.55 if tag in MIXING else 0.8)} == {}
    assert np.mean([hit for hits in found.values() for hit in hits]) > 0.9


def test_the_same_seed_gives_the_same_network():
    one, other = generate(11), generate(11)
    assert one.model.SerializeToString() == other.model.SerializeToString()
    assert dataclasses.replace(one, model=None, targets=()) == dataclasses.replace(other, model=None, targets=())
