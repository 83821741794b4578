"""What a folder registers: a file each, whose name is the name; listed without importing any of them."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

METHODS_FOLDER = "xai_insert.methods.named"
TASKS_FOLDER = "xai_insert.tasks.known"


@cache
def names(folder: str) -> tuple[str, ...]:
    """The names in a package of registered files, `vit-recipro-cam` for `vit_recipro_cam.py`; none is imported."""
    modules = pkgutil.iter_modules(importlib.import_module(folder).__path__)
    return tuple(sorted(module.name.replace("_", "-") for module in modules))


@cache
def registered(folder: str, name: str, attribute: str) -> Any:
    """What the file of that name registers under `attribute`."""
    return getattr(importlib.import_module(f"{folder}.{name.replace('-', '_')}"), attribute)
