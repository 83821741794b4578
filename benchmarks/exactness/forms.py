"""Every form in which a model is deployed, for twelve architectures: is it inserted into, and is the map the same?

    python -m benchmarks.exactness.forms [--only ARCHITECTURE ...] [--forms FORM ...] [--into docs/forms.md]
    python -m benchmarks.exactness.forms --model FILE.onnx ... [--image INPUT.npy] [--forms FORM ...]

The plain model is an export of the zoo, with stand-ins for its weights, or a file of one's own. Each form is made of it
by the tool that people use (`form_tools`); forms whose tool is not installed, or fails on the plain model, are listed
as such. Printed, and with `--into` written as one section for each architecture (the others stay): the
method, how it is computed, the difference of the map from the plain export's (largest, relative to the largest score),
their mean correlation, how far the form itself has moved the scores, how far inserting has moved the predictions, and
how many integer kernels the runtime makes of the model's own layers before and after. Forms that begin with `then` are
made of the inserted model: what they move is predictions of the inserted file.
"""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from benchmarks.exactness.form_tools import AFTER, BEFORE, FLOATS, feeds, kernels
from benchmarks.lib.tables import Setting
from model_zoo_fixtures import fixtures, materialise
from model_zoo_fixtures.testbed import oracle
from xai_insert import Options, insert
from xai_insert.check import relative_difference
from xai_insert.errors import XaiInsertError
from xai_insert.pipeline import SALIENCY_MAP
from xai_insert.verify import compared

__all__ = ["FLOATS"]

Array = np.ndarray
ARCHITECTURES = {
    "ResNet": "torchvision_resnet18.legacy",
    "MobileNetV3": "mobilenetv3_large_100.legacy",
    "ViT": "vit_tiny_patch16_224.legacy",
    "DeiT": "deit_tiny_distilled_patch16_224.legacy",
    "Swin": "hf_swin.legacy",
    "ConvNeXt": "convnext_atto_tall.legacy",
    "CLIP": "hf_clip.legacy",
    "SigLIP": "hf_siglip.legacy",
    "YOLOv8": "yolov8n.legacy",
    "SSD": "otx_ssd_mobilenetv2.legacy",
    "SSD, dense": "ssd_dense_all.legacy",
    "RT-DETR": "hf_rt_detr.legacy",
}
FORMS = [*BEFORE, *AFTER]
_OPTIONS = Options(output_dtype="f32")


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
        kernels: integer kernels of the model's own layers, before and after; empty if there are none.
    """

    form: str
    method: str
    difference: float | None = None
    correlation: float | None = None
    shifted: float | None = None
    moved: float | None = None
    kernels: str = ""

    def row(self) -> str:
        """A line of Markdown."""
        texts = ["" if x is None else f"{x:.1e}" for x in (self.difference, self.shifted, self.moved)]
        correlation = "" if self.correlation is None else f"{self.correlation:.4f}"
        return (
            f"| {self.form} | {self.method} | {texts[0]} | {correlation} | {texts[1]} | {texts[2]} | {self.kernels} |"
        )


def _run(model: Any, image: Array) -> dict[str, Array]:
    return oracle.run(model, image)


def measured(architecture: str, names: Sequence[str]) -> Iterator[Cell]:
    """The cells of one architecture, one by one."""
    fixture = next(item for item in fixtures() if item.id == ARCHITECTURES[architecture])
    with tempfile.TemporaryDirectory(prefix="xai-insert-forms-") as folder:
        yield from measured_file(materialise(fixture, Path(folder)), names)


def measured_file(path: Path, names: Sequence[str], image: Array | None = None) -> Iterator[Cell]:
    """The cells of an ONNX file, one by one."""
    plain = onnx.load(path)
    image = next(iter(feeds(plain, 0).values())) if image is None else image
    scores = _run(plain, image)
    wanted = insert(plain, _OPTIONS)
    inserted = _run(wanted.model, image)
    with tempfile.TemporaryDirectory(prefix="xai-insert-form-") as folder:
        goal = Path(folder, "form.onnx")
        onnx.save(wanted.model, source := Path(folder, "inserted.onnx"))
        for name in names:
            if name in BEFORE:
                yield _cell(name, path, goal, image, scores, inserted[SALIENCY_MAP])
            else:
                yield _cell_after(name, source, goal, image, inserted)


def _cell(name: str, path: Path, goal: Path, image: Array, scores: Mapping[str, Array], right: Array) -> Cell:
    try:
        model = BEFORE[name](path, goal)
        before = _run(model, image)
    except ModuleNotFoundError as err:
        return Cell(name, f"not measured: {err.name} is not installed")
    except Exception as err:  # each tool fails in its own way
        return Cell(name, f"the tool fails on the plain model: {short(err)}")
    try:
        result = insert(model, _OPTIONS)
    except XaiInsertError as err:
        return Cell(name, f"refused: {short(err, 600)}")  # whole, so that it says what to do
    after = _run(result.model, image)
    pairs = list(zip(scores.values(), before.values(), strict=False))
    shifted = max((relative_difference(*pair) for pair in pairs if pair[0].dtype == np.float32), default=None)
    told = "" if name in FLOATS else counted(model, result.model, goal.parent)
    method = f"{result.report.method}, {result.report.form}"
    difference, correlation = _difference(right, after[SALIENCY_MAP], scores)
    return Cell(name, method, difference, correlation, shifted, result.report.output_difference, told)


def counted(plain: Any, inserted: Any, folder: Path) -> str:
    """Integer kernels of the model's own layers, after and before; empty if there are none."""
    try:
        counted = [kernels(model, folder) for model in (plain, inserted)]
    except ort_errors.InvalidArgument:  # onnxruntime cannot write down what it has made of some models
        return "not known"
    return f"{counted[1].total()} of {counted[0].total()}" if any(counted) else ""


