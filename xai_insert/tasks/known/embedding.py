"""Embeddings: a vector for each image that is compared with others (re-identification, faces, DINOv2, CLIP)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import ModelFileError, UnsupportedTaskError
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.lengths import is_normalised
from xai_insert.locate.logits import find_logits, scored_outputs
from xai_insert.methods.reading import REFERENCE, Reading, ToClasses, ToInput, ToItself
from xai_insert.tasks.base import NotMine, Study, Task
from xai_insert.tasks.known.classification import FoundClassifier, located, what_else


@dataclass(frozen=True)
class FoundEmbedding(FoundClassifier):
    """A model that gives a vector without classes."""

    task = "embedding"


class Embedding(Task):
    """A vector that is known by its norm, or said to be an embedding."""

    rank = 45
    takes = frozenset({"target_layer", "reference", "class_embeddings"})

    def recognise(self, study: Study) -> FoundEmbedding | NotMine:
        graph, options = study.graph, study.options
        decided = frozenset(name for name in ("reference", "class_embeddings") if getattr(options, name) is not None)
        if not scored_outputs(graph, image_inputs(graph), options.output):
            return NotMine("no output [N, D] of one vector for each image, which an embedding is")
        logits = find_logits(graph, image_inputs(graph), options.output, as_embedding=bool(decided))
        if not decided and (options.num_classes == logits.classes or not is_normalised(logits.value)):
            return NotMine("")
        if len(decided) > 1:
            raise UnsupportedTaskError("--reference and --class-embeddings contradict each other: leave one out")
        parts = located(study, logits)
        reading = _reading(study, parts.target.batch, logits.classes)
        return FoundEmbedding(parts, reading=reading, decided=decided, note=what_else(study, logits))


def _reading(study: Study, batch: int | None, width: int) -> Reading:
    options = study.options
    if options.class_embeddings is not None:
        rows = _read_rows(options.class_embeddings, width)
        return ToClasses(len(rows), width, rows)
    if options.reference != "input":
        return ToItself(1, width)
    if any(value.name == REFERENCE for value in study.graph.inputs):
        raise UnsupportedTaskError(f"the model already has an input {REFERENCE!r}, as the new one would be called")
    return ToInput(1, width, batch)


def _read_rows(path: str, width: int) -> npt.NDArray[Any]:
    """Class embeddings of length one.

    Raises:
        ModelFileError: the file is missing, no array of NumPy, or of other embeddings.
    """
    try:
        rows = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        raise ModelFileError(f"cannot read the class embeddings {path}: {err}") from err
    if not isinstance(rows, np.ndarray):
        raise _misfit(width, "several arrays")
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != width:
        raise _misfit(width, str(list(rows.shape)))
    if rows.dtype.kind not in "fiu" or not np.isfinite(rows.astype(np.float64)).all():
        raise ModelFileError(f"class embeddings must be finite numbers, {path} holds {rows.dtype}")
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not lengths.all():
        raise ModelFileError("a class embedding is zero: it has no direction to compare with")
    return np.asarray(rows / lengths, np.float32)


def _misfit(width: int, found: str) -> ModelFileError:
    return ModelFileError(f"class embeddings must be [K, {width}], as the model's own are {width} long, not {found}")


TASK = Embedding()
