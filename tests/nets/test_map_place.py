"""Place by changed blocks: means of blocks of an image, made by NumPy, moved in every way that a map can be wrong."""

import contextlib
import weakref
from pathlib import Path

import numpy as np
import pytest

from xai_insert import insert
from xai_insert.check_map import map_shows_place
from xai_insert.check_place import places_of
from xai_insert.errors import MisplacedMapError
from xai_insert.formats.backend import load
from xai_insert.graph.view import Value
from xai_insert.locate.layout import FeatureMap, Frame

SHAPES = Path(__file__).resolve().parents[2] / "model_zoo_fixtures" / "shapes"
MOVES = {
    "transposed": lambda maps: maps.swapaxes(2, 3),
    "flipped": lambda maps: maps[:, :, ::-1],
    "mirrored": lambda maps: maps[..., ::-1],
    "turned": lambda maps: maps[:, :, ::-1, ::-1],
    "turned right": lambda maps: np.rot90(maps, -1, (2, 3)),
    "turned left": lambda maps: np.rot90(maps, 1, (2, 3)),
    "rolled": lambda maps: np.roll(maps, maps.shape[2] // 2, 2),
    "rolled both": lambda maps: np.roll(maps, (maps.shape[2] // 2, maps.shape[3] // 2), (2, 3)),
    "in rows of another length": lambda maps: maps.reshape(*maps.shape[:2], -1, 4).swapaxes(2, 3).reshape(maps.shape),
    "in random order": lambda maps: np.take(
        maps.reshape(*maps.shape[:2], -1), np.random.default_rng(3).permutation(maps[0, 0].size), 2
    ).reshape(maps.shape),
    "of no place": lambda maps: (
        maps.mean(axis=(2, 3), keepdims=True) * np.arange(maps[0, 0].size).reshape(maps.shape[2:])
    ),
}


class Means:
    """A model whose maps are means of blocks of 8x8 pixels and of those beside them, mixed and scaled to bytes."""

    def __init__(self, size, move=None, *, is_raw=False, view=0.0):
        self.inputs = [("image", "float32", (1, 3, 8 * size, 8 * size))]
        self._size, self._move, self.runs = size, move, 0
        self._is_raw = is_raw
        self._mix = np.random.default_rng(1).standard_normal((5, 3))
        self._wide = view * np.random.default_rng(2).random((size * size, size * size)) / size

    def run(self, feeds, seconds=None):
        del seconds
        self.runs += 1
        cells = feeds["image"].reshape(1, 3, self._size, 8, self._size, 8)
        cells = np.maximum(cells, 0).mean(axis=(3, 5)) + cells.std(axis=(3, 5))
        near = np.pad(cells, [(0, 0), (0, 0), (1, 1), (1, 1)], mode="edge")
        cells = cells + 0.3 * np.lib.stride_tricks.sliding_window_view(near, (3, 3), (2, 3)).mean(axis=(4, 5))
        cells = cells + 0.05 * cells.mean(axis=(2, 3), keepdims=True)  # all cells move a little with every block
        cells = cells + (cells.reshape(1, 3, -1) @ self._wide).reshape(cells.shape)  # each cell by another share
        maps = np.einsum("kc,bchw->bkhw", self._mix, cells)
        maps = maps if self._move is None else self._move(maps)
        if self._is_raw:
            return [maps]
        low, high = maps.min(axis=(2, 3), keepdims=True), maps.max(axis=(2, 3), keepdims=True)
        return [np.zeros(1), np.round(255 * (maps - low) / np.maximum(high - low, 1e-9)).astype(np.uint8)]


def described(size):
    image = Value("image", (1, 3, 8 * size, 8 * size), "float32")
    return image, FeatureMap(image, 1, (2, 3), (size, size), frame=Frame(lines=((8.0, 3.5), (8.0, 3.5))))


def shows(model, size):
    image, feature = described(size)
    feeds = {"image": np.random.default_rng(0).standard_normal((1, 3, 8 * size, 8 * size)).astype(np.float32)}
    return map_shows_place(feature, image, model, feeds, model.run(feeds), 1)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_a_map_in_its_place_takes_one_more_run(size):
    model = Means(size)
    assert shows(model, size)
    assert model.runs == 2


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("move", MOVES)
def test_a_map_elsewhere_proves_nothing(size, move):
    assert not shows(Means(size, MOVES[move]), size)


def test_a_grid_of_few_cells_proves_nothing():
    assert not shows(Means(4), 4)


def test_a_map_whose_cells_see_all_of_the_image_is_asked_block_by_block():
    model = Means(7, view=6)
    assert shows(model, 7)
    assert 5 <= model.runs <= 7  # before, at once, three to five blocks


@pytest.mark.parametrize("move", MOVES)
def test_such_a_map_elsewhere_proves_nothing(move):
    assert not shows(Means(8, MOVES[move], view=6), 8)


def test_blocks_that_change_all_cells_alike_are_given_up():
    model = Means(8, lambda maps: maps.mean(axis=(2, 3), keepdims=True) * np.ones(maps.shape[2:]), is_raw=True)
    image, feature = described(8)
    assert places_of([feature], Cut(model), image) == "axes"
    assert model.runs == 3 + 4 * 3  # four ways of changing three of five blocks, in three images


class Cut:
    """What `places_of` asks of a loaded model: here its values are these maps."""

    def __init__(self, model):
        self.between = lambda features, results, **_: model


@pytest.mark.parametrize(("size", "runs"), [(8, 5), (16, 2), (32, 2)])
def test_values_in_their_place_take_one_more_run_on_a_fine_grid(size, runs):
    model = Means(size, is_raw=True)
    image, feature = described(size)
    assert places_of([feature], Cut(model), image) == "blocks"
    assert model.runs <= runs


@pytest.mark.parametrize("size", [16])
@pytest.mark.parametrize("move", [*MOVES.values(), lambda maps: np.roll(maps, 4, 3), lambda maps: np.roll(maps, -4, 2)])
def test_values_elsewhere_prove_nothing(size, move):
    image, feature = described(size)
    with contextlib.suppress(MisplacedMapError):
        assert places_of([feature], Cut(Means(size, move, is_raw=True)), image) == "axes"


@pytest.mark.parametrize("name", ["shapes_cnn.onnx", "shapes_vit.onnx", "shapes_vit.xml"])
def test_no_two_large_whole_models_are_in_memory_at_once(name, monkeypatch):
    kind, alive, most = type(load(SHAPES / name, {})), weakref.WeakSet(), [0]
    runner, between = kind.runner, kind.between

    def counted(made):
        alive.add(made)
        most[0] = max(most[0], len(alive))
        return made

    def cut(self, features, *rest, **how):
        made = between(self, features, *rest, **how)
        return made if features else counted(made)  # a head alone is small

    monkeypatch.setattr(kind, "runner", lambda self: counted(runner(self)))
    monkeypatch.setattr(kind, "between", cut)
    insert(SHAPES / name)
    assert most == [1]


@pytest.mark.parametrize("name", ["shapes_cnn.onnx", "shapes_cnn.xml"])
def test_no_more_than_two_whole_models_are_compiled(name, monkeypatch):
    kind, whole, parts = type(load(SHAPES / name, {})), [], []
    runner, between = kind.runner, kind.between
    monkeypatch.setattr(kind, "runner", lambda self: whole.append(1) or runner(self))
    monkeypatch.setattr(kind, "between", lambda self, *args: parts.append(args) or between(self, *args))
    assert insert(SHAPES / name).report.place == "blocks"
    assert len(whole) == 2
    assert all(features for features, *_ in parts)  # heads alone
