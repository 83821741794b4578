"""xai-insert: make exported vision models explain themselves.

`insert` takes an OpenVINO IR or ONNX model and returns one whose single inference gives the untouched predictions and
a saliency map. See `Options` for what can be chosen and `errors` for what can go wrong.
"""

from typing import TYPE_CHECKING, Any

from xai_insert import errors
from xai_insert.options import Options
from xai_insert.pipeline import InsertResult, insert, insert_file, plan_insertion
from xai_insert.report import Report
from xai_insert.version import __version__

if TYPE_CHECKING:
    from xai_insert.explain.draw import overlay

__all__ = [
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


def __getattr__(name: str) -> Any:
    """Import what draws on first use: whoever only inserts does not pay for OpenCV."""
    if name == "overlay":
        from xai_insert.explain.draw import overlay  # noqa: PLC0415

        return overlay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
