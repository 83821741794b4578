"""What an insertion found out of a model's outputs, as one record, and as the metadata entries that hold it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from xai_insert.errors import ModelFileError

_LARGEST = 2**31 - 1
_WHOLE_NUMBER = re.compile("-?[0-9]{1,10}")
_NONE = "none"
PASTED = "pasted"
"""Of masks: each is that of its box, to be pasted into the image."""


@dataclass(frozen=True)
class Layout:
    """What outputs mean; None, or empty, for what a model has not, or what is not known of it.

    Outputs are counted in the model's order, those that were inserted left out.

    Attributes:
        classes: number of classes that the maps count.
        background: index of the background among them.
        first_label: the label that a detector's list gives to the class of map 0.
        labels: those that the model gives to the classes, where they are not counted.
        masks: how the masks of instances lie: `pasted` is of the box.
        box_format: how four numbers describe a box, `corners-pixels` or the like.
        suppression_overlap: intersection over union above which neighbours are the same object.
        classes_at: which output has the classes of every place.
        class_axis: its axis of the scores of classes, or that of the key points in `map_at`.
        map_at: which output is the map.
        score_at: which one is the score of the image.
        label_at: which one says whether that is too much.
        bins_at: which ones score the bins along columns and along rows.
        threshold: what a map is compared with.
        rectangle: where the maps lie, as fractions of the image: top, left, bottom, right.
        frames: of a clip, frames from one time of a map to the next, and the frame in the middle of the first.
    """

    classes: int | None = None
    background: int | None = None
    first_label: int | None = None
    labels: tuple[int, ...] | None = None
    masks: str = ""
    box_format: str = ""
    suppression_overlap: float | None = None
    classes_at: int | None = None
    class_axis: int | None = None
    map_at: int | None = None
    score_at: int | None = None
    label_at: int | None = None
    bins_at: tuple[int, ...] | None = None
    threshold: float | None = None
    rectangle: tuple[float, ...] | None = None
    frames: tuple[float, ...] | None = None

    def written(self, *also: str) -> dict[str, str]:
        """The entries of what is known.

        Args:
            *also: names of entries that are written as `none` where they are not.
        """
        told = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: _NONE if value is None else _text(value)
            for name, value in told.items()
            if value not in (None, "") or name in also
        }

    @classmethod
    def read(cls, about: Mapping[str, str], outputs: int) -> Layout:
        """What was written into a model, by this version or an older one.

        Args:
            about: the entries, without their prefix.
            outputs: how many outputs the model has beside those that were inserted.

        Raises:
            ModelFileError: an entry is no such number, or names an output that the model does not have.
        """
        told: dict[str, Any] = {"masks": _masks(about), "box_format": _box_format(about)}
        for name, kind in _NUMBERS.items():
            text = about.get(name)
            if text is not None and text != kind.nothing:
                told[name] = kind.read(name, text, outputs)
        before = told.pop("per_box_first_label", None)
        return cls(**{"first_label": before, **told})


class _Kind(Enum):
    """What a number stands for, in words."""

    OUTPUT = "that of an output"
    WHOLE = "a whole number"
    REAL = "a finite number"


@dataclass(frozen=True)
class _Numbers:
    """What an entry holds.

    Attributes:
        kind: of its numbers.
        count: how many numbers; 0 for any.
        nothing: what is written where there is none.
    """

    kind: _Kind
    count: int = 1
    nothing: str = _NONE

    def read(self, name: str, text: str, outputs: int) -> Any:
        parts = text.split()
        found = [self._number(part, outputs) for part in parts]
        if len(found) != (self.count or len(found)) or None in found:
            what = f"the metadata entry {name!r} is {text[:60]!r}, wanted {self.kind.value}"
            raise ModelFileError(f"{what}; has another tool changed the model?")
        return found[0] if self.count == 1 else tuple(found)

    def _number(self, text: str, outputs: int) -> float | None:
        if self.kind is _Kind.REAL:
            return _finite(text)
        number = int(text) if _WHOLE_NUMBER.fullmatch(text) else None
        if number is None or abs(number) > _LARGEST:
            return None
        return number if self.kind is _Kind.WHOLE or 0 <= number < outputs else None


_NUMBERS = {
    "classes": _Numbers(_Kind.WHOLE, nothing=""),
    "background": _Numbers(_Kind.WHOLE),
    "first_label": _Numbers(_Kind.WHOLE),
    "labels": _Numbers(_Kind.WHOLE, count=0),
    "per_box_first_label": _Numbers(_Kind.WHOLE),
    "suppression_overlap": _Numbers(_Kind.REAL),
    "classes_at": _Numbers(_Kind.OUTPUT),
    "class_axis": _Numbers(_Kind.WHOLE),
    "map_at": _Numbers(_Kind.OUTPUT),
    "score_at": _Numbers(_Kind.OUTPUT),
    "label_at": _Numbers(_Kind.OUTPUT),
    "bins_at": _Numbers(_Kind.OUTPUT, count=2),
    "threshold": _Numbers(_Kind.REAL),
    "rectangle": _Numbers(_Kind.REAL, count=4),
    "frames": _Numbers(_Kind.REAL, count=2),
}


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _text(value: float | str | Sequence[float]) -> str:
    if isinstance(value, tuple):
        return " ".join(str(n) if isinstance(n, int) else f"{n:.6g}" for n in value)
    return value if isinstance(value, str) else repr(value)


_PASTED_BEFORE = "masks pasted from boxes"
_FORMATS_BEFORE = {
    f"{points} in {unit}": f"{points}-{unit.split()[0]}"
    for points in ("corners", "centres")
    for unit in ("pixels", "shares of the image")
}
"""What files say for people, which were written before there was an entry for programs."""


def _masks(about: Mapping[str, str]) -> str:
    return about.get("masks", PASTED if about.get("form") == _PASTED_BEFORE else "")


def _box_format(about: Mapping[str, str]) -> str:
    return about.get("box_format", _FORMATS_BEFORE.get(about.get("boxes", ""), ""))
