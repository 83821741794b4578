"""The proof of place: blocks of the image say where a map lies, and a planted fault is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models
from xai_insert import Options, insert
from xai_insert.check import check_outputs
from xai_insert.check_place import places_of
from xai_insert.errors import CheckFailedError, MisplacedMapError
from xai_insert.formats.backend import load
from xai_insert.locate.classifier import locate_classifier
from xai_insert.locate.inputs import image_inputs

SHAPES = Path(__file__).resolve().parents[2] / "model_zoo_fixtures" / "shapes"
TRAINED = ["shapes_cnn.onnx", "shapes_cnn.xml", "shapes_vit.onnx", "shapes_vit.xml"]


def located(name):
    loaded = load(SHAPES / name, {})
    graph = loaded.view()
    return loaded, image_inputs(graph)[0], locate_classifier(graph, Options()).target


def transposed(feature):
    first, second = feature.frame.lines
    return replace(feature.frame, transposed=not feature.frame.transposed, lines=(second, first))


def flipped(feature):
    (stride, offset), second = feature.frame.lines
    return replace(feature.frame, lines=((-stride, offset + stride * (feature.grid[0] - 1)), second))


def turned(feature):
    ends = zip(feature.frame.lines, feature.grid, strict=True)
    return replace(feature.frame, lines=tuple((-s, o + s * (n - 1)) for (s, o), n in ends))


def rolled(feature):
    return replace(feature.frame, rolled=(feature.grid[0] // 2, 0))


FAULTS = {"transposed": transposed, "flipped": flipped, "turned": turned, "rolled": rolled}


@pytest.mark.parametrize("name", TRAINED)
def test_blocks_prove_the_place(name):
    loaded, image, feature = located(name)
    assert places_of([feature], loaded, image) == "blocks"


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_refused(name, fault):
    loaded, image, feature = located(name)
    with pytest.raises(MisplacedMapError, match="do not lie where its axes say"):
        places_of([replace(feature, frame=FAULTS[fault](feature))], loaded, image)


class Noisy:
    """A model whose rounding alone moves what blocks of the image change, here to the mirrored place."""

    def __init__(self, loaded):
        self._loaded = loaded

    def between(self, features, results, *, is_rounded=True):
        runner = self._loaded.between(features, results)
        if is_rounded:
            run = runner.run
            runner.run = lambda feeds: [array[..., ::-1] for array in run(feeds)]
        return runner


def test_what_rounding_alone_puts_elsewhere_is_no_fault():
    loaded, image, feature = located("shapes_cnn.onnx")
    assert places_of([feature], Noisy(loaded), image) == "blocks"
    with pytest.raises(MisplacedMapError):
        places_of([replace(feature, frame=flipped(feature))], Noisy(loaded), image)


def patches(b):
    """Cells of four pixels, each of which sees itself alone."""
    x = b.node("Relu", b.node("Conv", "image", b.weight(8, 3, 4, 4), b.weight(8), strides=[4, 4]))
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 8)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("by", [(0, 0), (1, 0), (0, -1), (1, 1)])
def test_a_map_one_cell_beside_its_place_is_refused(by, kind):
    """Its cells change beside each block, near enough; but those at the block do not change at all."""
    loaded = load(models.as_format(models.classifier(patches, size=(24, 32)), kind), {})
    graph = loaded.view()
    feature = locate_classifier(graph, Options()).target
    moved = zip(feature.frame.lines, by, strict=True)
    frame = replace(feature.frame, lines=tuple((stride, offset + cells * stride) for (stride, offset), cells in moved))
    if any(by):
        with pytest.raises(MisplacedMapError):
            places_of([replace(feature, frame=frame)], loaded, image_inputs(graph)[0])
    else:
        assert places_of([feature], loaded, image_inputs(graph)[0]) == "blocks"


@pytest.mark.parametrize("name", ["shapes_vit.onnx", "shapes_vit.xml"])
def test_widened_grids_are_refused(name):
    loaded, image, feature = located(name)
    (rows, columns), (down, right) = feature.grid, feature.frame.lines
    lines = ((down[0] * 4, down[1]), (right[0] / 4, right[1]))
    frame = replace(feature.frame, lines=lines)
    with pytest.raises(MisplacedMapError):
        places_of([replace(feature, grid=(rows // 4, columns * 4), frame=frame)], loaded, image)


def test_the_report_says_how():
    assert insert(SHAPES / "shapes_cnn.onnx").report.place == "blocks"
    assert insert(SHAPES / "shapes_cnn.onnx", Options(check=False)).report.place == "unchecked"


@pytest.mark.parametrize("kind", models.FORMATS)
def test_constant_maps_are_refused(kind):
    def negative(b):
        below = b.node("Sub", b.node("Neg", b.node("Relu", b.backbone())), b.const(np.float32(1)))
        return b.linear(b.node("Flatten", b.node("GlobalMaxPool", below)), models.CHANNELS)

    with pytest.raises(CheckFailedError, match="every map is constant on a random input"):
        insert(models.as_format(models.classifier(negative), kind))


@pytest.mark.parametrize(("declared", "fits"), [((None, 5, 6, 6), True), ((1, 5, 6, 6), True), ((1, 5, 3, 12), False)])
def test_an_output_of_other_sizes_than_it_declares_is_refused(declared, fits):
    graph = load(models.classifier(models.CLOSED["mean"]), {}).view()
    maps = [np.zeros((1, 5, 6, 6), np.float32)]
    if fits:
        assert check_outputs(graph, [], maps, [declared]) == 0.0
    else:
        with pytest.raises(CheckFailedError, match="declares the sizes"):
            check_outputs(graph, [], maps, [declared])
