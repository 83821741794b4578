"""Write detectors with all their weights, and beside each what its PyTorch model computes.

    python -m model_zoo_fixtures.export.detectors.full NAME... --folder FOLDER

For each: ``NAME.EXPORTER.onnx`` or ``.xml``; ``NAME.npz`` with images, raw class scores by level (``level0``, ... from
fine to coarse, ``[N, A * K, h, w]``), feature maps (``feature0``, ...) and outputs (``out<output>_<image>``); and a row
in ``table.json``.
"""

import argparse
import json
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_zoo_fixtures.export.detectors.base import Detector, enliven, recorded
from model_zoo_fixtures.export.detectors.catalogue import DETECTORS
from model_zoo_fixtures.export.exporters import EXPORTERS, quiet
from model_zoo_fixtures.export.init import random_images
from model_zoo_fixtures.export.strip import run

Arrays = list[np.ndarray]


def export(detector: Detector, exporter: str, images: torch.Tensor, stem: Path) -> Path:
    """Export with the detector's own names of outputs and free dimensions.

    Args:
        detector: What to export.
        exporter: Name of an exporter.
        images: float32, one image.
        stem: Path of the file without its suffix.

    Returns:
        The file.
    """
    if exporter not in ("legacy", "legacydyn"):
        return EXPORTERS[exporter](detector.model, images, stem)
    path = stem.with_name(stem.name + ".onnx")
    axes = detector.dynamic_axes
    if exporter == "legacydyn":
        axes = {"image": {0: "batch", 2: "height", 3: "width"}, detector.outputs[0]: {0: "batch", 2: "anchors"}}
    torch.onnx.export(
        detector.model,
        (images,),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=list(detector.outputs) or None,
        dynamic_axes=axes,
        autograd_inlining=False,
    )
    return path


def make_images(detector: Detector, count: int = 2) -> torch.Tensor:
    """Random images in the layout and range that a detector wants."""
    images = random_images(count, detector.size, seed=1)
    images = (0.5 + 0.2 * images).clamp(0, 1) if detector.unit_images else images
    return images.permute(0, 2, 3, 1).contiguous() if detector.channels_last else images


def input_shape(detector: Detector) -> dict[str, list[int]]:
    """Shape of the input where it is not what the size and the exporter say."""
    batch = -1 if detector.dynamic_axes else 1
    if detector.channels_last:
        return {"input": [batch, *detector.size, 3]}
    return {"input": [batch, 3, *detector.size]} if detector.dynamic_axes else {}


def answer(detector: Detector, images: torch.Tensor) -> tuple[Arrays, Arrays, list[Arrays]]:
    """Raw scores by level, feature maps, and the outputs of each image."""
    levels, maps, outputs = [], [], []
    with torch.no_grad():
        for image in images:
            with recorded(detector.score_heads) as scores, recorded(detector.features) as features:
                answers = detector.model(image[None])
            levels.append([level.clone() for level in detector.levels(scores)])
            maps.append([map_.clone() for map_ in detector.feature_maps(features)] if detector.features else [])
            answers = answers if isinstance(answers, (tuple, list)) else [answers]
            outputs.append([item.numpy() for item in answers])
    return _stacked(levels), _stacked(maps), outputs


def _stacked(by_image: list[list[torch.Tensor]]) -> Arrays:
    return [torch.cat(parts).numpy() for parts in zip(*by_image, strict=True)]


def difference(ours: Arrays, theirs: Arrays) -> str:
    """Largest difference and largest size of each output, or the shapes that differ."""
    parts = []
    for one, other in zip(ours, theirs, strict=True):
        if one.size != other.size:
            parts.append(f"{one.shape}!={other.shape}")
            continue
        gap = np.abs(one.astype(float) - other.reshape(one.shape).astype(float)).max(initial=0)
        parts.append(f"{gap:.1e}/{np.abs(one).max(initial=0):.1e}")
    return " ".join(parts)


def write(name: str, folder: Path, exporters: list[str] | None) -> dict[str, Any]:
    """Build a detector, record what it computes, and export it.

    Args:
        name: Its name in the catalogue.
        folder: Where files go.
        exporters: Names of exporters; those of the catalogue if None.

    Returns:
        Its row of the table.
    """
    detector = DETECTORS[name]()
    if detector.id != name:
        raise ValueError(f"{detector.id} is listed as {name}")
    enliven(detector, make_images(detector, 6))
    images = make_images(detector)
    levels, maps, outputs = answer(detector, images)
    facts = {
        "kind": detector.kind,
        "classes": detector.classes,
        "anchors": detector.anchors,
        "background": detector.background,
        "label_offset": detector.label_offset,
        "activation": detector.activation,
    }
    arrays: dict[str, Any] = {"images": images.numpy()}
    arrays |= {f"level{index}": level for index, level in enumerate(levels)}
    arrays |= {f"feature{index}": map_ for index, map_ in enumerate(maps)}
    arrays |= {f"out{place}_{index}": value for index, given in enumerate(outputs) for place, value in enumerate(given)}
    np.savez_compressed(folder / f"{name}.npz", **arrays, **{key: np.asarray(value) for key, value in facts.items()})
    return facts | {
        "grids": [list(level.shape[2:]) for level in levels],
        "features": [list(map_.shape) for map_ in maps],
        "package": detector.package,
        "licence": detector.licence,
        "size": list(detector.size),
        **input_shape(detector),
        "outputs": [list(value.shape) for value in outputs[0]],
        "score_range": [min(float(level.min()) for level in levels), max(float(level.max()) for level in levels)]
        if levels
        else [],
        "note": detector.note,
        "exports": {
            exporter: _export_and_compare(detector, exporter, images, outputs[1], folder / f"{name}.{exporter}")
            for exporter in exporters or detector.exporters
        },
    }


def _export_and_compare(detector: Detector, exporter: str, images: torch.Tensor, wanted: Arrays, stem: Path) -> str:
    try:
        with torch.no_grad():
            path = export(detector, exporter, images[:1], stem)
        return difference(wanted, run(path, images[1:].numpy()))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"FAILED {type(error).__name__}: {lines[0][:150]}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="all of the catalogue if none is given")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--exporter", nargs="*")
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "table.json"
    for name in arguments.names or DETECTORS:
        start = time.perf_counter()
        try:
            row = write(name, arguments.folder, arguments.exporter)
        except Exception:
            traceback.print_exc()
            continue
        table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        table[name] = row | {"exports": table.get(name, {}).get("exports", {}) | row["exports"]}
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {time.perf_counter() - start:.0f} s, {row['exports']}", flush=True)


if __name__ == "__main__":
    main()
