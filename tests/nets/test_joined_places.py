"""Values that are joined: rolled parts, learned rows, members, parts of an image, streams of one grid.

Patches have no bias, so a map of masked patches is what the plain model says of an image of which one block is left.
"""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.vector_models import assert_close, run
from xai_insert import Options, insert
from xai_insert.errors import MisplacedMapError

CELL, GRID, WIDTH = 3, 4, 8  # of images of 12x12
CELLS = GRID * GRID


def patches(b, image="image", channels=WIDTH, width=3):
    x = b.node("Conv", image, b.weight(channels, width, CELL, CELL), kernel_shape=[CELL, CELL], strides=[CELL, CELL])
    return b.node("Relu", x)


def reshaped(b, x, *sizes):
    return b.node("Reshape", x, b.const(np.array(sizes)))


def cut(b, x, axis, start, end):
    return b.node("Slice", x, *(b.const(np.array([number])) for number in (start, end, axis)))


def pooled(b, x, channels=WIDTH):
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), channels)


def mixed(b, x, channels=WIDTH):
    """A convolution that sees neighbours."""
    weight = b.weight(channels, channels, 3, 3)
    return b.node("Tanh", b.node("Conv", x, weight, kernel_shape=[3, 3], pads=[1] * 4))


def rolled_parts(*shifts):
    """Parts of the channels, each rolled by its own number of columns, as in AS-MLP."""

    def network(b):
        x, parts, size = patches(b), [], WIDTH // len(shifts)
        for index, shift in enumerate(shifts):
            part = cut(b, x, 1, index * size, (index + 1) * size)
            ends = (cut(b, part, 3, GRID - shift, GRID), cut(b, part, 3, 0, GRID - shift))
            parts.append(b.node("Concat", *ends, axis=3) if shift else part)
        return pooled(b, mixed(b, b.node("Concat", *parts, axis=1)))

    return network


def shifted(b, x, axis, by):
    """A map moved by a cell along an axis, its edge repeated, as in S2-MLP."""
    if by > 0:
        return b.node("Concat", cut(b, x, axis, 0, 1), cut(b, x, axis, 0, GRID - 1), axis=axis)
    return b.node("Concat", cut(b, x, axis, 1, GRID), cut(b, x, axis, GRID - 1, GRID), axis=axis)


def shifted_quarters(b):
    """A quarter of the channels each moved to the left, right, top and bottom, and mixed; with a residual."""
    x = patches(b)
    moves = ((2, 1), (2, -1), (3, 1), (3, -1))
    parts = [shifted(b, cut(b, x, 1, 2 * i, 2 * i + 2), *move) for i, move in enumerate(moves)]
    return pooled(b, b.node("Add", x, mixed(b, b.node("Concat", *parts, axis=1))))


def attended(b, x, width):
    """Attention of rows to one another, and what they were."""
    query, key, value = (b.node("MatMul", x, b.weight(width, width)) for _ in range(3))
    shares = b.node("Softmax", b.node("MatMul", query, b.node("Transpose", key, perm=[0, 2, 1])), axis=-1)
    return b.node("Add", x, b.node("MatMul", shares, value))


def row_of(b, x, width, index=0):
    return b.linear(b.node("Gather", x, b.const(np.array(index)), axis=1), width)


def learned(b, rows, width):
    return b.const(np.random.default_rng(rows).normal(0, 1, (1, rows, width)).astype(np.float32))


def learned_row_among_channels(b):
    """Channels are the tokens, places are the features, and the head reads a learned row beside the channels."""
    x = b.node("Concat", learned(b, 1, CELLS), reshaped(b, patches(b), 1, WIDTH, CELLS), axis=1)
    return row_of(b, attended(b, x, CELLS), CELLS)


def tokens(b, image="image", width=3):
    return b.node("Transpose", reshaped(b, patches(b, image, width=width), 1, WIDTH, CELLS), perm=[0, 2, 1])


def mean_before_cells(b):
    """The mean stands before the cells and all are mixed: it changes with every mask, so the cells alone are masked."""
    x = reshaped(b, patches(b), 1, WIDTH, CELLS)
    x = b.node("Concat", b.node("ReduceMean", x, axes=[2], keepdims=1), x, axis=2)
    mixed = b.node("Tanh", b.node("MatMul", x, b.weight(CELLS + 1, CELLS + 1)))
    return b.linear(b.node("Gather", mixed, b.const(np.array(0)), axis=2), WIDTH)


def class_token_and_registers_behind(b):
    x = b.node("Concat", learned(b, 1, WIDTH), tokens(b), learned(b, 3, WIDTH), axis=1)
    return row_of(b, attended(b, x, WIDTH), WIDTH)


