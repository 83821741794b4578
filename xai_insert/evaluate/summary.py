"""Figures of many images: mean and spread, added up one image at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xai_insert.evaluate.measure import MEASURES


@dataclass
class Spread:
    """Mean and standard deviation of numbers that are seen once (Welford, 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one number in."""
        self.count += 1
        before = value - self.mean
        self.mean += before / self.count
        self.squares += before * (value - self.mean)

    @property
    def deviation(self) -> float:
        """Standard deviation of the numbers; 0 of one."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.deviation / math.sqrt(self.count) if self.count else 0.0

    def text(self) -> str:
        """For people."""
        return f"{self.mean:.3f} ± {self.error:.3f}" if self.count else "-"

    def as_dict(self) -> dict[str, float]:
        """Plain data for JSON."""
        return {
            "mean": self.mean,
            "standard_deviation": self.deviation,
            "standard_error": self.error,
            "images": self.count,
        }


class Summary:
    """The figures of each kind of map, by measure."""

    def __init__(self) -> None:
        self.images = 0
        self.maps: dict[str, dict[str, Spread]] = {}
        self.sanity = Spread()

    def add(self, measured: Mapping[str, Any]) -> None:
        """Take the figures of one image in, see `Evaluation.measure`."""
        self.images += 1
        for name, figures in measured["maps"].items():
            row = self.maps.setdefault(name, {})
            for key, value in figures.items():
                row.setdefault(key, Spread()).add(value)
        if measured["sanity"] is not None:
            self.sanity.add(measured["sanity"])

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """For each measure its title, and the figure of each map."""
        for key, measure in MEASURES.items():
            if any(key in figures for figures in self.maps.values()):
                yield measure.title, [figures.get(key, Spread()).text() for figures in self.maps.values()]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "images": self.images,
            "maps": {
                name: {key: spread.as_dict() for key, spread in figures.items()} for name, figures in self.maps.items()
            },
            "sanity": self.sanity.as_dict() if self.sanity.count else None,
        }


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Aligned columns, the first to the left, the others to the right."""
    lines = [list(head), *([title, *cells] for title, cells in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )
