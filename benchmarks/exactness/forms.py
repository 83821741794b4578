"""Every form in which a model is deployed, for eleven architectures: is it inserted into, and is the map the same?

    python -m benchmarks.exactness.forms [--only ARCHITECTURE ...] [--forms FORM ...] [--into docs/forms.md]

The plain model is an export of the zoo, with stand-ins for its weights. Each form is made of it by the tool that people
use; forms whose tool is not installed (NNCF) or fails on the plain model are listed as such. Printed, and with `--into`
written as one section for each architecture (the others stay): the method, how it is computed, the difference of the
map from the plain export's (largest, relative to the largest score), their mean correlation, how far the form itself
has moved the scores, and how far inserting has moved the predictions.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
import openvino as ov
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from benchmarks.lib.tables import Setting
from model_zoo_fixtures import fixtures, materialise
from testbed import oracle
from xai_insert import Options, insert
from xai_insert.check import relative_difference
from xai_insert.errors import XaiInsertError
from xai_insert.pipeline import SALIENCY_MAP
from xai_insert.verify import compared

Array = np.ndarray
ARCHITECTURES = {
    "ResNet": "torchvision_resnet18.legacy",
    "MobileNetV3": "mobilenetv3_large_100.legacy",
    "ViT": "vit_tiny_patch16_224.legacy",
    "DeiT": "deit_tiny_distilled_patch16_224.legacy",
    "Swin": "swin_tiny_patch4_window7_224.legacy",
    "ConvNeXt": "convnext_tiny.legacy",
    "CLIP": "hf_clip.legacy",
    "SigLIP": "hf_siglip.legacy",
    "YOLOv8": "yolov8n.legacy",
    "SSD": "ssdlite320_mobilenet_v3_large.legacy",
    "RT-DETR": "hf_rt_detr.legacy",
}
FLOATS = frozenset({"ONNX", "saved, basic", "saved, extended", "fused for transformers", "set 15", "newest set", "IR"})
"""Forms with the weights of the plain export, in float32: their maps are to be the same to 1e-5."""
_OPTIONS = Options(output_dtype="f32")


def _saved(level: str, model: Path, goal: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(goal)
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return onnx.load(goal)


def _fused(model: Path, goal: Path) -> Any:
    from onnxruntime.transformers.optimizer import optimize_model  # noqa: PLC0415 - slow to import

    optimize_model(str(model), model_type="vit", opt_level=0).save_model_to_file(str(goal))
    return onnx.load(goal)


def _half(model: Path, goal: Path) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - see above

    del goal
    return convert_float_to_float16(onnx.load(model), keep_io_types=True)


class _Images(CalibrationDataReader):
    def __init__(self, model: Path) -> None:
        self._feeds = iter([feeds(onnx.load(model), seed) for seed in range(4, 8)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def _static(form: QuantFormat, model: Path, goal: Path) -> Any:
    quantize_static(model, goal, _Images(model), quant_format=form, per_channel=True, activation_type=QuantType.QUInt8)
    return onnx.load(goal)


def _dynamic(model: Path, goal: Path) -> Any:
    quantize_dynamic(model, goal)
    return onnx.load(goal)


def _four_bits(model: Path, goal: Path) -> Any:
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits  # noqa: PLC0415 - see above

    del goal
    settings = nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True)
    packer = nbits.MatMulNBitsQuantizer(onnx.load(model), algo_config=settings)
    packer.process()
    return packer.model.model


def _other_set(version: int, model: Path, goal: Path) -> Any:
    del goal
    return onnx.version_converter.convert_version(onnx.load(model), version)


def _ir(compressed: bool, model: Path, goal: Path) -> Any:
    ov.save_model(ov.convert_model(model), goal.with_suffix(".xml"), compress_to_fp16=compressed)
    return ov.Core().read_model(goal.with_suffix(".xml"))


def _nncf(kind: str, model: Path, goal: Path) -> Any:
    import nncf  # noqa: PLC0415 - seldom installed

    nncf.set_log_level(logging.ERROR)
    plain = _ir(False, model, goal)
    if kind == "int8":
        images = nncf.Dataset([list(feeds(onnx.load(model), seed).values()) for seed in range(4, 8)])
        return nncf.quantize(plain, images, subset_size=4)
    return nncf.compress_weights(plain, mode=nncf.CompressWeightsMode[kind], ratio=None)


FORMS: Mapping[str, Callable[[Path, Path], Any]] = {
    "ONNX": lambda model, goal: onnx.load(model),
    "saved, basic": partial(_saved, "ORT_ENABLE_BASIC"),
    "saved, extended": partial(_saved, "ORT_ENABLE_EXTENDED"),
    "fused for transformers": _fused,
    "set 15": partial(_other_set, 15),
    "newest set": partial(_other_set, min(23, onnx.defs.onnx_opset_version())),
    "float16": _half,
    "QDQ": partial(_static, QuantFormat.QDQ),
    "QOperator": partial(_static, QuantFormat.QOperator),
    "dynamic": _dynamic,
    "4 bits": _four_bits,
    "IR": partial(_ir, False),
    "IR, float16 weights": partial(_ir, True),
    "NNCF, 8 bits": partial(_nncf, "int8"),
    "NNCF, weights of 8 bits": partial(_nncf, "INT8_ASYM"),
    "NNCF, weights of 4 bits": partial(_nncf, "INT4_SYM"),
}


@dataclass(frozen=True)
class Cell:
    """What one form of one architecture gave.

    Attributes:
        form: name of the form.
        method: saliency method, and how it is computed; or why there is none.
        difference: largest difference of the map, relative to the largest score; None if there is no map.
        correlation: mean correlation of the maps.
        shifted: largest relative difference that the form itself makes to the scores.
        moved: largest relative difference that inserting makes to the predictions.
    """

    form: str
    method: str
    difference: float | None = None
    correlation: float | None = None
    shifted: float | None = None
    moved: float | None = None

    def row(self) -> str:
        """A line of Markdown."""
        texts = ["" if x is None else f"{x:.1e}" for x in (self.difference, self.shifted, self.moved)]
        correlation = "" if self.correlation is None else f"{self.correlation:.4f}"
        return f"| {self.form} | {self.method} | {texts[0]} | {correlation} | {texts[1]} | {texts[2]} |"


def feeds(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    """Smooth random images for the inputs of a plain model."""
    rng = np.random.default_rng(seed)
    weights = {item.name for item in model.graph.initializer}
    made = {}
    for item in model.graph.input:
        if item.name not in weights:
            sizes = [dim.dim_value or 1 for dim in item.type.tensor_type.shape.dim]
            coarse = rng.standard_normal([*sizes[:2], *(-(-side // 16) for side in sizes[2:])])
            fine = np.repeat(np.repeat(coarse, 16, axis=2), 16, axis=3)[..., : sizes[2], : sizes[3]]
            made[item.name] = (fine + 0.3 * rng.standard_normal(sizes)).astype(np.float32)
    return made


def _run(model: Any, image: Array) -> dict[str, Array]:
    return oracle.run(model, image)


def measured(architecture: str, names: Sequence[str]) -> Iterator[Cell]:
    """The cells of one architecture, one by one."""
    fixture = next(item for item in fixtures() if item.id == ARCHITECTURES[architecture])
    with tempfile.TemporaryDirectory(prefix="xai-insert-forms-") as folder:
        path = materialise(fixture, Path(folder))
        plain = onnx.load(path)
        image = next(iter(feeds(plain, 0).values()))
        scores = _run(plain, image)
        wanted = insert(plain, _OPTIONS)
        right = _run(wanted.model, image)[SALIENCY_MAP]
        for name in names:
            yield _cell(name, path, image, scores, right)


def _cell(name: str, path: Path, image: Array, scores: Mapping[str, Array], right: Array) -> Cell:
    if name.startswith("NNCF") and importlib.util.find_spec("nncf") is None:
        return Cell(name, "not measured: NNCF is not installed")
    with tempfile.TemporaryDirectory(prefix="xai-insert-form-") as folder:
        try:
            model = FORMS[name](path, Path(folder, "form.onnx"))
            before = _run(model, image)
        except Exception as err:  # each tool fails in its own way
            return Cell(name, f"the tool fails on the plain model: {_short(err)}")
        try:
            result = insert(model, _OPTIONS)
            after = _run(result.model, image)
        except XaiInsertError as err:
            return Cell(name, f"refused: {_short(err)}")
        pairs = list(zip(scores.values(), before.values(), strict=False))
        shifted = max((relative_difference(*pair) for pair in pairs if pair[0].dtype == np.float32), default=None)
        correlation, difference = compared([right], [after[SALIENCY_MAP]])
        largest = max(float(np.abs(array).max()) for array in scores.values() if array.dtype == np.float32)
        if right.shape == after[SALIENCY_MAP].shape:
            difference = float(np.abs(right - after[SALIENCY_MAP]).max()) / max(largest, float(np.abs(right).max()))
        method = f"{result.report.method}, {result.report.form}"
        return Cell(name, method, difference, correlation, shifted, result.report.output_difference)


def _short(err: Exception) -> str:
    text = re.sub(r"\S*/\S*", "…", " ".join(str(err).split())).replace("|", "/")
    return f"{type(err).__name__} {text[:90]}".strip()


def write_section(into: Path, architecture: str, cells: Sequence[Cell], setting: Setting) -> None:
    """Put rows of one architecture into the page, in place of those of the same forms."""
    text = into.read_text(encoding="utf-8") if into.is_file() else HEAD
    head, *old = re.split(r"^## ", text, flags=re.MULTILINE)
    sections = {part.split("\n", 1)[0]: part for part in old}
    columns = (
        "| form | method | difference of the map | correlation | scores shifted by the form | moved by inserting |"
    )
    rows = {line.split("|")[1].strip(): line for line in sections.get(architecture, "").splitlines() if "|" in line}
    rows |= {cell.form: cell.row() for cell in cells}
    table = "\n".join(
        [columns, "| --- | --- | --- | --- | --- | --- |", *(rows[name] for name in FORMS if name in rows)]
    )
    versions = ", ".join(f"{key} {value}" for key, value in setting.versions.items())
    sections[architecture] = (
        f"{architecture}\n\nPlain export: `{ARCHITECTURES[architecture]}`. {versions}.\n\n{table}\n\n"
    )
    ordered = [sections[name] for name in ARCHITECTURES if name in sections]
    into.write_text(head + "".join(f"## {part}" for part in ordered).rstrip() + "\n", encoding="utf-8")


HEAD = """# Forms of deployment

Each form of each architecture: what is inserted, and whether the map is that of the plain export. Written by
`python -m benchmarks.exactness.forms --into docs/forms.md`; `tests/oracles/test_forms.py` measures a part of it. The
models are exports of the zoo with stand-ins for their weights, on a smooth random image. Differences are relative to
the largest score; a form that rounds has the map of its own, rounded weights, so that its column "scores shifted" is to
be read beside it.

"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), metavar="FORM")
    parser.add_argument("--into", type=Path)
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    setting = Setting.here("benchmarks.exactness.forms", arguments)
    for architecture in given.only:
        print(f"## {architecture}", flush=True)
        cells = []
        for cell in measured(architecture, given.forms):
            print(cell.row(), flush=True)
            cells.append(cell)
        if given.into is not None:
            write_section(given.into, architecture, cells, setting)


if __name__ == "__main__":
    main()
