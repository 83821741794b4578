"""Putting an ONNX model and its external weights in the place of others, so that a kill leaves a whole model."""

from __future__ import annotations

import filecmp
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx


def replace_onnx(model: Path, weights: Sequence[Path], goal: Path) -> None:
    """Move `model` to `goal` and its external `weights` beside it.

    Where a model is there already, the new weights come under spare names first, and the new model reads them there
    until the old model's are gone; so each step leaves the old model or the new one.
    """
    places = {path: goal.with_name(path.name) for path in weights}
    changed = [path for path, place in places.items() if place.is_file() and not filecmp.cmp(path, place, False)]
    if not goal.is_file() or not changed:
        _move(places, model, goal)
        return
    spares = {path: _free_name(places[path]) for path in weights}
    for path, spare in spares.items():
        os.replace(_copy(path), spare)
    os.replace(_reading({path.name: spare.name for path, spare in spares.items()}, model), goal)
    _move(places, model, goal)
    for spare in spares.values():
        spare.unlink()


def _move(places: Mapping[Path, Path], model: Path, goal: Path) -> None:
    for path, place in places.items():
        os.replace(path, place)
    os.replace(model, goal)


def _free_name(place: Path) -> Path:
    names = (place.with_name(f"{place.name}.{number}") for number in itertools.count(1))
    return next(path for path in names if not path.exists())


def _copy(path: Path) -> Path:
    return Path(shutil.copyfile(path, path.with_name(f"{path.name}.copy")))


def _reading(names: Mapping[str, str], model: Path) -> Path:
    """The same model with its weights in other files; `names` has the new name of each."""
    proto = onnx.load(model, load_external_data=False)
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        for entry in (entry for tensor in graph.initializer for entry in tensor.external_data):
            if entry.key == "location":
                entry.value = names.get(entry.value, entry.value)
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            graphs += [attribute.g, *attribute.graphs]
    onnx.save(proto, result := model.with_name("spare.onnx"))
    return result
