"""Circular paddings: the cells around rows and columns are copies of those at the other end."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.small_detectors import GRID, WIDTH, Small, require_map
from model_zoo_fixtures.testbed.vector_models import assert_close, run
from xai_insert import Options, insert
from xai_insert.errors import XaiInsertError
from xai_insert.graph.axes import Kind, Origin, line, of, rolled_line
from xai_insert.graph.cutting import cut, joint
from xai_insert.graph.wrapping import with_edges

FORMATS = pytest.mark.parametrize("kind", ["onnx", "openvino"])
SIDE = models.SIDE


def part(net, value, axis, start, end):
    return net.op("Slice", value, *(net.constant(np.array([number])) for number in (start, end, axis)))


def at_once(net, value, axis, size, pad):
    ends = part(net, value, axis, size - pad, size), part(net, value, axis, 0, pad)
    return net.op("Concat", ends[0], value, ends[1], axis=axis)


def one_side_after_the_other(net, value, axis, size, pad):
    longer = net.op("Concat", value, part(net, value, axis, 0, pad), axis=axis)
    return net.op("Concat", part(net, longer, axis, size - pad, size), longer, axis=axis)


@pytest.mark.parametrize("around", [at_once, one_side_after_the_other])
@pytest.mark.parametrize("axes", [[3], [2], [2, 3]])
@FORMATS
def test_classes_behind_a_layer_with_circular_padding(kind, axes, around):
    net, pads = Small(), [0 if axis in axes else 1 for axis in (2, 3)]
    for _ in range(2):
        value = net.feature
        for axis in axes:
            value = around(net, value, axis, GRID, 1)
        layer = net.op("Conv", value, net.weight(WIDTH, WIDTH, 3, 3), pads=pads * 2)
        net.feature = net.op("LeakyRelu", layer)
    head = net.head(5)
    require_map(net.model(net.op("Sigmoid", net.rows(head))), [head], [1], 5, kind)


CELL, CELLS = 3, 4  # of images of 12x12


def sliced(b, x, axis, start, end):
    return b.node("Slice", x, *(b.const(np.array([number])) for number in (start, end, axis)))


def joined_and_cut(b, shift):
    longer = b.node("Concat", sliced(b, "image", 3, SIDE - shift, SIDE), "image", axis=3)
    return sliced(b, longer, 3, 0, SIDE)


def padded_and_cut(b, shift):
    return sliced(b, b.node("Pad", "image", b.const(np.array([0, 0, 0, shift, 0, 0, 0, 0])), mode="wrap"), 3, 0, SIDE)


def classes(b, image):
    patches = b.node("Conv", image, b.weight(8, 3, CELL, CELL), strides=[CELL, CELL])
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", patches))), 8)


@pytest.mark.parametrize("shift", [CELL, 2 * CELL])
@pytest.mark.parametrize(
    ("kind", "rolled"), [*((kind, joined_and_cut) for kind in models.FORMATS), ("onnx", padded_and_cut)]
)
def test_a_circular_padding_that_is_cut_to_the_size_of_the_image_rolls_it(kind, rolled, shift):
    """The map is what the plain model says of single blocks of the image, each where it was."""
    plain = models.as_format(models.classifier(lambda b: classes(b, rolled(b, shift)), batch=1, opset=19), kind)
    made = insert(plain, Options(output_dtype="f32"))
    image = np.random.default_rng(4).normal(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32)
    expected = []
    for row, column in np.ndindex(CELLS, CELLS):
        block = (..., slice(CELL * row, CELL * (row + 1)), slice(CELL * column, CELL * (column + 1)))
        left = np.zeros_like(image)
        left[block] = image[block]
        expected.append(next(iter(run(plain, left).values())))
    found = run(made.model, image)["saliency_map"]
    assert_close(found, np.stack(expected, axis=-1).reshape(found.shape))


def test_a_part_with_both_ends_of_the_image_has_no_place():
    """Neither a part of the image nor all of it."""

    def network(b):
        return classes(b, sliced(b, padded_and_cut(b, 2 * CELL), 3, 0, SIDE - CELL))

    with pytest.raises(XaiInsertError):
        insert(models.classifier(network, batch=1, opset=19))


COLUMNS = of(Origin(Kind.COLUMNS, 8, 4.0, 1.5))


def test_cells_around_lie_outside():
    found = line(with_edges(COLUMNS, 12, 2, "wrap"))
    ends = line(joint([cut(COLUMNS, 6, 2), COLUMNS, cut(COLUMNS, 0, 2)]))
    assert [(origin.size, origin.offset) for origin in (found, ends)] == [(12, -6.5)] * 2


@pytest.mark.parametrize(
    ("start", "count", "wanted"),
    [
        (2, 8, (8, 1.5, 0)),
        (0, 8, (8, 1.5, 6)),
        (3, 8, (8, 1.5, 1)),
        (0, 2, (2, 25.5, 0)),
        (4, 3, (3, 9.5, 0)),
        (10, 2, (2, 1.5, 0)),
        (1, 10, (10, -2.5, 0)),
        (0, 6, None),
    ],
)
def test_a_part_of_columns_with_copies_around(start, count, wanted):
    found = rolled_line(cut(with_edges(COLUMNS, 12, 2, "wrap"), start, count), 1)
    assert wanted == (None if found is None else (found.size, found.offset, found.roll))


def test_edges_that_are_repeated_go_nowhere_round():
    """Cells of the same end, as of a replicating padding, are not those of the other."""
    assert line(joint([cut(COLUMNS, 0, 1), COLUMNS, cut(COLUMNS, 7, 1)])) is None
