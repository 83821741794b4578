"""What `xai-insert` does with a model besides inserting into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from xai_insert.formats.backend import load
from xai_insert.graph.shape import format_grid, format_shape
from xai_insert.locate.classifier import usable_layers
from xai_insert.options import Options
from xai_insert.report import Report
from xai_insert.strip import strip_file
from xai_insert.verify import verify_file


def _verify(model: Path, output: Path | None, options: Options) -> Report:
    del output, options
    return verify_file(model)


def _strip(model: Path, output: Path | None, options: Options) -> Report:
    del options
    if output is None:
        raise ValueError("the plain model has to be written somewhere")
    return strip_file(model, output)


def _layers(model: Path, output: Path | None, options: Options) -> Report:
    """What `--target-layer` can name, from the image on."""
    loaded = load(model, options.input_shapes, output)
    found = usable_layers(loaded.view(), options)
    lines = [
        ("layer", f"{name!r} {format_shape(feature.shape)}, grid {format_grid(feature.grid)}")
        for feature in found
        if (name := feature.value.producer.name if feature.value.producer else feature.value.name)
    ]
    none = [("layer", "none: no value on every path to the class scores has a grid of the image")]
    return Report(source=str(model), format=loaded.format_name, lines=lines or none)


ACTIONS: Mapping[str, Callable[[Path, Path | None, Options], Report]] = {
    "verify": _verify,
    "strip": _strip,
    "layers": _layers,
}