def two_streams_of_tokens(b):
    """Colours and depth, say, each embedded by itself, in one list behind a class token."""
    first, second = (tokens(b, cut(b, "image", 1, *ends), ends[1] - ends[0]) for ends in ((0, 2), (2, 3)))
    return row_of(b, attended(b, b.node("Concat", learned(b, 1, WIDTH), first, second, axis=1), WIDTH), WIDTH)


def products_of_two_streams(b):
    one, other = (reshaped(b, patches(b), 1, WIDTH, CELLS) for _ in range(2))
    products = b.node("MatMul", one, b.node("Transpose", other, perm=[0, 2, 1]))
    return b.linear(reshaped(b, products, 1, WIDTH * WIDTH), WIDTH * WIDTH)


def quarters(b):
    """The image in four parts, through the same layer, and put together again."""
    weight, rows, half = b.weight(WIDTH, 3, CELL, CELL), [], models.SIDE // 2
    for top in (0, half):
        strips = [cut(b, cut(b, "image", 2, top, top + half), 3, left, left + half) for left in (0, half)]
        rows.append(b.node("Concat", *(b.node("Conv", x, weight, strides=[CELL, CELL]) for x in strips), axis=3))
    return pooled(b, b.node("Relu", b.node("Concat", *rows, axis=2)))


def members(b):
    """Four members with a map for each class, averaged over the grid and then over the members."""
    x = b.node("Conv", patches(b), b.weight(4 * models.CLASSES, WIDTH, 1, 1))
    x = reshaped(b, b.node("Tanh", x), 1, 4, models.CLASSES, GRID, GRID)
    return b.node("ReduceMean", b.node("ReduceMean", x, axes=[3, 4], keepdims=0), axes=[1], keepdims=0)


def masked_samples(b):
    """Four samples of the features, each with other places dropped."""
    kept = b.const((np.random.default_rng(2).random((1, 4, 1, GRID, GRID)) > 0.3).astype(np.float32))
    x = b.node("Mul", reshaped(b, patches(b), 1, 1, WIDTH, GRID, GRID), kept)
    x = b.node("MatMul", b.node("ReduceMean", x, axes=[3, 4], keepdims=0), b.weight(WIDTH, models.CLASSES))
    return b.node("ReduceMean", x, axes=[1], keepdims=0)


def region(b):
    """Of a part of the image that is given, and not found: the features there are those of a classifier."""
    part, first = b.const(np.array([[1, 0, 11, 9]], np.float32)), b.const(np.array([0]))
    x = b.node("RoiAlign", patches(b), part, first, output_height=2, output_width=3, spatial_scale=1 / CELL)
    return pooled(b, x)


def beside(other, *, added=False):
    """Features joined with what another stream makes of them, whose cells lie elsewhere."""

    def network(b):
        x = patches(b)
        if added:
            return pooled(b, mixed(b, b.node("Add", b.node("Mul", x, b.const(np.float32(0.3))), other(b, x))))
        return pooled(b, mixed(b, b.node("Concat", x, other(b, x), axis=1), 2 * WIDTH), 2 * WIDTH)

    return network


def mirrored(b, x):
    return b.node("Gather", x, b.const(np.arange(GRID)[::-1].copy()), axis=3)


def difference_to_mirrored(b, x):
    return b.node("Sub", x, mirrored(b, x))


def warped(b, x):
    line = (np.arange(GRID) + 0.5) * 2 / GRID - 1
    rows, columns = np.meshgrid(line, -line, indexing="ij")
    grid = np.stack([columns, rows], axis=-1)[None].astype(np.float32)
    return b.node("GridSample", x, b.const(grid), align_corners=0)


