"""How far maps survive the runtime's default precision (bf16 on CPUs that have it) and INT8, on trained models.

    python -m benchmarks.exactness.precision [--photos FOLDER] [--int8 FP32.xml INT8.xml|INT8.onnx]

Prints, for each model and method, the correlation of the predicted class's raw map (of a detector or segmenter: of each
class in the image that it finds) in the default precision with that in float32: lowest and median; "not measured" where
the compiled model says that its default is float32, as a hint that a processor does not have is. The bundled models
run on their own held-out images; FOLDER is what `benchmarks.lib.real_models` has written (EfficientNet-Lite0 with
ImageNet weights, photographs). With `--int8`, maps of a quantised model are compared with those of its float32 original
instead, in float32 and in the default precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino as ov

from model_zoo_fixtures.shapes.dataset import HELD_OUT_SEED, classification_scene, multi_object_scene
from xai_insert import Options, insert
from xai_insert.errors import XaiInsertError

SHAPES = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes"
_IMAGES, _OBJECT_IMAGES = 24, 100
_F32 = {"INFERENCE_PRECISION_HINT": "f32"}

Array = np.ndarray


def cases(photos: Path | None) -> Iterator[tuple[str, Path, list[Array], dict[str, Options]]]:
    """Name, model, images and the ways of insertion."""
    shapes = [classification_scene(HELD_OUT_SEED + index).model_input() for index in range(_IMAGES)]
    ways = {"default": Options(output_dtype="f32"), "Activation Map": _options(method="activation-map")}
    earlier = {"masked runs, earlier layer": _options(target_layer="__module.stages.2/aten::relu/Relu_1")}
    yield "shapes_cnn", SHAPES / "shapes_cnn.xml", shapes, ways | earlier
    vit = {"point kernel": _options(kernel="point"), "masked runs, block 2": _options(block=2)}
    yield "shapes_vit", SHAPES / "shapes_vit.xml", shapes, {"default": ways["default"]} | vit
    if photos is not None:
        images = [np.load(path) for path in sorted(photos.glob("*.npy"))]
        yield "efficientnet_lite0", photos / "efficientnet_lite0.ptir.xml", images, ways


def _options(**chosen: Any) -> Options:
    return Options(output_dtype="f32", **chosen)


def outputs(model: Any, images: list[Array], precision: str | None) -> list[tuple[Array, Array]]:
    """First and last output for each image: logits and raw map of an inserted classifier."""
    if isinstance(model, ov.Model):
        config = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
        compiled = ov.Core().compile_model(model, "CPU", config)
        pairs = [list(compiled(image).values()) for image in images]
        return [(np.array(found[0]), np.array(found[-1])) for found in pairs]
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: image}) for image in images]
    return [(item[0], item[-1]) for item in found]


def effective(model: ov.Model) -> str:
    """What a model computes in by default, as it says once it is compiled."""
    compiled = ov.Core().compile_model(model, "CPU")
    name: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return name


def correlations(wanted: list[tuple[Array, Array]], found: list[tuple[Array, Array]]) -> Array:
    """Correlation of the map of the class that `wanted` predicts, for each image."""
    result = []
    for (logits, exact), (_, rough) in zip(wanted, found, strict=True):
        best = int(logits.argmax())
        pair = [maps[0, best] if maps.ndim == 4 else maps[0] for maps in (exact, rough)]
        result.append(np.corrcoef(*(item.ravel().astype(np.float64) for item in pair))[0, 1])
    return np.array(result)


def object_correlations(model: ov.Model) -> Array:
    """Correlation of the maps of the classes in an image that are found in it, image by image."""
    single, default = (ov.Core().compile_model(model, "CPU", config) for config in (_F32, {}))
    result = []
    for index in range(_OBJECT_IMAGES):
        scene = multi_object_scene(HELD_OUT_SEED + index)
        image = scene.image.transpose(2, 0, 1)[None].astype(np.float32)
        exact, rough = (np.array(compiled(image)["saliency_map"])[0] for compiled in (single, default))
        for label in sorted({shape.class_id for shape in scene.objects}):
            pair = [maps[label].ravel().astype(np.float64) for maps in (exact, rough)]
            if np.ptp(pair[0]) > 0:
                result.append(np.corrcoef(*pair)[0, 1] if np.ptp(pair[1]) > 0 else 0.0)
    return np.array(result)


def _row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def _summary(found: Array) -> tuple[str, str]:
    return f"{found.min():.4f}", f"{np.median(found):.4f}"


def compare_precisions(photos: Path | None) -> None:
    """The table of the default precision."""
    _row("model", "way", "form", "images", "lowest", "median")
    _row(*["---"] * 6)
    for name, path, images, ways in cases(photos):
        for way, options in ways.items():
            try:
                result = insert(path, options)
            except XaiInsertError as err:
                _row(name, way, str(err), "", "", "")
                continue
            form = f"{result.report.method}, {result.report.form}"
            if effective(result.model) == "f32":
                _row(name, way, form, "not measured", "", "")
                continue
            exact, rough = (outputs(result.model, images, precision) for precision in ("f32", None))
            _row(name, way, form, str(len(images)), *_summary(correlations(exact, rough)))
    for name in ("shapes_detector", "shapes_segmenter"):
        model = insert(SHAPES / f"{name}.xml", _options()).model
        if effective(model) == "f32":
            _row(name, "default", "", "not measured", "", "")
            continue
        found = object_correlations(model)
        _row(name, "default", f"{(found >= 0.99).mean():.1%} above 0.99", f"{len(found)} maps", *_summary(found))


def compare_int8(original: Path, quantised: Path, photos: Path | None) -> None:
    """The table of a quantised model."""
    is_shape = "shapes" in original.name
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + _IMAGES)
    images = [classification_scene(seed).model_input() for seed in seeds] if is_shape or photos is None else []
    images = images or [np.load(path) for path in sorted((photos or Path()).glob("*.npy"))]
    model = runnable(insert(quantised, _options()).model)
    wanted = outputs(insert(original, _options()).model, images, "f32")
    _row("model", "precision", "images", "lowest", "median")
    _row(*["---"] * 5)
    for precision in ("f32", None) if isinstance(model, ov.Model) else ("f32",):
        found = correlations(wanted, outputs(model, images, precision))
        _row(quantised.name, precision or "default", str(len(images)), *_summary(found))


def runnable(model: Any) -> Any:
    """A model for `outputs`: an `ov.Model`, or the bytes of an ONNX one."""
    if isinstance(model, (ov.Model, bytes)):
        return model
    import onnx_ir  # noqa: PLC0415 - for ONNX models alone

    proto = onnx_ir.to_proto(model) if isinstance(model, onnx_ir.Model) else model
    return proto.SerializeToString()


def main() -> None:
    """Run the command line interface."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--int8", nargs=2, type=Path, metavar=("FP32", "INT8"))
    arguments = parser.parse_args()
    if arguments.int8:
        compare_int8(*arguments.int8, arguments.photos)
    else:
        compare_precisions(arguments.photos)


if __name__ == "__main__":
    main()
