"""Names of classes in a model's metadata."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

_MOST_TEXT = 1 << 21
_NO_OBJECT = "otx_empty_lbl"
_STRING = r"""'(?:[^'\\\n]|\\.){0,400}'|"(?:[^"\\\n]|\\.){0,400}\""""
_ENTRY = re.compile(rf"\s*(?:(\d{{1,6}})\s*:\s*)?({_STRING})\s*")


def class_names(info: Mapping[str, str]) -> tuple[str, ...]:
    """Read Model API's `labels`, words in the order of classes, or else `names`, as ultralytics writes them.

    Args:
        info: the metadata; `names` is a Python dictionary or list as text, such as `{0: 'person', 1: 'traffic light'}`.

    Returns:
        One name for each class; empty if there are none, or if `names` is anything else than that. What OTX puts before
        them, because Model API counts classes of masks from 1, is left out.
    """
    words = tuple(info.get("labels", "").split())
    if words[:1] == (_NO_OBJECT,):
        words = words[1:]
    return words or _written_out(info.get("names", ""))


def _written_out(text: str) -> tuple[str, ...]:
    """Read the literal entry by entry, so that only short strings are ever evaluated, however the text is nested."""
    text = text.strip()
    if len(text) > _MOST_TEXT or text[:1] + text[-1:] not in ("{}", "[]"):
        return ()
    found = sorted(_entries(text) or ())
    if [number for number, _ in found] != list(range(len(found))):
        return ()  # with a number left out or given twice, the others cannot be trusted
    try:
        return tuple(_one_line(ast.literal_eval(string)) for _, string in found)
    except (SyntaxError, ValueError):  # an escape that stands for no character
        return ()


def _entries(text: str) -> list[tuple[int, str]] | None:
    """The numbers and strings between the brackets; None if anything else stands there."""
    found: list[tuple[int, str]] = []
    is_numbered, place, end = text[0] == "{", 1, len(text) - 1
    while place < end:
        entry = _ENTRY.match(text, place, end)
        if entry is None or (entry[1] is not None) != is_numbered:
            return None
        found.append((int(entry[1] or len(found)), entry[2]))
        place = entry.end()
        if place < end and text[place] != ",":
            return None
        place += 1
    return found


def _one_line(name: str) -> str:
    """Without line breaks, and without half characters, which no file can hold."""
    return " ".join(name.encode(errors="replace").decode().split())