def shuffled_by_parts(b, x):
    parts = b.node("Transpose", reshaped(b, x, 1, WIDTH, 2, GRID // 2, GRID), perm=[0, 1, 3, 2, 4])
    return reshaped(b, parts, 1, WIDTH, GRID, GRID)


def in_another_order(b, x):
    order = np.random.default_rng(5).permutation(CELLS)
    rows = b.node("Gather", reshaped(b, x, 1, WIDTH, CELLS), b.const(order), axis=2)
    return reshaped(b, rows, 1, WIDTH, GRID, GRID)


def torn(b, x):
    """Channels-last values read as channels-first."""
    x = reshaped(b, b.node("Transpose", x, perm=[0, 2, 3, 1]), 1, WIDTH, GRID, GRID)
    return b.node("Conv", x, b.weight(WIDTH, WIDTH, 1, 1))


def sorted_by_the_image(b, x):
    """The cells, the loudest first, each channel's by the same order."""
    x = reshaped(b, x, 1, WIDTH, CELLS)
    loud = b.node("ReduceMean", x, axes=[1], keepdims=1)
    order = b.node("TopK", loud, b.const(np.array([CELLS])), axis=2, outputs=2)[1]
    order = b.node("Expand", order, b.const(np.array([1, WIDTH, CELLS])))
    return reshaped(b, b.node("GatherElements", x, order, axis=2), 1, WIDTH, GRID, GRID)


def taken_by_the_image(b, x):
    """Cells of one image at computed numbers."""
    x = reshaped(b, x, 1, WIDTH, CELLS)
    order = b.node("TopK", b.node("ReduceMean", x, axes=[0, 1], keepdims=0), b.const(np.array([CELLS])), outputs=2)[1]
    return reshaped(b, b.node("Gather", x, order, axis=2), 1, WIDTH, GRID, GRID)


def transposed(b, x):
    return b.node("Transpose", x, perm=[0, 1, 3, 2])


NETWORKS = {
    "transposed": beside(transposed),
    "transposed, added": beside(transposed, added=True),
    "sorted by the image": beside(sorted_by_the_image),
    "sorted by the image, added": beside(sorted_by_the_image, added=True),
    "taken by the image": beside(taken_by_the_image),
    "difference to the mirrored": beside(difference_to_mirrored),
    "warped": beside(warped),
    "warped, added": beside(warped, added=True),
    "shuffled by parts": beside(shuffled_by_parts),
    "in another order": beside(in_another_order),
    "torn, added": beside(torn, added=True),
    "parts rolled in two ways": rolled_parts(1, 3),
    "parts rolled, the last as the first": rolled_parts(1, 3, 1, 3),
    "parts rolled, one of them not": rolled_parts(1, 3, 0, 1),
    "learned row among channels": learned_row_among_channels,
    "mean before the cells": mean_before_cells,
    "class token, registers behind": class_token_and_registers_behind,
    "two streams of tokens": two_streams_of_tokens,
    "products of two streams": products_of_two_streams,
    "quarters of the image": quarters,
    "members": members,
    "region": region,
    "masked samples": masked_samples,
}


def test_rows_turned_round_by_a_stored_matrix_are_refused():
    """No rule follows a product with a stored matrix, as token mixers have it: the blocks tell."""

    def network(b):
        x = b.node("Relu", b.node("Conv", "image", b.weight(WIDTH, 3, 2, 2), strides=[2, 2]))
        turned = b.node("MatMul", b.const(np.eye(models.SIDE // 2, dtype=np.float32)[::-1].copy()), x)
        return pooled(b, b.node("Add", b.node("Mul", x, b.const(np.float32(0.2))), turned))

    with pytest.raises(MisplacedMapError, match="do not lie where"):
        insert(models.classifier(network, batch=1))


def test_attention_that_a_stored_bias_sends_elsewhere_is_refused():
    """Each token looks at the mirrored one, as a table of positions says; loud images make up for it, in part."""

    def network(b):
        x = tokens(b)
        order = np.arange(CELLS).reshape(GRID, GRID)[:, ::-1].reshape(-1)
        query, key, value = (b.node("MatMul", x, b.weight(WIDTH, WIDTH)) for _ in range(3))
        scores = b.node("MatMul", query, b.node("Transpose", key, perm=[0, 2, 1]))
        scores = b.node("Add", scores, b.const(np.float32(12) * np.eye(CELLS, dtype=np.float32)[order]))
        x = b.node("MatMul", b.node("Softmax", scores, axis=-1), value)
        x = b.node("Relu", b.node("MatMul", x, b.weight(WIDTH, WIDTH)))
        return b.linear(b.node("ReduceMean", x, axes=[1], keepdims=0), WIDTH)

    with pytest.raises(MisplacedMapError, match="do not lie where"):
        insert(models.classifier(network, batch=1))


@pytest.mark.parametrize("network", [shifted_quarters, rolled_parts(1, 0, 0, 3)])
def test_channels_shifted_by_a_cell_to_either_side_stay_a_map(network):
    """What stands between is the place: the last map is explained, not the one before the shifts."""
    report = insert(models.classifier(network, batch=1)).report
    assert (report.form, report.target["grid"]) == ("closed form", (GRID, GRID))


def alone(image, cell):
    """An image of which one block is left."""
    left = np.zeros_like(image)
    row, column = (slice(CELL * at, CELL * (at + 1)) for at in divmod(cell, GRID))
    left[:, :, row, column] = image[:, :, row, column]
    return left


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("case", NETWORKS)
def test_map_is_what_the_model_says_of_single_blocks(kind, case):
    plain = models.as_format(models.classifier(NETWORKS[case], batch=1), kind)
    given = {"kernel": "point"} if NETWORKS[case] is class_token_and_registers_behind else {}
    inserted = insert(plain, Options(output_dtype="f32", **given))
    image = np.random.default_rng(4).normal(0, 1, (1, 3, models.SIDE, models.SIDE)).astype(np.float32)
    found = run(inserted.model, image)["saliency_map"]
    expected = np.stack([next(iter(run(plain, alone(image, cell)).values())) for cell in range(CELLS)], axis=-1)
    assert_close(found, expected.reshape(found.shape))
    assert inserted.report.place == "blocks"
