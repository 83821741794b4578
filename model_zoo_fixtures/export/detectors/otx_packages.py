"""Let single modules of OTX 2 be imported without the training stack that its packages pull in."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

_BARE = (
    "otx",
    "otx.backend",
    "otx.backend.native",
    "otx.backend.native.models",
    "otx.backend.native.models.detection",
    "otx.backend.native.models.instance_segmentation",
    "otx.backend.native.models.common.backbones",
    "otx.backend.native.tools",
    "otx.backend.native.tools.explain",
    "otx.utils",
)
_ABSENT = ("otx.data", "otx.types", "otx.metrics", "lightning", "torchmetrics", "datumaro", "pytorchcv", "jsonargparse")


class _Finder:
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if any(name == absent or name.startswith(absent + ".") for absent in _ABSENT):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = MagicMock(name=spec.name)
        module.__path__ = []
        module.__spec__ = spec
        return module

    def exec_module(self, module: ModuleType) -> None:
        return None


def install() -> None:
    """Make ``otx.backend.native.models.detection`` importable module by module."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    spec = importlib.util.find_spec("otx")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in _BARE:
        module = ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    sys.meta_path.insert(0, _Finder())
