"""What was written into a model when its map was inserted, held against the model as it is now."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from xai_insert.errors import ModelFileError
from xai_insert.explain.outputs import OF_ANOTHER, OWN

_OUTPUTS = ("classes_at", "map_at", "score_at", "label_at", "bins_at")
_WHOLE = ("classes", "background", "class_axis", "first_label", "per_box_first_label")
_REAL = ("suppression_overlap", "threshold", "rectangle", "frames")
_SEVERAL = {"bins_at": 2, "frames": 2, "rectangle": 4}
_NONE = {"classes": "", "background": "none", "class_axis": "none"}  # what is written where there is no number
_LARGEST = 2**31 - 1
_WHOLE_NUMBER = re.compile("-?[0-9]{1,10}")


def require_sound(about: Mapping[str, str], names: Sequence[str]) -> None:
    """Refuse entries that are read as numbers and are none, or name an output that the model does not have.

    Args:
        about: the entries, without their prefix.
        names: the outputs' names, as `read_outputs` takes them.

    Raises:
        ModelFileError: naming the entry.
    """
    predictions = sum(name not in OWN and not name.startswith(OF_ANOTHER) for name in names)
    for key in (*_OUTPUTS, *_WHOLE, *_REAL):
        text = about.get(key)
        if text is None or text == _NONE.get(key):
            continue
        if key in _OUTPUTS:
            is_sound, wanted = _are(text, key, lambda number: 0 <= number < predictions), "that of an output"
        elif key in _WHOLE:
            is_sound, wanted = _are(text, key, lambda number: abs(number) <= _LARGEST), "a whole number"
        else:
            is_sound, wanted = _are_finite(text, key), "a finite number"
        if not is_sound:
            raise ModelFileError(
                f"the metadata entry {key!r} is {text[:60]!r}, wanted {wanted}; has another tool changed the model?"
            )


def _are(text: str, key: str, fits: Callable[[int], bool]) -> bool:
    parts = text.split()
    return len(parts) == _SEVERAL.get(key, 1) and all(
        _WHOLE_NUMBER.fullmatch(part) and fits(int(part)) for part in parts
    )


def _are_finite(text: str, key: str) -> bool:
    parts = text.split()
    try:
        return len(parts) == _SEVERAL.get(key, 1) and all(math.isfinite(float(part)) for part in parts)
    except ValueError:
        return False
