"""Putting a model of two files in the place of another, so that whoever is killed half-way leaves a whole model.

Renaming replaces one file at once, but not two. So every step leaves a pair that fits: the weights hold both models
while the graph changes from one to the other.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from pathlib import Path

_PAGE = 4096
# A stored constant of an IR; the offsets of other layers (of prior boxes, say) have no such neighbours.
_OFFSET = re.compile(r'(<data element_type="[^"]*" shape="[^"]*" offset=")(\d+)(" size="\d+")')


def replace_ir(xml: Path, goal: Path) -> None:
    """Move `xml` and the `.bin` beside it to `goal` and the `.bin` beside that.

    The steps where both exist already: old graph, old weights with the new ones behind them | new graph that reads
    these | new weights in front as well | new graph | new weights. A reader takes each of these pairs for the old
    model or the new one.
    """
    weights, old = xml.with_suffix(".bin"), goal.with_suffix(".bin")
    if goal.is_file() and old.is_file() and not filecmp.cmp(weights, old, shallow=False):
        distance = -(-max(old.stat().st_size, weights.stat().st_size) // _PAGE) * _PAGE
        os.replace(_joined(old, weights, distance, xml.with_name("old+new.bin")), old)
        os.replace(_shifted(xml, distance, xml.with_name("shifted.xml")), goal)
        os.replace(_joined(weights, weights, distance, xml.with_name("new+new.bin")), old)
        os.replace(xml, goal)
        os.replace(weights, old)
        return
    os.replace(weights, old)
    os.replace(xml, goal)


def _joined(first: Path, second: Path, distance: int, result: Path) -> Path:
    """A file with `first` at its beginning and `second` at `distance`."""
    shutil.copyfile(first, result)
    with result.open("r+b") as joined, second.open("rb") as content:
        joined.seek(distance)
        shutil.copyfileobj(content, joined, 1 << 24)
    return result


def _shifted(xml: Path, distance: int, result: Path) -> Path:
    """The graph `xml` with its weights `distance` bytes further on."""
    text = xml.read_text(encoding="utf-8")
    text = _OFFSET.sub(lambda found: f"{found[1]}{int(found[2]) + distance}{found[3]}", text)
    result.write_text(text, encoding="utf-8")
    return result
