"""What an IR from an unknown source could do to its reader, and refusing it before it is read."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.parsers import expat

from xai_insert.errors import ModelFileError

_DEEPEST = 200  # bodies of loops within loops; readers recurse
_BITS = re.compile(r"\d+")
_OLDEST = 10
_ODD_BITS = {"boolean": 8, "bf16": 16, "nf4": 4}


def require_safe(xml: Path) -> None:
    """Refuse an IR that is no IR, brings entities, or has constants that its weights do not hold.

    Raises:
        ModelFileError: saying where.
    """
    weights = xml.with_suffix(".bin")
    with xml.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not start.startswith((b"<?xml", b"<net")):
            raise ModelFileError("not an OpenVINO IR: wanted XML with <net>; is the file whole?")
        if not weights.is_file():
            raise ModelFileError(f"the weights are missing: wanted {weights}")
        file.seek(0)
        parser = expat.ParserCreate()
        _Walk(weights.stat().st_size).attach(parser)
        try:
            parser.ParseFile(file)
        except expat.ExpatError as err:
            raise ModelFileError(f"OpenVINO cannot read the file: no well-formed XML: {err}; is it whole?") from err


class _Walk:
    """One pass over the XML."""

    def __init__(self, weights: int) -> None:
        self._weights = weights
        self._depth = 0
        self._layer = ""
        self._kind = ""

    def attach(self, parser: expat.XMLParserType) -> None:
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._doctype

    def _doctype(self, *_: object) -> None:
        raise ModelFileError("the XML declares a document type, as entities need it; an OpenVINO IR has none: refused")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ModelFileError(f"the XML is nested more than {_DEEPEST} elements deep: refused")
        if tag == "net":
            _require_version(attributes.get("version", ""))
        elif tag == "layer":
            self._layer, self._kind = attributes.get("name", "")[:200], attributes.get("type", "")
        elif tag == "data" and self._kind == "Const":
            self._constant(attributes)

    def _end(self, _: str) -> None:
        self._depth -= 1

    def _constant(self, attributes: dict[str, str]) -> None:
        what = f"constant {self._layer!r}"
        try:
            offset, size = int(attributes["offset"]), int(attributes["size"])
            shape = [int(text) for text in attributes.get("shape", "").split(",") if text.strip()]
        except (KeyError, ValueError) as err:
            raise ModelFileError(f"{what} lacks a number for offset, size or shape; is the file whole?") from err
        if offset < 0 or size < 0 or min(shape, default=0) < 0:
            raise ModelFileError(f"{what} declares a negative offset, size or dimension; is the file whole?")
        if offset + size > self._weights:
            raise ModelFileError(
                f"{what} ends at byte {offset + size} of the weights, which have {self._weights}; is the file whole?"
            )
        kind = attributes.get("element_type", "")
        if math.prod(shape) * _bits(kind) > 8 * size:
            raise ModelFileError(f"{what} of shape {shape} and type {kind} does not fit its {size} bytes")


def _require_version(version: str) -> None:
    if version.isdigit() and int(version) < _OLDEST:
        raise ModelFileError(
            f"the IR is of version {version}, of OpenVINO before 2020, which no OpenVINO since 2024 reads: convert the "
            "original model (ONNX, TensorFlow) anew, with ovc"
        )


def _bits(kind: str) -> int:
    """How many bits an element of a type takes, as its name tells; 0 if it does not."""
    digits = _BITS.search(kind)
    return _ODD_BITS.get(kind) or (int(digits.group()) if digits else 0)
