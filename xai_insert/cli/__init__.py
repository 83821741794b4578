"""Command lines: parse, call one public function, print, map errors to exit codes."""

import os

# onnxruntime sends usage data home unless told otherwise before it is loaded; who wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
