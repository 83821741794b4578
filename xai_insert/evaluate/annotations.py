"""Boxes of objects that people have drawn: COCO's JSON, or a folder of PASCAL VOC's XML."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from xai_insert.evaluate.errors import AnnotationError
from xai_insert.explain.files import shown

_MOST_OF_VOC = 1 << 24
_SAME_ASPECT = 0.02
_NAMED = 3


@dataclass(frozen=True)
class Box:
    """One object: the name of its class, and left, top, right, bottom in pixels."""

    label: str
    edges: tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotated:
    """What is known of one image: its size, width first, None if it is not told, and its objects."""

    place: PurePosixPath
    size: tuple[float, float] | None
    boxes: tuple[Box, ...]

    def shares(self, width: int, height: int) -> Iterator[tuple[str, tuple[float, float, float, float]]]:
        """The objects in shares of the image, which is of that size.

        Raises:
            AnnotationError: the image has other proportions than the annotated one.
        """
        across, down = self.size or (width, height)
        if abs(across * height - down * width) > _SAME_ASPECT * down * width:
            raise AnnotationError(
                f"the annotations of {self.place} are of an image of {across:g}x{down:g}, but it is {width}x{height}; "
                "has it been turned or cut since?"
            )
        for box in self.boxes:
            left, top, right, bottom = box.edges
            yield box.label, (left / across, top / down, right / across, bottom / down)


class Annotations:
    """Annotated images, found by their names.

    Args:
        source: where they come from, for messages.
        images: the images.
    """

    def __init__(self, source: Path, images: Iterable[Annotated]) -> None:
        self.source = source
        self._by_stem: dict[str, list[Annotated]] = {}
        for image in images:
            self._by_stem.setdefault(image.place.stem, []).append(image)

    def labels(self) -> set[str]:
        """The names of all classes that an object has."""
        return {box.label for group in self._by_stem.values() for image in group for box in image.boxes}

    def of(self, path: Path) -> Annotated | None:
        """What is known of an image file; None if nothing is.

        Raises:
            AnnotationError: several images of that name are annotated, and their folders do not tell them apart.
        """
        fits = self._by_stem.get(path.stem, [])
        if len(fits) > 1:
            fits = _in_folders(fits, PurePosixPath(path.as_posix()).with_suffix("").parts)
            if len(fits) != 1:
                raise AnnotationError(f"{self.source} has annotations of several images called {path.stem}")
        return fits[0] if fits else None


def read_annotations(path: Path) -> Annotations:
    """Read annotations.

    Args:
        path: a `.json` file as COCO's, with `images`, `annotations` and `categories`, or a folder of `.xml` files as
            those of PASCAL VOC, one for each image, of its name. Crowds are left out.

    Raises:
        AnnotationError: there is no such thing, or it is damaged.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.xml"))
        if not files:
            raise AnnotationError(f"no annotations in {shown(path)}: wanted files that end in .xml, as PASCAL VOC's")
        return Annotations(path, (_voc(file, path) for file in files))
    if not path.is_file():
        raise AnnotationError(f"no such annotations: {shown(path)}")
    if path.suffix.lower() != ".json":
        raise AnnotationError(
            f"unknown kind of annotations {shown(path.name)!r}: wanted COCO's .json, or a folder of PASCAL VOC's .xml"
        )
    return Annotations(path, _coco(path))


def _coco(path: Path) -> list[Annotated]:
    try:
        data = json.loads(path.read_bytes())
        names = {item["id"]: str(item["name"]) for item in data["categories"]}
        found: dict[Any, list[Box]] = {item["id"]: [] for item in data["images"]}
        for item in data["annotations"]:
            if item.get("iscrowd"):
                continue
            x, y, width, height = _finite(item["bbox"])
            found[item["image_id"]].append(Box(names[item["category_id"]], (x, y, x + width, y + height)))
        return [
            Annotated(PurePosixPath(str(item["file_name"])), _size(item), tuple(found[item["id"]]))
            for item in data["images"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        what = f"{type(err).__name__}: {err}" if isinstance(err, (KeyError, TypeError)) else str(err)
        raise AnnotationError(
            f"cannot read {shown(path)} as COCO's annotations (images, annotations, categories): {what}"
        ) from err


def _size(image: Mapping[str, Any]) -> tuple[float, float] | None:
    if not image.get("width") or not image.get("height"):
        return None
    width, height = _finite([image["width"], image["height"]])
    return width, height


def _voc(path: Path, folder: Path) -> Annotated:
    try:
        content = path.read_bytes()
        if len(content) > _MOST_OF_VOC or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise AnnotationError(f"cannot read {shown(path)}: too large, or with a document type, which VOC has not")
        root = ElementTree.fromstring(content)
        boxes = [_voc_box(item) for item in root.iter("object")]
        sides = [root.findtext(f"size/{key}") for key in ("width", "height")]
        size = _size({"width": float(sides[0] or 0), "height": float(sides[1] or 0)})
    except (OSError, ValueError, TypeError, ElementTree.ParseError) as err:
        raise AnnotationError(f"cannot read {shown(path)} as PASCAL VOC's annotations: {err}") from err
    return Annotated(PurePosixPath(path.relative_to(folder).as_posix()), size, tuple(boxes))


def _voc_box(item: ElementTree.Element) -> Box:
    label, edges = item.findtext("name"), item.find("bndbox")
    if not label or edges is None:
        raise ValueError("an object without name or bndbox")
    left, top, right, bottom = _finite([edges.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")])
    return Box(label.strip(), (left - 1, top - 1, right, bottom))  # they count from 1, ends included


def _finite(numbers: Sequence[Any]) -> list[float]:
    found = [float(number) for number in numbers]
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{numbers} are no numbers")
    return found


def class_numbers(annotations: Annotations, known: Sequence[tuple[str, int]]) -> tuple[dict[str, int], list[str]]:
    """The number of each annotated class in the model, and the classes that the model does not know.

    Args:
        annotations: see there.
        known: the model's names of its classes, with their numbers; empty if it has none.

    Raises:
        AnnotationError: the model has no names, knows none of the classes, or has one name twice.
    """
    wanted = sorted(annotations.labels())
    if not known:
        raise AnnotationError(
            f"the model has no names for its classes, so those of {shown(annotations.source)} cannot be found: --labels"
        )
    names, numbers = [label for label, _ in known], dict(known)
    _require_once(wanted, names)
    unknown = [label for label in wanted if label not in numbers]
    if wanted and len(unknown) == len(wanted):
        raise AnnotationError(
            f"classes unknown to the model: {listed(unknown)}; it has {listed(names)}; --labels gives other names"
        )
    return {label: numbers[label] for label in wanted if label in numbers}, unknown


def _require_once(wanted: Sequence[str], names: Sequence[str]) -> None:
    twice = next((label for label in wanted if names.count(label) > 1), None)
    if twice is not None:
        raise AnnotationError(f"several classes of the model are called {twice!r}: give other names, --labels")


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _in_folders(annotated: Sequence[Annotated], parts: tuple[str, ...]) -> list[Annotated]:
    """Those whose own folders are the last ones of a path, of the most folders."""
    own = [item.place.with_suffix("").parts for item in annotated]
    lengths = [len(place) if parts[-len(place) :] == place else 0 for place in own]
    return [item for item, length in zip(annotated, lengths, strict=True) if length and length == max(lengths)]