def _cell_after(name: str, source: Path, goal: Path, image: Array, inserted: Mapping[str, Array]) -> Cell:
    try:
        after = _run(AFTER[name](source, goal), image)
    except ModuleNotFoundError as err:
        return Cell(name, f"not measured: {err.name} is not installed")
    except Exception as err:  # each tool fails in its own way
        return Cell(name, f"the tool fails on the inserted model: {short(err)}")
    others = {key: value for key, value in inserted.items() if key != SALIENCY_MAP}
    found = [value for key, value in after.items() if key != SALIENCY_MAP]
    moved = max(relative_difference(*pair) for pair in zip(others.values(), found, strict=True))
    difference, correlation = _difference(inserted[SALIENCY_MAP], after[SALIENCY_MAP], others)
    return Cell(name, "", difference, correlation, None, moved)


def _difference(right: Array, found: Array, scores: Mapping[str, Array]) -> tuple[float, float]:
    """Of two maps, relative to the largest score or cell; and their correlation."""
    correlation, difference = compared([right], [found])
    if right.shape == found.shape:
        largest = [float(np.abs(array).max(initial=0)) for array in scores.values() if array.dtype == np.float32]
        difference = float(np.abs(right - found).max()) / max(*largest, float(np.abs(right).max()))
    return difference, correlation


def short(err: Exception, length: int = 90) -> str:
    """What a tool says, without paths and bars."""
    text = re.sub(r"\S*/\S*", "…", " ".join(str(err).split())).replace("|", "/")
    return f"{type(err).__name__} {text[:length]}".strip()


