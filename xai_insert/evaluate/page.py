"""The page of an evaluation or a comparison: one file that needs no network and no script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np

from xai_insert.explain import files
from xai_insert.explain.draw import Image

_SIDE = 224
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1d23; --pale: #5b6474; --line: #dfe3e9; --page: #fff; --soft: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceef2; --pale: #a3acba; --line: #2f353f; --page: #14161a; --soft: #1c2027; }
}
body { margin: 0; padding: 20px 24px 40px; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 4px; font-size: 22px; } h2 { margin: 28px 0 8px; font-size: 17px; }
p { margin: 4px 0; max-width: 80ch; } .pale, dt, figcaption { color: var(--pale); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; font-weight: 600; }
.images { display: flex; flex-wrap: wrap; gap: 18px; list-style: none; margin: 0; padding: 0; }
.images li { background: var(--soft); border: 1px solid var(--line); padding: 10px; width: min-content; }
.images div { display: flex; gap: 8px; } figure { margin: 0; }
@media (max-width: 540px) { .images div { flex-wrap: wrap; } }
img { display: block; height: auto; }
figcaption { font-size: 12px; } .images p { font-size: 13px; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, eq=False)
class Card:
    """One image on the page.

    Attributes:
        title: its file.
        lines: what is said below.
        pictures: uint8 RGB `[H, W, 3]` with a caption each.
    """

    title: str
    lines: Sequence[str]
    pictures: Sequence[tuple[str, Image]]


def write(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    verdicts: Sequence[str],
    head: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    cards: Iterable[Card],
) -> None:
    """Write the page.

    Args:
        path: the file.
        title: its heading.
        facts: about the run.
        verdicts: sentences above the table.
        head: of the table.
        rows: of the table.
        cards: the worst images.

    Raises:
        RunError: it cannot be written.
    """

    def parts() -> Iterable[str]:
        yield (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'\">\n"
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        )
        yield from (f"<p>{escape(verdict)}</p>\n" for verdict in verdicts)
        yield '<div class="scroll"><table>\n<tr>' + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>\n"
        for name, cells in rows:
            yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in (name, *cells)) + "</tr>\n"
        yield '</table></div>\n<h2>Worst images first</h2>\n<ul class="images">\n'
        yield from map(_card, cards)
        yield "</ul>\n<h2>About</h2>\n<dl>\n"
        yield from (f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>\n" for key, text in facts.items())
        yield "</dl>\n</body>\n</html>\n"

    files.write(path, (part.encode(errors="replace") for part in parts()))


def _card(card: Card) -> str:
    figures = "".join(
        f'<figure><img src="data:image/jpeg;base64,{_jpeg(picture)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, picture in card.pictures
    )
    lines = "".join(f'<p class="pale">{escape(line)}</p>' for line in card.lines)
    return f"<li><div>{figures}</div><p>{escape(card.title)}</p>{lines}</li>\n"


def _jpeg(picture: Image) -> str:
    ratio = _SIDE / max(picture.shape[:2])
    size = [max(1, round(side * ratio)) for side in picture.shape[1::-1]]
    small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return b64encode(files.encode_jpeg(small)).decode()
