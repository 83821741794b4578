"""What the pipeline asks of a format, and the one place that chooses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from xai_insert.errors import ModelFileError
from xai_insert.formats.deferred import import_without
from xai_insert.formats.others import CONVERTIBLE, require_model, saved_model
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, Shape, Value

_Written = TypeVar("_Written")


class Runner(Protocol):
    """A compiled model."""

    @property
    def inputs(self) -> Sequence[tuple[str, str, Shape]]:
        """Name, NumPy dtype and sizes of each input."""

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], seconds: float | None = None) -> list[npt.NDArray[Any]]:
        """Every output, in order.

        Args:
            feeds: an array for each input, by name.
            seconds: how long the run may take; None for ever.

        Raises:
            CheckFailedError: the runtime cannot run the model.
            TimeLimitError: the run took longer, and was broken off.
        """


@dataclass(frozen=True)
class Removed:
    """What was taken off a model.

    Attributes:
        operations: how many, those inside of others not counted.
        floats: NumPy names of the floating-point types in which they computed.
        rounding: how many of them rounded what the model computes to integers.
        is_marked: whether they were kept in float32 where the runtime computes in half precision.
    """

    operations: int
    floats: frozenset[str]
    rounding: int
    is_marked: bool = False


class LoadedModel(Protocol):
    """A private copy of a model, in its own format."""

    @property
    def native(self) -> Any:
        """The format library's own model object."""

    @property
    def format_name(self) -> str:
        """`OpenVINO IR` or `ONNX`."""

    @property
    def keeps_float32(self) -> bool:
        """Whether what was added is kept in float32 where the runtime computes in half precision."""

    def view(self) -> Graph:
        """Read-only view; taken once, before the first edit."""

    def fix_sizes(self, sizes: Mapping[str, Shape]) -> None:
        """Give inputs fixed sizes, by their names in `view()`, which is to be taken anew; before the first edit."""

    def open_sizes(self, sides: Mapping[Value, Sequence[int]]) -> bool:
        """Leave sizes of inputs open until `close_sizes`, if the format lets a user change them and the model can.

        What is inserted meanwhile follows them. `view()` is to be taken anew.

        Args:
            sides: axes, by input.
        """

    def close_sizes(self) -> None:
        """Give the inputs the sizes that they had before `open_sizes`."""

    def sizes_at(self, value: Value, pixels: Mapping[Value, Mapping[int, int]]) -> Shape | None:
        """The sizes that `value` has where the inputs' axes are so long; None if the model does not take them."""

    def surgeon(self, *, keep_float32: bool = False) -> Surgeon[Any]:
        """The editor of this model.

        Args:
            keep_float32: keep what is added in float32 where the runtime would compute in half precision.
        """

    def runner(self) -> Runner:
        """Compile for the CPU in float32."""

    def elsewhere(self) -> Runner | None:
        """Likewise in another runtime that reads the same file; None if there is none, or it is not installed.

        Its inputs are fed by their numbers.

        Raises:
            ModelFileError: it does not read the file.
        """

    def between(self, features: Sequence[Value], results: Sequence[Any], *, is_rounded: bool = True) -> Runner:
        """Compile only what lies between `features` and the handles `results`.

        The first inputs are the features; those of the whole model follow, since a head may read its batch there.
        With `is_rounded` False what quantisers round is left as it is.
        """

    def result_like(self, given: Any) -> Any:
        """The model as the kind of object that `given` was."""

    def read_metadata(self) -> dict[str, str]:
        """What an earlier insertion wrote."""

    def annotate(self, entries: Mapping[str, str]) -> None:
        """Write metadata about the insertion."""

    def strip(self, outputs: Sequence[str]) -> tuple[LoadedModel, Removed]:
        """The model without some outputs, what feeds them alone and the metadata; this one is used up.

        Args:
            outputs: names as those of `view()`; it has them all, and others.
        """

    def shuffle(self, seed: int) -> int:
        """Put the elements of each weight of a convolution or product into random order, before `view()`.

        Returns:
            The number of weights.
        """

    def save(self, folder: Path, name: str) -> list[Path]:
        """Write the model as `name` into `folder`; returns its files, the main one last."""

    def install(self, files: Sequence[Path], goal: Path) -> list[Path]:
        """Move what `save` wrote to `goal`; at every moment the old model is there, or the new one, whole."""

    def versions(self) -> dict[str, str]:
        """Versions of the format's libraries."""


