"""Results of a run on any number of images, as the page of `xai-explain` reads them."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from xai_insert.explain import page
from xai_insert.explain.picture import Look
from xai_insert.explain.preprocessing import View
from xai_insert.explain.scale import scaled

_WIDTH, _HEIGHT, _GRID, _DISTINCT = 640, 480, 14, 2000


def write_results(folder: Path, images: int, classes: int) -> None:
    """Write what a run on that many images leaves, but for the overlays, which the page only links to."""
    rng = np.random.default_rng(0)
    for name in ("images", "data"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(images):
        name = f"photo{index:05}"
        path = folder / "images" / f"{name}.jpg"
        if index < _DISTINCT:
            noise = rng.integers(0, 256, (_HEIGHT // 8, _WIDTH // 8, 3), np.uint8)
            cv2.imwrite(str(path), cv2.resize(noise, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC))
        else:
            os.link(folder / "images" / f"photo{index % _DISTINCT:05}.jpg", path)
        scores = np.sort(rng.dirichlet(np.ones(classes)))[::-1].round(4).tolist()
        maps = [rng.normal(size=(_GRID, _GRID)).astype(np.float32) for _ in range(classes)]
        drawn = zip(maps, scaled(maps, scores, "shared"), [()] * classes, strict=True)
        (folder / "data" / f"{name}.js").write_bytes(page.maps_script(drawn, View(), None))
        labels = [f"class {number}" for number in rng.permutation(1000)[:classes]]
        found = [{"class_id": 0, "label": label, "score": score} for label, score in zip(labels, scores, strict=True)]
        files = {"overlay": None, "raw": None, "grid": [_GRID, _GRID]}
        records.append(
            {
                "name": name,
                "source": f"photos/{name}.jpg",
                "size": [_WIDTH, _HEIGHT],
                "image": f"images/{name}.jpg",
                "data": f"data/{name}.js",
                "predictions": found,
                "maps": [{**item, "title": item["label"], **files} for item in found],
            }
        )
    page.write(folder, records, page.About({"Model": "none"}, Look(), "shared"))
