"""The contact sheet: one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

_HEIGHT, _NARROWEST, _WIDEST = 232, 120, 300
_SMALLEST = 96
_LEAST = 0.005


def build(records: Collection[Mapping[str, Any]], title: str = "Explained images") -> Iterator[bytes]:
    """Write the page, one image after the other.

    Args:
        records: one per image, as `Explainer` writes them; paths are relative to the page.
        title: heading.
    """
    template = (files(__package__) / "page.html").read_text(encoding="utf-8")
    count = f"{len(records)} image{'' if len(records) == 1 else 's'}"
    for key, value in {"title": escape(title), "count": count}.items():
        template = template.replace(f"<!--{key}-->", value)
    above, _, below = template.partition("<!--rows-->\n")
    yield above.encode()
    for record in records:
        yield f"{_row(record)}\n".encode(errors="replace")
    yield below.encode()


def _row(record: Mapping[str, Any]) -> str:
    name = PurePath(record["source"]).name
    width, height = record["size"]
    shown = min(max(_HEIGHT * width / height, _NARROWEST), _WIDEST)
    raw = max(min(shown, shown * height / width) / 2, _SMALLEST)
    predictions = [item for item in record["predictions"] if item["score"] >= _LEAST] or record["predictions"][:1]
    bars = "".join(
        f'<li><span class="label">{escape(item["label"])}</span><span class="score">{item["score"]:.2f}</span>'
        f'<span class="bar"><i style="width:{100 * item["score"]:.1f}%"></i></span></li>'
        for item in predictions
    )
    listed = f"<ol>{bars}</ol>" if bars else f"<p>{'boxes not read' if 'note' in record else 'nothing found'}</p>"
    pairs = []
    for item in record["maps"]:
        title = f"{name}: {item['title']}"
        score = f"<b>{escape(item['title'])}</b> {item['score']:.2f}" if "score" in item else escape(item["title"])
        pair = _picture(item["overlay"], title, score, "overlay") if item["overlay"] else ""
        if item["raw"] and item["raw"].endswith(".png"):
            caption = f"raw map {_times(*item['grid'])}"
            caption = caption if pair else f"{escape(item['title'])}, {caption}"
            pair += _picture(item["raw"], f"{title}, raw map", caption, "raw")
        pairs.append(f'<div class="pair">{pair}</div>')
    sizes = f"--width:{shown:.0f}px;--ratio:{width}/{height};--raw:{raw:.0f}px"
    return (
        f'<section style="{sizes}"><div class="facts"><h2>{escape(name)}</h2>'
        f'<p>{_times(width, height)}</p>{listed}</div><div class="pictures">{_picture(record["image"], name, "image")}'
        f'<div class="maps">{"".join(pairs)}</div></div></section>'
    )


def _times(width: int, height: int) -> str:
    return f"{width}&thinsp;&times;&thinsp;{height}"


def _picture(path: str, title: str, caption: str, kind: str = "") -> str:
    return (
        f'<figure class="{kind}"><button type="button" data-title="{escape(title)}">'
        f'<img src="{quote(path)}" alt="{escape(title)}" loading="lazy"></button>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
