"""Write the manifest and the list of failures."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model_zoo_fixtures.archives import replace_in_archive
from model_zoo_fixtures.catalogue import FAILURES, GRAPHS, MANIFEST
from model_zoo_fixtures.export.architectures import Architecture

_COPIED = ("task", "package", "licence", "size", "input", "expected")
_KEYS = {
    "classes": "width of the logits",
    "grid": "rows and columns of the last feature map, which are also those of the saliency map",
    "channels": "channels of the last feature map",
    "layout": "NCHW, NHWC or tokens",
    "prefix_tokens": "tokens that belong to no position: class, distillation, registers",
    "collapse": "how the head ends the grid",
}
_DETECTION_KEYS = {
    "kind": "single_stage; encoder_scores: encoder tokens are scored; two_stage; query: scores of queries only",
    "classes": "width of the class head, background included",
    "background": "index of the background class, -1 where there is none",
    "label_offset": "what to add to a class index to get the label that the model gives out",
    "activation": "what the model does with raw scores",
    "anchors": "anchors of each level, from fine to coarse",
    "grids": "rows and columns of each level, or of the feature maps",
    "row": "channels that one anchor takes in a map of raw scores; or channels of the features",
    "row_offset": "place of the first class in them; or tokens before the first position",
    "tensors": (
        "values (ONNX) or layers (IR) that hold the raw scores of each level as [N, anchors * row, h, w], or of all"
        " levels by token as [N, L, classes]; where no location is scored, the feature maps. Found by comparing values"
        " with the PyTorch model's: they are the oracle, and no analysis may read them"
    ),
    "input": "shape of the input where it is not [1 or free, 3, *size]",
}
_COLLAPSES = {
    "global_average": "mean over the grid or over its tokens",
    "global_max": "maximum over the grid",
    "avg_max": "mean and maximum, added or concatenated",
    "sum": "sum over the grid",
    "gem": "generalised mean",
    "flatten_linear": "linear layer on all positions",
    "grid_conv": "convolution as large as the grid",
    "attention_pool": "attention with a learned query, or one made from the mean",
    "class_token": "one prefix token is read",
    "class_tokens": "several prefix tokens are read",
    "class_token_and_max": "the class token and the maximum over the other tokens are read",
    "class_token_and_mean": "the class token and the mean of the other tokens are read",
    "branches": "several feature maps are read",
}


def exporter_facts() -> dict[str, dict[str, Any]]:
    """Describe the exporters with the versions that are installed."""
    torch, openvino = f"torch {version('torch').partition('+')[0]}", f"openvino {version('openvino').partition('-')[0]}"
    legacy = f"{torch}, TorchScript-based exporter, opset 17"
    frontend = f"{openvino}, PyTorch front end, float32"
    return {
        "legacy": {"format": "onnx", "batch": "one", "tool": legacy},
        "dynamo": {"format": "onnx", "batch": "one", "tool": f"{torch}, torch.export-based exporter, default opset"},
        "ptir": {"format": "ir", "batch": "one", "tool": frontend},
        "onnxir": {"format": "ir", "batch": "one", "tool": f"{openvino}, ONNX front end, from legacy"},
        "legacydyn": {"format": "onnx", "batch": "free", "tool": legacy},
        "ptirdyn": {"format": "ir", "batch": "free", "tool": frontend},
    }


def is_settled(arch: str, exporter: str) -> bool:
    """Tell whether an export is in the manifest or among the failures."""
    entry = _read(MANIFEST)["architectures"].get(arch, {})
    return exporter in entry.get("exporters", []) or exporter in _read(FAILURES)["architectures"].get(arch, {})


def add(arch: Architecture, results: list[dict[str, Any]]) -> None:
    """Record the results of exporting an architecture.

    Args:
        arch: The architecture.
        results: What the worker gave for each exporter.
    """
    manifest, failures = _read(MANIFEST)["architectures"], _read(FAILURES)["architectures"]
    entry, failed = manifest.pop(arch.id, {}), failures.pop(arch.id, {})
    names, notes = set(entry.get("exporters", [])), entry.get("notes", {})
    tensors = entry.get("tensors", {})
    for result in results:
        name = result["exporter"]
        names.discard(name)
        for table in (failed, notes, tensors):
            table.pop(name, None)
        if "failure" in result:
            failed[name] = _without_places(result["failure"])
            replace_in_archive(GRAPHS / f"{arch.id}.tar.xz", name, None)
        else:
            names.add(name)
            entry = {key: result[key] for key in _COPIED if key in result}
            if result["note"]:
                notes[name] = result["note"]
            if "tensors" in result:
                tensors[name] = result["tensors"]
    if names:
        entry |= {"exporters": [name for name in exporter_facts() if name in names]}
        manifest[arch.id] = entry | ({"notes": notes} if notes else {}) | ({"tensors": tensors} if tensors else {})
    if failed:
        failures[arch.id] = failed
    about = {"expected": _KEYS, "collapse": _COLLAPSES, "detection": _DETECTION_KEYS}
    _write(MANIFEST, {"about": about, "exporters": exporter_facts(), "architectures": _sorted(manifest)})
    _write(FAILURES, {"architectures": _sorted(failures)})


def _without_places(reason: str) -> str:
    """A failure's reason without colours and without the folders of the machine on which it failed."""
    return re.sub(r"(?<![\w.])/(?:[\w.-]+/)+(?=[\w-]+\.\w)", "", re.sub(r"\x1b\[[0-9;]*m?", "", reason))


def _sorted(table: dict[str, Any]) -> dict[str, Any]:
    return {key: table[key] for key in sorted(table)}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"architectures": {}}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(_lay_out(content, depth=3) + "\n", encoding="utf-8")


def _lay_out(value: Any, depth: int, indent: str = "") -> str:
    """Write JSON with one entry a line down to a depth, and the rest on one line."""
    if depth == 0 or not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + "  "
    lines = [f"{inner}{json.dumps(key)}: {_lay_out(item, depth - 1, inner)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}" + "}"
