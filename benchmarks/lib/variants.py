"""The model files that are compared: plain, inserted, and the definition written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.lib.runners import Array, Runner, open_runner, random_feeds
from xai_insert.errors import XaiInsertError
from xai_insert.formats.backend import load
from xai_insert.graph.view import Shape
from xai_insert.methods.of_classifier import MaskedPlan
from xai_insert.options import Options
from xai_insert.pipeline import insert_file, splice
from xai_insert.report import Report
from xai_insert.tasks.choose import make_plan

_SAME_FLOATS = 1e-4  # of the largest element: kernels may differ between batch sizes
_SAME_BYTES = 1.0  # mean difference in levels


@dataclass(frozen=True)
class Variant:
    """A model file and how to open it.

    Attributes:
        path: `.xml` or `.onnx`.
        reshape_to: batch size to reshape to; None opens the model as it is.
    """

    path: Path
    reshape_to: int | None = None

    def open(self, precision: str | None, *, throughput: bool = False) -> Runner:
        """Compile it, see `open_runner`."""
        return open_runner(self.path, precision, self.reshape_to, throughput=throughput)


@dataclass(frozen=True)
class Variants:
    """What is measured side by side.

    Attributes:
        plain: the model as it came.
        inserted: with default options.
        definition: with the rest of the model run once per position; None where that is what `inserted` does.
        report: of the insertion.
        note: what had to be done for this batch size.
    """

    plain: Variant
    inserted: Variant
    definition: Variant | None
    report: Report
    note: str = ""

    def items(self) -> list[tuple[str, Variant]]:
        """Those that exist, by name."""
        named = [("plain", self.plain), ("inserted", self.inserted), ("definition", self.definition)]
        return [(name, variant) for name, variant in named if variant is not None]


def resolve(model: str, scratch: Path) -> Path:
    """Path of a model given as a path or as the id of a fixture, which is written into `scratch`.

    Raises:
        ValueError: it is neither.
    """
    if Path(model).suffix in (".xml", ".onnx"):
        return Path(model)
    from model_zoo_fixtures import fixtures, materialise  # noqa: PLC0415 - plain files do without the zoo

    found = fixtures(id=model)
    if not found:
        raise ValueError(f"{model!r} is neither an .xml or .onnx file nor the id of a fixture, such as resnet50.ptir")
    return materialise(found[0], scratch / model)


def build(source: Path, folder: Path, input_shapes: Mapping[str, Shape] | None = None) -> Variants:
    """Insert into `source`, in both forms.

    Args:
        source: the plain model.
        folder: where to write; must exist.
        input_shapes: sizes to fix first, by input name.

    Raises:
        XaiInsertError: the model cannot be inserted into.
    """
    options = Options(input_shapes=input_shapes or {})
    inserted = folder / f"inserted{source.suffix}"
    report = insert_file(source, inserted, options)
    definition = _write_definition(source, folder, options) if report.form == "closed form" else None
    return Variants(Variant(source), Variant(inserted), definition, report)


def for_batch(variants: Variants, batch: int, folder: Path) -> Variants | None:
    """The variants for a batch size; None if the plain model does not take it.

    A model whose batch is open is used as it is. An IR of static batch 1 is reshaped. Exporters write the batch into
    shapes, so reshaping may fail, or succeed with wrong results; a variant that does not take it is made anew from the
    reshaped plain model.
    """
    inputs = variants.plain.open("f32").inputs
    size = inputs[0][2][0]
    if size is None or size == batch:
        return variants
    if size != 1 or variants.plain.path.suffix == ".onnx" or not _takes_batch(variants.plain.path, batch):
        return None
    chosen = {name: Variant(variant.path, batch) for name, variant in variants.items()}
    refused = [name for name, variant in chosen.items() if name != "plain" and not _takes_batch(variant.path, batch)]
    if refused:
        shapes = {name: (batch, *shape[1:]) for name, _, shape in inputs if shape[:1] == (1,)}
        folder.mkdir(exist_ok=True)
        again = dict(build(variants.plain.path, folder, shapes).items())
        chosen.update((name, again[name]) for name in refused if name in again)
    note = f"reshaped; {' and '.join(refused)} made anew" if refused else "reshaped"
    return replace(
        variants, plain=chosen["plain"], inserted=chosen["inserted"], definition=chosen.get("definition"), note=note
    )


def _write_definition(source: Path, folder: Path, options: Options) -> Variant | None:
    loaded = load(source, options.input_shapes, None)
    graph = loaded.view()
    plan = make_plan(loaded, graph, options)
    assert isinstance(plan, MaskedPlan)  # the benchmark is of classifiers
    try:
        splice(loaded, graph, plan.by_runs(graph, "benchmark"), options)
    except XaiInsertError as err:  # an open grid has no masked runs
        print(f"{source.name}: no definition to compare with: {err}")
        return None
    return Variant(loaded.save(folder, f"definition{source.suffix}")[-1])


def _takes_batch(path: Path, batch: int) -> bool:
    """Whether the model, reshaped, gives for the first and last image of a batch what it gives for them alone."""
    try:
        whole, single = open_runner(path, "f32", batch), open_runner(path, "f32")
        feeds = random_feeds(whole.inputs, batch)
        together = _run(whole, feeds)
        return all(
            len(output) == batch and _is_close(alone[0], output[row])
            for row in (0, batch - 1)
            for output, alone in zip(together, _run(single, [feed[row : row + 1] for feed in feeds]), strict=True)
        )
    except RuntimeError:
        return False


def _run(runner: Runner, feeds: list[Array]) -> list[Array]:
    runner.feed(feeds)
    runner()
    return runner.outputs()


def _is_close(expected: Array, actual: Array) -> bool:
    if expected.shape != actual.shape:
        return False
    apart = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    if "float" not in expected.dtype.name:
        return bool(apart.mean() <= _SAME_BYTES)
    return bool(apart.max() <= _SAME_FLOATS * np.abs(expected).max())
