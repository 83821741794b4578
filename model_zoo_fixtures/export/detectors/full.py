"""Write detectors with all their weights, and beside each what its PyTorch model computes."""

import argparse
import json
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_zoo_fixtures.export.detectors.base import Detector, enliven, recorded
from model_zoo_fixtures.export.exporters import EXPORTERS, quiet
from model_zoo_fixtures.export.init import random_images


def export(detector: Detector, exporter: str, images: torch.Tensor, stem: Path) -> Path:
    """Export with the detector's own names of outputs and free dimensions."""
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


def answer(detector: Detector, images: torch.Tensor) -> tuple[list[Any], list[Any], list[list[np.ndarray]]]:
    """Raw scores per level, feature maps, and outputs of each image."""
    levels, maps, outputs = [], [], []
    with torch.no_grad():
        for image in images:
            with recorded(detector.score_heads) as scores, recorded(detector.features) as features:
                answers = detector.model(image[None])
            levels.append([level.clone() for level in detector.levels(scores)])
            maps.append([level.clone() for level in detector.feature_maps(features)] if detector.features else [])
            answers = answers if isinstance(answers, (tuple, list)) else [answers]
            outputs.append([item.numpy() for item in answers])
    stack = lambda lists: [torch.cat(parts).numpy() for parts in zip(*lists, strict=True)]  # noqa: E731
    return stack(levels), stack(maps), outputs


def run_file(path: Path, image: np.ndarray) -> list[np.ndarray]:
    from model_zoo_fixtures.export.strip import run

    return run(path, image)


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> str:
    parts = []
    for one, other in zip(ours, theirs, strict=False):
        if one.size == other.size:
            other = other.reshape(one.shape)
            gap = float(np.abs(one.astype(float) - other.astype(float)).max()) if one.size else 0.0
            parts.append(f"{gap:.1e}/{float(np.abs(one).max()) if one.size else 0:.1e}")
        else:
            parts.append(f"{one.shape}!={other.shape}")
    return " ".join(parts) + ("" if len(ours) == len(theirs) else f" ({len(ours)} vs {len(theirs)} outputs)")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--exporter", nargs="*")
    arguments = parser.parse_args()
    from model_zoo_fixtures.export.detectors.catalogue import DETECTORS

    quiet()
    torch.set_num_threads(1)
    table_path = arguments.folder / "table.json"
    for name in arguments.names:
        start = time.time()
        try:
            detector = DETECTORS[name]()
            if detector.id != name:
                raise ValueError(f"{detector.id} is listed as {name}")
            enliven(detector, make_images(detector, 6))
            images = make_images(detector)
            levels, maps, outputs = answer(detector, images)
        except Exception:
            traceback.print_exc()
            say(arguments.folder, f"{name}: FAILED to build")
            continue
        arrays: dict[str, Any] = {"images": images.numpy()}
        arrays |= {f"level{i}": level for i, level in enumerate(levels)}
        arrays |= {f"feature{i}": level for i, level in enumerate(maps)}
        arrays |= {f"out{j}_{i}": value for i, given in enumerate(outputs) for j, value in enumerate(given)}
        facts = {
            "anchors": detector.anchors,
            "classes": detector.classes,
            "background": detector.background,
            "label_offset": detector.label_offset,
            "activation": detector.activation,
            "kind": detector.kind,
        }
        np.savez_compressed(arguments.folder / f"{name}.npz", **arrays, **{k: np.asarray(v) for k, v in facts.items()})
        row = facts | {
            "grids": [list(level.shape[2:]) for level in levels],
            "features": [list(level.shape) for level in maps],
            "package": detector.package,
            "licence": detector.licence,
            "size": list(detector.size),
            "outputs": [list(value.shape) for value in outputs[0]],
            "note": detector.note,
            "exports": {},
            **input_shape(detector),
            "score_range": [round(float(min(l.min() for l in levels)), 2), round(float(max(l.max() for l in levels)), 2)]
            if levels
            else [],
        }
        for exporter in arguments.exporter or detector.exporters:
            stem = arguments.folder / f"{name}.{exporter}"
            try:
                with torch.no_grad():
                    path = export(detector, exporter, images[:1], stem)
                row["exports"][exporter] = difference(outputs[1], run_file(path, images[1:].numpy()))
            except Exception as error:
                if not isinstance(error, KeyError):
                    (arguments.folder / "log").mkdir(exist_ok=True)
                    (arguments.folder / "log" / f"{name}.{exporter}.txt").write_text(traceback.format_exc())
                lines = str(error).strip().splitlines() or [""]
                row["exports"][exporter] = f"FAILED {type(error).__name__}: {lines[0][:150]}"
        table = json.loads(table_path.read_text()) if table_path.exists() else {}
        if arguments.exporter and name in table:
            row["exports"] = table[name]["exports"] | row["exports"]
        table[name] = row
        table_path.write_text(json.dumps(table, indent=1))
        say(arguments.folder, f"{name}: {time.time() - start:.0f}s outputs {row['outputs']} scores {row['score_range']} "
            f"grids {row['grids']} " + "; ".join(f"{k} {v}" for k, v in row["exports"].items()))


def say(folder: Path, line: str) -> None:
    print(line, flush=True)
    with (folder / "PROGRESS.txt").open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
