"""The page for people: `index.html` and the scripts that hold its data, which need no network.

A page that is opened as a file may not read other files, but it may run scripts. So everything it draws from comes as
calls of functions: `run.js` holds the facts of the run, `records.js` a record for each image, and `data/NAME.js` the
maps of one image, fetched when it comes into view. Names and labels in them are anyone's: they are written as ASCII
JSON, and `page.js` turns them into text, never into markup.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np

from xai_insert.explain import files
from xai_insert.explain.draw import COLORMAPS, palette, to_bytes
from xai_insert.explain.errors import RunError
from xai_insert.explain.explained import Instance
from xai_insert.explain.outputs import Array
from xai_insert.explain.picture import Look, Rectangle
from xai_insert.explain.preprocessing import View
from xai_insert.explain.scale import Scaled, ScaleName

_LEAST = 0.005
_LISTED = 100
_FINEST = 96  # cells to a side of a map: more are not seen
_PLACES = 5
_MAPS, _END = "xai.maps(", ");\n"
_WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class About:
    """What the page says about a run.

    Attributes:
        facts: by what they are called: model, method, preprocessing, command, versions, date.
        look: how the maps are drawn at first.
        scale: see `scaled`.
        beside: folder of another run, whose maps are shown beside; relative to the page.
    """

    facts: Mapping[str, str]
    look: Look
    scale: ScaleName
    beside: str | None = None


def write(folder: Path, records: Iterable[Mapping[str, Any]], about: About) -> None:
    """Write the page and its data.

    Args:
        folder: where the results lie.
        records: one per image, as a run writes them; paths are relative to the folder.
        about: the run.

    Raises:
        RunError: a file cannot be written.
    """
    facts = {
        "about": dict(about.facts),
        "look": {**vars(about.look), "scale": about.scale},
        "palettes": {name: _packed(np.stack(palette(name), 1)) for name in COLORMAPS},
        "beside": about.beside,
    }
    files.write(folder / "run.js", f"xai.run({_json(facts)});\n".encode())
    files.write(folder / "records.js", (f"xai.record({_json(_short(record))});\n".encode() for record in records))
    own = resources(__package__)
    scripts = [(own / name).read_text(encoding="utf-8") for name in ("page_maps.js", "page.js")]
    page = (own / "page.html").read_text(encoding="utf-8").replace("/*script*/", "\n".join(scripts))
    files.write(folder / "index.html", page.encode())


def beside(folder: Path, output: Path) -> str:
    """The way from a page to the results of another run.

    Raises:
        RunError: there are none, or no way leads there.
    """
    missing = [name for name in ("run.js", "records.js") if not (folder / name).is_file()]
    if missing:
        raise RunError(f"--beside wants a folder of an earlier run: {files.shown(folder)} holds no {missing[0]}")
    try:
        return Path(os.path.relpath(folder.resolve(), output.resolve())).as_posix()
    except ValueError as err:  # on another drive
        raise RunError(f"no relative way leads from {output} to {folder}") from err


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the page needs of a record."""
    predictions = [item for item in record["predictions"] if item["score"] >= _LEAST] or record["predictions"][:1]
    kept = {key: record[key] for key in ("name", "source", "size", "image", "maps", "data", "note") if key in record}
    short = [{"label": item["label"], "score": round(item["score"], _PLACES)} for item in predictions[:_LISTED]]
    return {**kept, "file": PurePath(record["source"]).name, "predictions": short}


def maps_script(
    maps: Iterable[tuple[Array, Scaled, Sequence[Instance]]], view: View, rectangle: Rectangle | None
) -> bytes:
    """The script with the maps of one image.

    Args:
        maps: for each, what the model gave, what is drawn of it, and the objects on it.
        view: how image and input fit together.
        rectangle: where the maps lie in the input, see `draw`.
    """
    drawn = [(saliency, scaled, list(own)) for saliency, scaled, own in maps]
    objects = list({id(item): item for _, _, own in drawn for item in own}.values())
    numbers = {id(item): number for number, item in enumerate(objects)}
    place = _place(view, rectangle)
    data = {
        "place": _rounded(place),
        "seen": _seen(place, view),
        "maps": [
            {**_entry(saliency, scaled), "objects": [numbers[id(item)] for item in own]}
            for saliency, scaled, own in drawn
        ],
        "objects": [_shown(item) for item in objects],
    }
    return f"{_MAPS}{_json(data)}{_END}".encode()


def _shown(item: Instance) -> dict[str, Any]:
    """What the page shows of an object."""
    return {
        "text": f"{item.label} {item.score:.2f}",
        "box": _rounded(item.box),
        "outline": [_rounded(part.reshape(-1)) for part in item.outline],
    }


def _entry(saliency: Array, scaled: Scaled) -> dict[str, Any]:
    """A map in bytes, no finer than a page shows it, and the least and the greatest value, where they are known."""
    pixels, values = to_bytes(saliency), scaled.values
    if max(pixels.shape) > _FINEST:
        ratio = _FINEST / max(pixels.shape)
        size = [max(1, round(side * ratio)) for side in pixels.shape[::-1]]
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    span = None if values.dtype == np.uint8 else [float(values.min()), float(values.max())]
    entry = {"w": pixels.shape[1], "h": pixels.shape[0], "span": span, "data": _packed(pixels)}
    if scaled.own is not None:
        entry["scale"] = f"{scaled.text} in the middle, colours from {' to '.join(scaled.ends)}"
    return entry


def _seen(place: Sequence[float], view: View) -> list[float] | None:
    """The part of the image that the maps lie on; None if that is all of where they are laid."""
    seen = [max(low, edge) for low, edge in zip(place[:2], view.in_image[:2], strict=True)]
    seen += [min(high, edge) for high, edge in zip(place[2:], view.in_image[2:], strict=True)]
    hides = max(seen[:2]) > 0 or min(seen[2:]) < 1
    return _rounded(seen) if hides else None


def is_maps_script(content: bytes) -> bool:
    """Whether a file holds maps and no other script: the page would run whatever it finds."""
    if not (content.startswith(_MAPS.encode()) and content.endswith(_END.encode())):
        return False
    try:
        return isinstance(json.loads(content[len(_MAPS) : -len(_END)]), dict)
    except (ValueError, RecursionError):
        return False


def _place(view: View, rectangle: Rectangle | None) -> list[float]:
    """Where a map lies, left, top, right, bottom in shares of the image; it may reach beyond."""
    top, left, bottom, right = rectangle or _WHOLE
    (x0, y0, x1, y1), (u0, v0, u1, v1) = view.in_input, view.in_image
    across, down = (u1 - u0) / (x1 - x0), (v1 - v0) / (y1 - y0)
    return [u0 + (left - x0) * across, v0 + (top - y0) * down, u0 + (right - x0) * across, v0 + (bottom - y0) * down]


def _rounded(numbers: Iterable[float]) -> list[float]:
    return [round(float(number), _PLACES) for number in numbers]


def _packed(values: Array) -> str:
    return b64encode(np.ascontiguousarray(values, np.uint8).tobytes()).decode()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
