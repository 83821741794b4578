"""xai-insert: make exported vision models explain themselves.

`insert` takes an OpenVINO IR or ONNX model and returns one whose single inference gives the untouched predictions and
a saliency map. See `Options` for what can be chosen and `errors` for what can go wrong.
"""

from xai_insert import errors
from xai_insert.options import Options
from xai_insert.pipeline import InsertResult, insert, insert_file, plan_insertion
from xai_insert.report import Report
from xai_insert.version import __version__

__all__ = ["InsertResult", "Options", "Report", "__version__", "errors", "insert", "insert_file", "plan_insertion"]