def write_section(into: Path, architecture: str, cells: Sequence[Cell], setting: Setting) -> None:
    """Put rows of one architecture into the page, in place of those of the same forms."""
    columns = (
        "| form | method | difference of the map | correlation | scores shifted by the form | moved by inserting "
        "| INT8 kernels |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    versions = ", ".join(f"{key} {value}" for key, value in setting.versions.items())
    head = f"{architecture}\n\nPlain export: `{ARCHITECTURES[architecture]}`. {versions}.\n\n{columns}"
    write_rows(into, head, [cell.row() for cell in cells], lambda row: (_texts(row)[0],), FORMS)


def write_rows(
    into: Path, head: str, rows: Sequence[str], key: Callable[[str], tuple[str, ...]], *orders: Sequence[str]
) -> None:
    """Put rows into a table of the page, in place of those of the same keys.

    Args:
        into: the page.
        head: of the table: its title in the first line, its columns in the last two.
        rows: Markdown.
        key: what tells rows apart, of `orders`.
        orders: what keys there are, in order; rows of others are dropped.
    """
    text = into.read_text(encoding="utf-8") if into.is_file() else HEAD
    first, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    sections = {part.split("\n", 1)[0]: part for part in parts}
    title = head.split("\n", 1)[0]
    old = [line for line in sections.get(title, "").splitlines() if line.startswith("|")][2:]
    found = {key(row): row for row in [*old, *rows]}
    sections[title] = head + "".join(f"{found[item]}\n" for item in product(*orders) if item in found) + "\n"
    ordered = [sections[name] for name in dict.fromkeys([*ARCHITECTURES, *sections]) if name in sections]
    into.write_text(first + "".join(f"## {part}" for part in ordered).rstrip() + "\n", encoding="utf-8")


def _texts(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")[1:]]


HEAD = """# Forms of deployment

Each form of each architecture: what is inserted, and whether the map is that of the plain export. Written by
`python -m benchmarks.exactness.forms --into docs/forms.md`; `test_forms.py` measures a part of it. The models are
exports of the zoo, Swin, SSD, CLIP, SigLIP and RT-DETR of small widths, with stand-ins for their weights, on a smooth
random image. Differences are relative to the largest score; a form that rounds has the map of its own, rounded weights,
so that its column "scores shifted" is to be read beside it.

Sets 7 to 10 are written as exporters of their time wrote them (`benchmarks/exactness/old_sets.py`); where a set has no
operator for what the model does (Erf before 9, steps of Slice before 10, Range of what selects detections before 11,
GridSample of RT-DETR before 16) there is no such file. What onnxconverter makes of transformers and of what selects
detections does not load, inserted or not. "saved, all" is refused: onnxruntime writes its NCHWc layout there, for one
kind of processor. "then float16" rounds the map as well; with stand-in weights the scores of a class may hardly differ
between places, so that rounding shows in the correlation (DeiT): what it does to trained models stands in
[deployment.md](deployment.md). A form without a row has not been measured.

"QDQ of onnxruntime" has onnxruntime's own quantisers (`UseQDQContribOps`). 16 bits are those of activations;
4 bits those of all weights, of convolutions too, which few networks bear: the map is that of the network that is left.

"INT8 kernels" counts layers with integers in the runtime's graph, after and before. Of compressed weights alone these
are products in floats whose weights stay stored in 8 bits. OpenVINO makes such a product of a 1x1 convolution that
nothing but a reshape or a transpose reads; the last layers of the class heads of YOLOv8 and SSD are read by the branch
too, as grids, and stay the convolutions that they are in the file, of unfolded weights, with the same predictions bit
for bit.

"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), metavar="FORM")
    parser.add_argument("--into", type=Path)
    parser.add_argument("--model", nargs="+", type=Path, default=[], metavar="FILE", help="in place of the zoo's")
    parser.add_argument("--image", type=Path, help="input of the models, saved by NumPy")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    setting = Setting.here("benchmarks.exactness.forms", arguments)
    image = None if given.image is None else np.load(given.image)
    for path in given.model:
        print(f"## {path.name}", flush=True)
        for cell in measured_file(path, given.forms, image):
            print(cell.row(), flush=True)
    for architecture in [] if given.model else given.only:
        print(f"## {architecture}", flush=True)
        cells = []
        for cell in measured(architecture, given.forms):
            print(cell.row(), flush=True)
            cells.append(cell)
            if given.into is not None:  # after each, so that a run that is cut short keeps what it has
                write_section(given.into, architecture, cells, setting)


if __name__ == "__main__":
    main()
