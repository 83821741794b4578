"""Which classes get a map, by the options."""

from __future__ import annotations

from typing import Any

from xai_insert.errors import TargetNotFoundError
from xai_insert.graph.ops import Surgeon
from xai_insert.locate.logits import Logits
from xai_insert.methods.top_classes import ClassChoice, best_classes, named_classes
from xai_insert.options import Options

Choice = ClassChoice[Any] | None


def chosen_count(options: Options, logits: Logits) -> int | None:
    """How many classes get a map; None for all.

    Raises:
        TargetNotFoundError: a class that was named is not there.
    """
    if options.classes is None:
        return None if options.top_k is None else min(options.top_k, logits.classes)
    if (highest := max(options.classes)) >= logits.classes:
        raise TargetNotFoundError(f"there is no class {highest}: the model gives {logits.classes} scores, from 0 on")
    return len(options.classes)


def choose_classes(surgeon: Surgeon[Any], logits: Logits, options: Options) -> Choice:
    """Add the choice of the classes that get a map; None for all."""
    if options.classes is not None:
        return named_classes(surgeon, logits.value, logits.classes, options.classes)
    return None if options.top_k is None else best_classes(surgeon, logits.value, logits.classes, options.top_k)
