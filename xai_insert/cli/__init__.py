"""Command lines: parse, call one public function, print, map errors to exit codes."""

import os
import sys

# Both runtimes report their use home, unless they are kept from it before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO does without it
# OpenCV refuses larger pictures by their headers, of every kind that it reads; see `explain.files`.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(178_000_000))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