@contextmanager
def written_beside(loaded: LoadedModel, write: Callable[[Surgeon[Any]], _Written]) -> Iterator[_Written]:
    """What is written beside a model so that it can be run to; it goes again with the `with`."""
    surgeon = loaded.surgeon(keep_float32=True)
    try:
        yield write(surgeon)
    finally:
        surgeon.prune()


def load(model: Any, input_shapes: Mapping[str, Shape], output: Path | None = None) -> LoadedModel:
    """Load a model for editing; what was given stays unchanged.

    Args:
        model: path of a `.xml` or `.onnx` file, or of one that OpenVINO converts (TensorFlow, a saved model's folder
            too, Paddle), `ov.Model`, `onnx.ModelProto` or `onnx_ir.Model`.
        input_shapes: sizes to fix, by input name.
        output: where the result is to be written; its suffix may ask for a conversion to IR.

    Raises:
        ModelFileError: missing, damaged or of an unknown kind.
    """
    if isinstance(model, (str, Path)):
        return _from_path(Path(model), input_shapes, output)
    module = type(model).__module__.split(".")[0]
    if module == "openvino":
        return _openvino().load_model(model, input_shapes)
    if module in ("onnx", "onnx_ir"):
        return _onnx().load_model(model, input_shapes)
    raise ModelFileError(
        f"cannot read a {type(model).__name__}: wanted a path, ov.Model, onnx.ModelProto or onnx_ir.Model"
    )


def _from_path(path: Path, input_shapes: Mapping[str, Shape], output: Path | None) -> LoadedModel:
    to_ir = output is not None and output.suffix.lower() == ".xml"
    kind = path.suffix.lower()
    if (saved := saved_model(path)) is not None:
        _require_ir(output, "a TensorFlow saved model becomes")
        return _openvino().load_path(saved, input_shapes)
    if not path.is_file():
        raise ModelFileError("not a plain file" if path.exists() else "no such file")
    require_model(path)
    if kind == ".onnx" and not to_ir:
        return _onnx().load_path(path, input_shapes)
    if kind in CONVERTIBLE:
        _require_ir(output, f"{path.suffix} files become")
    elif kind not in (".xml", ".onnx"):
        raise ModelFileError(f"unknown kind of model {path.name!r}: wanted .xml (OpenVINO IR) or .onnx")
    return _openvino().load_path(path, input_shapes)


def _require_ir(output: Path | None, what: str) -> None:
    if output is not None and output.suffix.lower() != ".xml":
        raise ModelFileError(f"{what} OpenVINO IR: give an output that ends in .xml")


class _Loader(Protocol):
    """A format's module `model`."""

    def load_path(self, path: Path, input_shapes: Mapping[str, Shape]) -> LoadedModel: ...

    def load_model(self, model: Any, input_shapes: Mapping[str, Shape]) -> LoadedModel: ...


def _openvino() -> _Loader:
    from xai_insert.formats.openvino import model  # noqa: PLC0415 - an ONNX user does not pay for OpenVINO

    return model


def _onnx() -> _Loader:
    # onnx-ir needs it for arithmetic with names of sizes alone; loading it takes as long as a small insertion.
    import_without("onnx_ir", ("sympy", "onnx_ir._symbolic_shapes"))
    from xai_insert.formats.onnx import model  # noqa: PLC0415 - an IR user does not pay for ONNX

    return model
