"""Importing a library without what it imports in turn and may never use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType


class _Later(MetaPathFinder):
    """Finds modules that are loaded when the first of their attributes is read."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname in self._names else None
        if found is not None and found.loader is not None:
            found.loader = LazyLoader(found.loader)
        return found


def leave_out(module: str) -> None:
    """Have nobody find a module in this process from here on; whoever imports it must do without."""
    sys.modules.setdefault(module, None)  # type: ignore[arg-type]  # as Python marks what is not to be found


def import_without(library: str, modules: Collection[str]) -> None:
    """Import a library; modules that it imports and that are not there yet are loaded when they are used.

    Args:
        library: its name.
        modules: full names of what may wait.
    """
    finder = _Later(modules)
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module(library)
    finally:
        sys.meta_path.remove(finder)
