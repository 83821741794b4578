"""Taking a saliency map off a model again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from xai_insert.errors import NotInsertedError
from xai_insert.files import size
from xai_insert.formats.backend import LoadedModel, Removed, load
from xai_insert.methods.of_classifier import SALIENCY_CLASSES, SALIENCY_SCORES
from xai_insert.pipeline import FEATURE_VECTOR, SALIENCY_MAP, SALIENCY_RANGE
from xai_insert.report import Report
from xai_insert.tasks.per_box import PER_BOX
from xai_insert.writing import require_writable, write_model

_BESIDE = (FEATURE_VECTOR, SALIENCY_CLASSES, SALIENCY_SCORES, SALIENCY_RANGE, PER_BOX)


def own_outputs(names: Sequence[str], *, is_marked: bool = False) -> list[str]:
    """Those of a model's outputs that were inserted: the map, and what stands behind it under one of our names.

    Args:
        names: of all outputs.
        is_marked: whether the model says that something was inserted, if only a vector.

    Raises:
        NotInsertedError: none is called `saliency_map`.
    """
    if SALIENCY_MAP not in names:
        if is_marked and FEATURE_VECTOR in names:
            return [FEATURE_VECTOR]
        listed = ", ".join(map(repr, names))
        raise NotInsertedError(
            f"no output is called {SALIENCY_MAP!r}, found {listed}: the model has none, or another tool has renamed it"
        )
    behind = list(names)[list(names).index(SALIENCY_MAP) + 1 :]
    return [SALIENCY_MAP, *(name for name in behind if re.sub(r"_\d+$", "", name) in (SALIENCY_MAP, *_BESIDE))]


def without_map(loaded: LoadedModel, names: Sequence[str]) -> tuple[LoadedModel, Removed]:
    """The plain model again, and what was taken off; `loaded`, whose outputs have these names, is used up.

    Raises:
        NotInsertedError: no output is called `saliency_map`, or there is no other.
    """
    own = own_outputs(names, is_marked=bool(loaded.read_metadata()))
    if len(own) == len(names):
        raise NotInsertedError(f"the model has no output beside {', '.join(map(repr, own))}: nothing would be left")
    return loaded.strip(own)


def strip_file(source: Path, output: Path) -> Report:
    """Write the plain model of the inserted model `source` to `output`, whole or not at all.

    Raises:
        XaiInsertError: one of its children; nothing was written.
    """
    require_writable(source, output)
    loaded = load(source, {}, output)
    plain, removed = without_map(loaded, loaded.view().output_names)
    files = write_model(plain, output)
    return Report(
        source=str(source),
        output=str(output),
        format=plain.format_name,
        bytes_before=size(source),
        bytes_after=sum(path.stat().st_size for path in files),
        lines=(("removed", f"{removed.operations} operations that fed the map alone"),),
    )
