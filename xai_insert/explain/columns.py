"""What a run says about one image as a row of columns, maps included, and files of many rows."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from xai_insert.explain.errors import RunError
from xai_insert.explain.explained import Explained, OfOther
from xai_insert.explain.outputs import Array

FormatName = Literal["jsonl", "parquet"]

FORMATS: tuple[str, ...] = get_args(FormatName)


def row(source: str, size: tuple[int, int], found: Explained) -> dict[str, Any]:
    """The row of an image that was explained.

    Args:
        source: its path.
        size: its width and height.
        found: what the model says about it.

    Returns:
        `source`, `width`, `height`, `predictions` (`class_id`, `label`, `score`, and of objects `box` in pixels),
        `maps`, `note` and `error`. A map has `class_id`, `label` and `score`, None where it is of all classes, `box`
        where it is of one object, `height`, `width`, `dtype` (`uint8`, or `float32` for raw scores), `data`, its
        elements row by row, `low` and `high`, the raw scores behind 0 and 255 where the model tells them, and `input`,
        the name of the input whose image it is of where that is another one that is fed, else None.
    """
    width, height = size
    return {
        "source": source,
        "width": width,
        "height": height,
        "predictions": [{"box": None, **item.record(width, height)} for item in found.predictions],
        "maps": [*_maps(found, width, height), *_maps_of_others(found.others)],
        "note": found.note,
        "error": None,
    }


def failed_row(source: str, error: str) -> dict[str, Any]:
    """The row of an image that could not be read."""
    return {
        "source": source,
        "width": None,
        "height": None,
        "predictions": [],
        "maps": [],
        "note": None,
        "error": error,
    }


def _maps(found: Explained, width: int, height: int) -> Iterator[dict[str, Any]]:
    if found.is_joint:
        yield _map(found.saliency_map, {"class_id": None, "label": None, "score": None}, None)
    else:
        for item in found.chosen:
            about = {"class_id": item.class_id, "label": item.label, "score": item.score if found.has_scores else None}
            yield _map(found.map_of(item.class_id), about, found.range_of(item.class_id))
    shown = {item.class_id for item in found.chosen}
    for instance in found.instances:
        if instance.saliency_map is not None and (found.is_joint or instance.class_id in shown):
            yield _map(instance.saliency_map, instance.record(width, height), None)


def _maps_of_others(others: Sequence[OfOther]) -> Iterator[dict[str, Any]]:
    for other in others:
        height, width = other.image.shape[:2]
        for item in _maps(other.found, width, height):
            yield {**item, "input": other.input}


def _map(saliency: Array, about: Mapping[str, Any], span: tuple[float, float] | None) -> dict[str, Any]:
    elements = saliency if saliency.dtype == np.uint8 else np.asarray(saliency, "<f4")
    return {
        "box": None,
        **about,
        "height": saliency.shape[0],
        "width": saliency.shape[1],
        "dtype": elements.dtype.name,
        "data": elements.tobytes(),
        "low": None if span is None else span[0],
        "high": None if span is None else span[1],
        "input": None,
    }


def packed(rows: Sequence[Mapping[str, Any]], kind: FormatName) -> bytes:
    """The content of a file of rows.

    Raises:
        RunError: PyArrow is not installed.
    """
    if kind == "jsonl":
        return b"".join(
            json.dumps(item, ensure_ascii=False, default=_text).encode(errors="replace") + b"\n" for item in rows
        )
    arrow, parquet = require_arrow()
    content = BytesIO()
    parquet.write_table(arrow.Table.from_pylist(list(rows), _schema(arrow)), content, compression="zstd")
    return content.getvalue()


def sources_in(path: Path) -> Iterator[str]:
    """The sources of the rows of a file that `packed` made.

    Raises:
        RunError: it is no such file.
    """
    try:
        if path.suffix == ".jsonl":
            with path.open("rb") as file:
                for line in file:
                    yield json.loads(line)["source"]
        else:
            _, parquet = require_arrow()
            yield from parquet.read_table(path, columns=["source"])["source"].to_pylist()
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise RunError(f"cannot read {path}, which is no file of an earlier run: {err}") from err


def require_arrow() -> tuple[Any, Any]:
    """PyArrow and its Parquet.

    Raises:
        RunError: it is not installed.
    """
    try:
        import pyarrow  # noqa: PLC0415 - an extra
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as err:
        raise RunError("Parquet is written by PyArrow: pip install 'xai-insert[parquet]', or --format jsonl") from err
    return pyarrow, pyarrow.parquet


def _schema(arrow: Any) -> Any:
    whole, number, box = arrow.int32(), arrow.float64(), arrow.list_(arrow.float64())
    item = [("class_id", whole), ("label", arrow.string()), ("score", number), ("box", box)]
    of_map = [("height", whole), ("width", whole), ("dtype", arrow.string()), ("data", arrow.binary())]
    ends = [("low", number), ("high", number), ("input", arrow.string())]
    return arrow.schema(
        [
            ("source", arrow.string()),
            ("width", whole),
            ("height", whole),
            ("predictions", arrow.list_(arrow.struct(item))),
            ("maps", arrow.list_(arrow.struct([*item, *of_map, *ends]))),
            ("note", arrow.string()),
            ("error", arrow.string()),
        ]
    )


def _text(value: bytes) -> str:
    return b64encode(value).decode()
