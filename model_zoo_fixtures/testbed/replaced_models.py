"""Two models to replace by each other, in every form of file, and what they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov

from model_zoo_fixtures.testbed import models

KINDS = ("openvino", "onnx", "onnx, external weights")


def write_models(folder: Path, kind: str) -> list[Path]:
    """Two plain models that have the same input and give other results."""
    made = []
    for name in ("global average pool", "flatten"):
        model = models.classifier(models.CLOSED[name])
        path = folder / f"{name.replace(' ', '_')}.onnx"
        external = {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 0}
        onnx.save(model, path, **(external if kind.endswith("weights") else {}))
        if kind == "openvino":
            ov.save_model(ov.Core().read_model(path), path.with_suffix(".xml"), compress_to_fp16=False)
            path = path.with_suffix(".xml")
        made.append(path)
    return made


def results(model: Path, image: np.ndarray) -> list[Any]:
    """Every output of a model file."""
    if model.suffix == ".onnx":
        session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        return session.run(None, {"image": image})
    core = ov.Core()
    core.set_property({"ENABLE_MMAP": False})
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given = compiled(image)
    return [np.array(given[index]) for index in range(len(compiled.outputs))]
