"""Unique names for everything that is added to a model."""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = "xai/"


class Names:
    """Hands out names under one prefix, none of which is taken."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def unique(self, name: str) -> str:
        """`xai/<name>`, numbered if that is taken."""
        base = name if name.startswith(PREFIX) else PREFIX + name
        candidate, number = base, 1
        while candidate in self._taken:
            candidate, number = f"{base}_{number}", number + 1
        self._taken.add(candidate)
        return candidate
