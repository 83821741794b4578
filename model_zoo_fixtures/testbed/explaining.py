"""Running `xai-explain` on the bundled models, and reading what it wrote."""

import functools
import json
import os
import re
import tempfile
from pathlib import Path

import cv2
import numpy as np
import openvino as ov

from model_zoo_fixtures.testbed.commands import invoke
from xai_insert import Options, insert_file
from xai_insert.cli.explain import main

SHAPES = Path(__file__).parents[1] / "shapes"
IMAGES = sorted((SHAPES / "images").glob("shape_*.png"))
LABELS = ["circle", "square", "triangle", "star", "cross", "ring", "crescent", "arrow"]


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory()  # kept until the process ends


class WithMap(os.PathLike):
    """A bundled model with its map, inserted when its path is first asked for, and once for all tests of a process.

    `xai-explain` would insert into a plain one at every call, which takes three times as long as all else it does.
    """

    def __init__(self, name):
        self._name = name

    @functools.cached_property
    def path(self):
        path = Path(_folder().name, self._name)
        insert_file(SHAPES / self._name, path, Options(check=False))  # what is drawn is tested, not what is inserted
        return path

    def __fspath__(self):
        return str(self.path)

    __str__ = __fspath__


def call(*arguments):
    return invoke(main, *arguments)


def fine(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def tree(folder):
    """What is in every file but `run.js`, which holds date and command."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "run.js"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def calls(script):
    """The arguments of the calls that a script of the page consists of."""
    lines = script.read_text(encoding="ascii").splitlines()
    matches = [re.fullmatch(r"xai\.(?:run|record|maps)\((.*)\);", line) for line in lines]
    return [json.loads(match[1]) for match in matches]


def on_page(folder):
    """The records that the page shows."""
    assert (folder / "index.html").read_bytes().endswith(b"</html>\n")
    return calls(folder / "records.js")


def records(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def rows(folder):
    """What `--format jsonl` wrote, in order of the images."""
    lines = [line for part in sorted(folder.glob("part-*.jsonl")) for line in part.read_text().splitlines()]
    return sorted(map(json.loads, lines), key=lambda row: row["source"])


def expected(model, image):
    """Predictions and maps by hand: stored BGR to RGB, float32 NCHW."""
    pixels = cv2.imread(str(image))[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32)
    results = ov.Core().compile_model(model, "CPU")(pixels)
    logits = results["logits"][0].astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum(), results["saliency_map"][0]
