"""Any number of images of the bundled shapes, which take no room: links to a few files."""

from __future__ import annotations

import os
from pathlib import Path

SHAPES = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes"


def link_images(folder: Path, count: int) -> None:
    """Give the bundled images that many names."""
    images = sorted((SHAPES / "images").glob("*.png"))
    for number in range(count):
        goal = folder / f"{number // 1000:03}" / f"{number:07}.png"
        goal.parent.mkdir(exist_ok=True)
        which = number % len(images)
        try:
            os.link(images[which], goal)
        except OSError:  # on another drive, or a file has as many names as it may
            goal.write_bytes(images[which].read_bytes())
            images[which] = goal
