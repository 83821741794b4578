"""xai-insert: make exported vision models explain themselves.

`insert` takes an OpenVINO IR or ONNX model and returns one whose single inference gives the untouched predictions and
a saliency map. See `Options` for what can be chosen and `errors` for what can go wrong.
"""

import importlib
from typing import TYPE_CHECKING, Any

from xai_insert import errors
from xai_insert.options import Options
from xai_insert.report import Report
from xai_insert.version import __version__

if TYPE_CHECKING:
    from xai_insert.explain.draw import overlay
    from xai_insert.explain.explainer import Explainer, Explanation
    from xai_insert.pipeline import InsertResult, insert, insert_file, plan_insertion

__all__ = [
    "Explainer",
    "Explanation",
    "InsertResult",
    "Options",
    "Report",
    "__version__",
    "errors",
    "insert",
    "insert_file",
    "overlay",
    "plan_insertion",
]


_LATER = {
    "Explainer": "xai_insert.explain.explainer",
    "Explanation": "xai_insert.explain.explainer",
    "InsertResult": "xai_insert.pipeline",
    "insert": "xai_insert.pipeline",
    "insert_file": "xai_insert.pipeline",
    "overlay": "xai_insert.explain.draw",
    "plan_insertion": "xai_insert.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the command line answers at once, and whoever only inserts does not pay for OpenCV."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
