"""What became of an inserted model in the hands of other tools: its predictions, its map, its precision.

A quantiser, a simplifier or a converter may drop metadata and names. What is judged is the output `saliency_map` and
what feeds it alone: that is cut off, and a map is inserted afresh into what is left and checked against its definition
as ever; the map of the file is to be that map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.check import relative_difference
from xai_insert.check_runtimes import LEAST_BETWEEN_RUNTIMES, compared, correlation_elsewhere
from xai_insert.errors import CheckFailedError, ModelFileError, XaiInsertError
from xai_insert.feeds import feeds_of
from xai_insert.formats.backend import LoadedModel, Runner, load
from xai_insert.graph.view import Graph, Op
from xai_insert.methods.of_classifier import SALIENCY_CLASSES, SALIENCY_SCORES
from xai_insert.methods.reading import ToClasses
from xai_insert.options import METHODS, Options
from xai_insert.pipeline import FEATURE_VECTOR, IGNORED_SCOPE, SALIENCY_MAP, SALIENCY_RANGE, insert_loaded
from xai_insert.report import Report
from xai_insert.strip import own_outputs, without_map
from xai_insert.tasks.per_box import PER_BOX

Outputs = Mapping[str, npt.NDArray[Any]]
_SEED = 0
_SCALES = (1.0, 64.0)  # of the random images: models take pixels in units of their own
_LEAST_CORRELATION = 0.99
_MOST_MOVED = {"float16": 1e-2, "bfloat16": 5e-2}  # half precision rounds at 1e-3, and anew where kernels are merged
_DEFAULT_MOST_MOVED = 1e-5


@dataclass(frozen=True)
class Verification:
    """What was measured on random images.

    Attributes:
        outputs_moved: largest difference of another output from the model without the branch, relative to its largest
            element.
        correlation: mean, over the maps that vary, of the correlation with a map inserted afresh; None without one.
        map_difference: largest difference from it, relative to its largest element; None likewise.
        openvino_correlation: of an ONNX file, that of OpenVINO's map with onnxruntime's; None where OpenVINO is not
            installed, does not read the model or predicts something else.
        operations: how many feed the map alone.
        precision: the floating-point types in which they compute.
        rounding: how many of them round to integers.
        is_marked: whether an IR keeps them in float32 on devices that compute in half precision; None where that is not
            needed.
        has_metadata: whether the model still says what was inserted.
        off: what is wrong, a sentence each; empty if all is well.
    """

    outputs_moved: float
    correlation: float | None
    map_difference: float | None
    openvino_correlation: float | None
    operations: int
    precision: Sequence[str]
    rounding: int
    is_marked: bool | None
    has_metadata: bool
    off: Sequence[str] = ()

    def lines(self) -> list[tuple[str, str]]:
        """A few lines for people, a word and a text each."""
        moved = f"moved by {self.outputs_moved:.1e}" if self.outputs_moved else "identical"
        branch = f"{self.operations} operations that feed the map alone, in {' and '.join(self.precision)}"
        lines = [
            ("checked", f"predictions {moved} without the branch"),
            ("branch", branch + (f", {self.rounding} of which round" if self.rounding else "")),
        ]
        if self.correlation is not None:
            off = f"differs by {self.map_difference:.1e} of its largest element"
            lines.append(("map", f"correlation {self.correlation:.6f} with a fresh insertion, {off}"))
        if self.openvino_correlation is not None:
            lines.append(("openvino", f"correlation {self.openvino_correlation:.6f} with the map of onnxruntime"))
        if not self.has_metadata:
            lines.append(("metadata", f"gone; went by the output {SALIENCY_MAP} and what feeds it alone"))
        return lines


def verify_file(source: Path) -> Report:
    """Judge an inserted model file; what is off becomes the report's error.

    Raises:
        XaiInsertError: one of its children: the file carries no map, or does not run.
    """
    found = verify(source)
    error = "; ".join(found.off) or None
    return Report(source=str(source), error=error, lines=found.lines(), verification=asdict(found))


def verify(model: Any) -> Verification:
    """Judge an inserted model.

    Args:
        model: a path or a model in memory, see `xai_insert.insert`; unchanged.

    Raises:
        NotInsertedError: no output is called `saliency_map`.
        XaiInsertError: another of its children: the model cannot be read or does not run.
    """
    whole = load(model, {})
    names = whole.view().output_names
    own = own_outputs(names)
    others = [name for name in names if name not in own]
    runner = whole.runner()
    feeds = [_images(runner, scale) for scale in _SCALES]
    outputs = [_named(names, runner.run(feed)) for feed in feeds]

    def plain() -> LoadedModel:
        return without_map(load(model, {}), names)[0]

    stripped, removed = without_map(load(model, {}), names)
    moved = _moved(stripped, others, feeds, outputs)
    again, refused = None, ""
    try:
        again = _inserted_again(whole, plain, outputs[0][SALIENCY_MAP], own)
    except XaiInsertError as err:
        refused = str(err)
    correlation, difference = (None, None) if again is None else _likeness(again, [*others, *own], feeds, outputs)
    marked = removed.is_marked if again is not None and again.keeps_float32 else None
    between = None
    if isinstance(model, (str, Path)):
        with suppress(CheckFailedError, ModelFileError):
            between = correlation_elsewhere(whole, feeds, outputs, SALIENCY_MAP)
    found = Verification(
        moved,
        correlation,
        difference,
        between,
        removed.operations,
        sorted(removed.floats),
        removed.rounding,
        marked,
        bool(whole.read_metadata()),
    )
    return replace(found, off=[*_off(found, refused)])


def _moved(
    stripped: LoadedModel, others: Sequence[str], feeds: Sequence[Mapping[str, Any]], outputs: Sequence[Outputs]
) -> float:
    """The largest difference of another output from the model without the branch."""
    runner = stripped.runner()
    known = {name for name, _, _ in runner.inputs}  # a reference may have been an input of the map alone
    without = [_named(others, runner.run({name: feed[name] for name in feed if name in known})) for feed in feeds]
    pairs = [(a[name], b[name]) for a, b in zip(without, outputs, strict=True) for name in others]
    return max((relative_difference(*pair) for pair in pairs), default=0.0)


def _likeness(
    again: LoadedModel, names: Sequence[str], feeds: Sequence[Mapping[str, Any]], outputs: Sequence[Outputs]
) -> tuple[float, float]:
    """Correlation and largest difference of the maps of a fresh insertion."""
    runner = again.runner()
    maps = [_named(names, runner.run(feed))[SALIENCY_MAP] for feed in feeds]
    return compared(maps, [found[SALIENCY_MAP] for found in outputs])


def _inserted_again(
    whole: LoadedModel, plain: Callable[[], LoadedModel], maps: npt.NDArray[Any], own: Sequence[str]
) -> LoadedModel:
    """The plain model with a map by the options of the inserted one, `whole`, which gave `maps`."""
    metadata = whole.read_metadata()
    with TemporaryDirectory() as folder:
        options = options_of(metadata, maps, own)
        if metadata.get("reference") == ToClasses.name:
            path = Path(folder, "classes.npy")
            np.save(path, _class_embeddings(whole.view()))
            options = replace(options, class_embeddings=str(path))
        return afresh(plain, options, maps)


def _off(found: Verification, refused: str) -> Iterator[str]:
    """What is wrong, a sentence each; `refused` says why no map could be inserted afresh, empty if one was."""
    most = max((_MOST_MOVED.get(kind, 0.0) for kind in found.precision), default=0.0) or _DEFAULT_MOST_MOVED
    if found.outputs_moved > most:
        yield f"the branch moves the predictions by {found.outputs_moved:.1e} of the largest"
    if refused:
        yield f"the map cannot be compared with its definition, for none can be inserted afresh: {refused}"
    yield from _unlike(found)
    if found.is_marked is False:
        yield "the branch has lost the mark that keeps it in float32 where a device computes in half precision"


def _unlike(found: Verification) -> Iterator[str]:
    """Which maps that should be the same are not."""
    if found.correlation is not None and found.correlation < _LEAST_CORRELATION:
        why = f": {found.rounding} operations of the branch round to integers, leave {IGNORED_SCOPE!r} alone"
        text = f"the map is not that of its definition, correlation {found.correlation:.3f} on random images"
        yield text + (why if found.rounding else "")
    if found.openvino_correlation is not None and found.openvino_correlation < LEAST_BETWEEN_RUNTIMES:
        yield f"OpenVINO gives another map than onnxruntime, correlation {found.openvino_correlation:.4f}"


def _named(names: Sequence[str], arrays: Sequence[npt.NDArray[Any]]) -> Outputs:
    return dict(zip(names, arrays, strict=False))


def _images(runner: Runner, scale: float) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(_SEED)
    made = feeds_of(runner.inputs, rng)
    return {
        name: array * array.dtype.type(scale) if "float" in str(array.dtype) else array for name, array in made.items()
    }


def options_of(metadata: Mapping[str, str], maps: npt.NDArray[Any], own: Sequence[str]) -> Options:
    """The options of the insertion, as far as the model tells them.

    Args:
        metadata: what the insertion wrote; may be empty.
        maps: the output `saliency_map` of some image.
        own: names of the outputs that were inserted.

    Raises:
        ModelFileError: they are those of another version.
    """
    try:
        options = Options.read(metadata.get("options", ""))
    except (TypeError, ValueError) as err:
        raise ModelFileError(f"the metadata name options that this version does not know: {err}") from err
    if metadata.get("method") in METHODS:
        options = replace(options, method=metadata["method"])
    elif maps.ndim == 3:
        options = replace(options, method="activation-map")
    return replace(
        options,
        output_dtype="u8" if maps.dtype == np.uint8 else "f32",
        top_k=maps.shape[1] if SALIENCY_CLASSES in own and options.classes is None else None,
        feature_vector=FEATURE_VECTOR in own,
        range=SALIENCY_RANGE in own,
        per_box=PER_BOX in own,
        given=(),
    )


def _class_embeddings(graph: Graph) -> npt.NDArray[Any]:
    """What the scores of the classes are products with.

    Raises:
        ModelFileError: they are not stored as they were written.
    """
    names = list(graph.output_names)
    node = graph.outputs[names.index(SALIENCY_SCORES)].producer if SALIENCY_SCORES in names else None
    while node is not None and node.op is not Op.CONV:
        node = node.read(0).producer
    if node is None or not node.read(1).is_constant:
        raise ModelFileError("the embeddings of the classes cannot be read from the model")
    return node.read(1).elements()[:, :, 0, 0]


def afresh(plain: Any, options: Options, maps: npt.NDArray[Any]) -> LoadedModel:
    """A model with a map inserted afresh, of the size of `maps`."""
    loaded, report = insert_loaded(plain, options, "")
    sides, wanted = tuple(report.saliency_map["shape"][-2:]), maps.shape[-2:]
    if None in sides or sides == wanted or options.saliency_size is not None:
        return loaded
    return insert_loaded(plain, replace(options, saliency_size=(wanted[0], wanted[1])), "")[0]
