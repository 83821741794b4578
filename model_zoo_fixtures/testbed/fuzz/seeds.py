"""The undamaged models and folders that the engine damages."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from model_zoo_fixtures.testbed import detector_models, fused_models, instance_models, models, old_models
from model_zoo_fixtures.testbed.commands import invoke
from model_zoo_fixtures.testbed.transformer_models import CLOSED as TRANSFORMERS
from xai_insert import Options, insert_file
from xai_insert.cli.explain import main
from xai_insert.errors import XaiInsertError

SETS = range(7, 26)
_ROOT = Path(__file__).parents[3]
_FUSED = ("all", "MultiHeadAttention with bias", "FusedMatMul", "Attention of ONNX 23", "RotaryEmbedding")
SUFFIXES = (".png", ".jpg", ".bmp", ".tiff", ".webp", ".ppm", ".hdr", ".pam", ".sr", ".jp2")


def write_models(folder: Path, *, bundled: bool = True) -> list[Path]:
    """Write small networks of every kind, in both formats where both can read them."""
    for name, model in {**_plain(), **_old(), **_fused()}.items():
        onnx.save(model, folder / f"{name}.onnx")
    _quantise(folder)
    if bundled:
        shapes = _ROOT / "model_zoo_fixtures" / "shapes"
        for name in ("shapes_cnn", "shapes_vit"):
            shutil.copy(shapes / f"{name}.onnx", folder)
    for path in sorted(folder.glob("*.onnx")):
        try:
            model = ov.Core().read_model(path)
        except RuntimeError:  # it knows not all operators of onnxruntime
            continue
        ov.save_model(model, path.with_suffix(".xml"), compress_to_fp16=False)
    for path in sorted(folder.glob("*.xml"))[::4]:
        _as_version_10(path)
    return sorted(path for path in folder.iterdir() if path.suffix in (".onnx", ".xml"))


def write_inserted(seeds: Sequence[Path], folder: Path) -> list[Path]:
    """Insert into a few of them."""
    made = []
    for seed in sorted(seeds)[::8]:
        try:
            insert_file(seed, folder / seed.name)
        except XaiInsertError:  # a head that needs an option
            continue
        made.append(folder / seed.name)
    return made


def _plain() -> dict[str, onnx.ModelProto]:
    made = {name: models.classifier(network) for name, network in {**models.CLOSED, **models.MASKED}.items()}
    made |= {name: models.classifier(network, batch=1) for name, network in models.STATIC.items()}
    for name in ("plain", "fused projection", "pair bias", "class attention", "einsum"):
        made[f"transformer {name}"] = models.classifier(TRANSFORMERS[name], size=(8, 12))
    boxes: dict[str, Any] = {"anchors_first": False, "exclusive": False, "decoded": "xyxy", "reported": "xyxy"}
    made["detector rows"] = detector_models.Net(**boxes, report="rows").model
    made["detector lists"] = detector_models.Net(**boxes, report="lists").model
    made["detector raw"], _ = detector_models.raw_detector()
    made["detector with rows of one score"], *_ = detector_models.row_detector(batched=True)
    made["detector with masks"] = instance_models.listed("boxes")
    made["detector with prototypes"] = instance_models.yolo("rows")
    return made


def _old() -> dict[str, onnx.ModelProto]:
    made = {}
    for opset in SETS:
        how = {"listed": opset < 9, "ir_version": 3 if opset < 9 else 4 if opset < 11 else 10}
        made[f"operator set {opset}"] = old_models.classifier(opset, **how)
        if opset % 3 == 1:
            made[f"detector of operator set {opset}"] = old_models.detector(opset, **how)
    return made


def _fused() -> dict[str, onnx.ModelProto]:
    made = {f"fused {name}": fused_models.TRANSFORMERS[name][0] for name in _FUSED}
    made["fused convolutions"] = fused_models.convolutional(is_fused=True)
    return made


class _Calibration(CalibrationDataReader):
    """A few random images."""

    def __init__(self, name: str, sides: tuple[int, int]) -> None:
        rng = np.random.default_rng(4)
        self._feeds = iter([{name: rng.standard_normal((1, 3, *sides)).astype(np.float32)} for _ in range(2)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _quantise(folder: Path) -> None:
    """Both static forms and the dynamic one, and what onnxruntime makes of a graph by itself."""
    logging.getLogger().setLevel(logging.ERROR)  # it advises
    plain = folder / "global average pool.onnx"
    side = (models.SIDE, models.SIDE)
    for form in (QuantFormat.QDQ, QuantFormat.QOperator):
        goal = folder / f"quantised {form.name}.onnx"
        quantize_static(plain, goal, _Calibration("image", side), quant_format=form, per_channel=form.name == "QDQ")
    quantize_dynamic(plain, folder / "quantised dynamically.onnx")
    whole = folder / "plain.onnx"
    onnx.save(fused_models.transformer(), whole)
    quantize_static(
        whole, folder / "quantised transformer.onnx", _Calibration("x", (64, 64)), quant_format=QuantFormat.QOperator
    )
    whole.unlink()
    for name in ("transformer plain", "global average pool"):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(folder / f"fused by onnxruntime, {name}.onnx")
        ort.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])


def _as_version_10(path: Path) -> None:
    path.write_text(re.sub(r'(<net [^>]*version=")11"', r'\g<1>10"', path.read_text(), count=1))


def write_runs(folder: Path) -> list[Path]:
    """Write models that have their maps, labels, pictures of every kind, and a run's results; returns the models."""
    shapes = _ROOT / "model_zoo_fixtures" / "shapes"
    small = models.classifier(models.CLOSED["global average pool"], batch=1)
    onnx.helper.set_model_props(small, {"model_info labels": "a b c d e", "model_info model_type": "Classification"})
    boxes: dict[str, Any] = {"anchors_first": False, "exclusive": False, "decoded": "xyxy", "reported": "xyxy"}
    rows = detector_models.Net(**boxes, report="rows").model
    made = []
    for name, model, options in (("small", small, {}), ("rows", rows, {"num_classes": 4})):
        onnx.save(model, folder / "plain.onnx")
        ov.save_model(ov.Core().read_model(folder / "plain.onnx"), folder / "plain.xml", compress_to_fp16=False)
        for suffix in (".onnx", ".xml"):
            made.append(folder / f"{name}{suffix}")
            insert_file(folder / f"plain{suffix}", made[-1], Options(**options, given=()))
    for path in folder.glob("plain.*"):
        path.unlink()
    (folder / "pictures").mkdir()
    image = cv2.resize(cv2.imread(str(shapes / "images" / "shape_0.png")), (64, 64))
    for suffix in SUFFIXES:
        stored = image.astype(np.float32) / 255 if suffix == ".hdr" else image
        cv2.imwrite(str(folder / "pictures" / f"{suffix[1:]}{suffix}"), stored)
    (folder / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    for path in made:
        arguments = [path, folder / "pictures", "-o", folder / f"out of {path.name}", "--raw", "png"]
        if invoke(main, *arguments, "--labels", folder / "labels.txt").exit_code:
            raise RuntimeError(f"{path.name} cannot be explained")
    return made
