"""Read-only view of a model's graph: three nouns (graph, node, value) that know no file format.

An adapter per format builds the view once. Analysis reads it and cannot edit the model by accident; identity, not
name, decides sameness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xai_insert.errors import ModelFileError, ShapeUnknownError, UnknownNameError
from xai_insert.graph.items import only, present
from xai_insert.graph.operators import Family, Operator, Unknown
from xai_insert.graph.shape import Shape as Shape  # noqa: PLC0414 - read here by all
from xai_insert.graph.shape import format_grid as format_grid  # noqa: PLC0414 - read here by all
from xai_insert.graph.shape import format_shape as format_shape  # noqa: PLC0414 - read here by all

_Class: TypeAlias = type[Family]  # a node has another `type`
_FEW = 4096  # elements of a small constant


class Op(Enum):
    """What a node computes, in one vocabulary for every format. Anything else is `OTHER`."""

    ADD = auto()
    ARGMAX = auto()
    ATTENTION = auto()
    """Scaled dot-product attention over `[B, heads, T, d]`: query, key, value, optional mask."""
    BATCH_NORM = auto()
    CAST = auto()
    CLIP = auto()
    """Bounds from below or above: Clip, Clamp, Maximum, Minimum; bounded by the other operands."""
    CONCAT = auto()
    COMPARE = auto()
    """Greater, Less and their like: what a score is told by."""
    CONV = auto()
    DIV = auto()
    ELEMENTWISE = auto()
    """Any other function applied element by element; several operands broadcast."""
    EXPAND = auto()
    GATHER = auto()
    IDENTITY = auto()
    LAYER_NORM = auto()
    """Normalisation over trailing or named axes."""
    MATMUL = auto()
    """A third input is a bias."""
    MUL = auto()
    NMS = auto()
    """Non-maximum suppression: boxes and scores are its first two operands."""
    NONZERO = auto()
    OTHER = auto()
    """Unknown: it may mix any axes, so nothing is concluded from it."""
    POOL = auto()
    POW = auto()
    QUANTIZE = auto()
    """FakeQuantize, QuantizeLinear, DequantizeLinear: a rounding of the first operand."""
    REDUCE = auto()
    RESIZE = auto()
    ROI_ALIGN = auto()
    """Pooling inside regions, the second operand."""
    RESHAPE = auto()
    """Reshape, Flatten, Squeeze, Unsqueeze: the same elements in the same order."""
    SCATTER = auto()
    """Writing into a tensor: data, indices, updates."""
    SELECT = auto()
    """Where: condition, and the two it chooses from."""
    SHAPE = auto()
    SIGMOID = auto()
    SLICE = auto()
    SOFTMAX = auto()
    """Softmax or log-softmax."""
    SPLIT = auto()
    SUB = auto()
    TAKE = auto()
    """GatherND, GatherElements, Compress: elements at indices of several axes."""
    TOPK = auto()
    TRANSPOSE = auto()


POINTWISE = frozenset(
    {Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.POW, Op.CLIP, Op.ELEMENTWISE, Op.SIGMOID, Op.CAST, Op.IDENTITY}
    | {Op.SELECT, Op.COMPARE}
)
"""Operations that work element by element."""


@dataclass(frozen=True, slots=True)
class Use:
    """One place where a value is read."""

    node: Node
    index: int


@dataclass(eq=False, slots=True, repr=False)
class Value:
    """One tensor of the graph.

    Attributes:
        name: for people and messages; not unique in every format.
        shape: sizes, or None if even the rank is unknown.
        dtype: NumPy name of the element type (`float32`, `int64`, `bfloat16`, ...).
        producer: the node that makes it; None for graph inputs and constants.
        index: which output of the producer.
        native: the format's own handle.
        load: for constants, reads the elements.
    """

    name: str
    shape: Shape | None
    dtype: str
    native: Any = None
    producer: Node | None = None
    index: int = 0
    uses: list[Use] = field(default_factory=list)
    load: Callable[[], npt.NDArray[Any]] | None = None

    @property
    def is_constant(self) -> bool:
        """Whether the elements are stored in the model."""
        return self.load is not None

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def axis_count(self) -> int:
        """The rank; 0 if that is not known."""
        return len(self.shape or ())

    @property
    def sizes(self) -> Shape:
        """The shape, where its rank is needed.

        Raises:
            ShapeUnknownError: not even the rank is known.
        """
        if self.shape is None:
            raise ShapeUnknownError(f"the rank of {self.name!r} is unknown; give the sizes of the input: --input-shape")
        return self.shape

    @property
    def only_use(self) -> Use | None:
        """Where its elements are read, if that is in one place: what reads its sizes alone does not count."""
        uses = [use for use in self.uses if use.node.op is not Op.SHAPE]
        return only(uses)

    def made_by(self, *ops: Op) -> Node | None:
        """The node that makes it, if it is one of these operations."""
        return self.producer if self.producer is not None and self.producer.op in ops else None

    def elements(self) -> npt.NDArray[Any]:
        """The stored elements of a constant.

        Raises:
            ModelFileError: they cannot be read, or computed from others.
        """
        if self.load is None:
            raise ValueError(f"{self.name!r} is no constant")
        return self.load()

    def describe(self) -> str:
        """`'name' [1, 512, ?, ?]`, for messages."""
        return f"{self.name!r} {format_shape(self.shape)}"


@dataclass(eq=False, slots=True, repr=False)
class Node:
    """One operation of the graph.

    Attributes:
        name: for people and messages.
        op: what it computes.
        type: the format's own name of the operation, for messages.
        inputs: operands; None for an operand left out.
        outputs: results.
        native: the format's own handle.
        kind: its record: what it does to its operands, and by which attributes.
    """

    name: str
    op: Op
    type: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...] = ()
    native: Any = None
    kind: Operator = field(default_factory=Unknown)

    @property
    def output(self) -> Value:
        return self.outputs[0]

    @property
    def operands(self) -> tuple[Value, ...]:
        """What it reads, without what is left out."""
        return tuple(present(self.inputs))

    @property
    def computed(self) -> tuple[Value, ...]:
        """The operands that are not stored in the model."""
        return tuple(value for value in self.operands if not value.is_constant)

    @property
    def stored(self) -> tuple[Value, ...]:
        """The operands that are."""
        return tuple(value for value in self.operands if value.is_constant)

    def record(self, family: _Class[Family]) -> Family:
        """Its record, of an operation that has one of this family.

        Raises:
            ModelFileError: it was not understood.
        """
        if not isinstance(self.kind, family):
            raise ModelFileError(f"{self.type} {self.name!r} is none that is known; is the file whole?")
        return self.kind

    def link(self) -> None:
        """Tell its values that it makes or reads them; for adapters, once."""
        for value in self.outputs:
            value.producer = self
        for index, operand in enumerate(self.inputs):
            if operand is not None:
                operand.uses.append(Use(self, index))

    def read(self, index: int) -> Value:
        """The operand at `index`, which the operation cannot do without.

        Raises:
            ModelFileError: it is left out.
        """
        value = self.operand(index)
        if value is None:
            raise ModelFileError(f"{self.type} {self.name!r} has no operand {index}; is the file whole?")
        return value

    def operand(self, index: int) -> Value | None:
        """The operand at `index`, or None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None


@dataclass(eq=False, repr=False)
class Graph:
    """A whole model.

    Attributes:
        inputs: graph inputs, in the model's order.
        outputs: graph outputs, in the model's order.
        output_names: names under which a runtime returns them, one each.
        nodes: every node that is no constant, producers before consumers.
        hint: what the format's adapter knows of this model that may keep its parts from being found; for messages.
        watched: the one image input that is explained, of several; the others are as any input.
        at_sizes: the model read anew with axes of inputs so long, for the time of a `with`; its values have the same
            `native`. None where the file does not leave them open.
    """

    inputs: Sequence[Value]
    outputs: Sequence[Value]
    output_names: Sequence[str]
    nodes: Sequence[Node]
    hint: str = ""
    watched: Value | None = None
    at_sizes: Callable[[Mapping[Value, Mapping[int, int]]], AbstractContextManager[Graph]] | None = None

    def chosen(self, name: str | None) -> list[tuple[int, Value]]:
        """The output of that name, those of several with commas between, or all of them, with their numbers.

        Of all, those that tell nothing but sizes are left out, which some exporters leave among the outputs.

        Raises:
            UnknownNameError: no output has that name.
        """
        names = list(self.output_names)
        wanted = self._telling if name is None else [name] if name in names else name.split(",")
        for item in wanted:
            if item not in names:
                raise UnknownNameError("output", item, names)
        return [(index, value) for index, value in enumerate(self.outputs) if names[index] in wanted]

    @cached_property
    def _telling(self) -> list[str]:
        """Names of the outputs that depend on what the inputs hold; of all where none does."""
        held = set(self.inputs)
        for node in self.nodes:
            held.update(() if node.op is Op.SHAPE or held.isdisjoint(node.inputs) else node.outputs)
        named = zip(self.output_names, self.outputs, strict=True)
        return [name for name, value in named if value in held] or list(self.output_names)

    @property
    def values(self) -> list[Value]:
        """The inputs, and what every node gives, in topological order."""
        return [*self.inputs, *(value for node in self.nodes for value in node.outputs)]

    @cached_property
    def order(self) -> dict[Node, int]:
        """Position of each node in topological order."""
        return {node: index for index, node in enumerate(self.nodes)}

    def named(self, name: str) -> Value | None:
        """The value of that name, or the first that the node of that name gives; None if there is neither."""
        for node in self.nodes:
            if node.name == name or any(value.name == name for value in node.outputs):
                return next((value for value in node.outputs if value.name == name), node.output)
        return None


def from_front(axes: Sequence[int] | None, rank: int | None) -> tuple[int, ...] | None:
    """Axes counted from the front, in order; None where they, or how many there are, are not known."""
    return None if axes is None or rank is None else tuple(sorted({axis % rank for axis in axes}))


def volume(shape: Sequence[int | None]) -> int | None:
    """Product of sizes, or None if one is unknown."""
    total = 1
    for size in shape:
        if size is None:
            return None
        total *= size
    return total


def fixed(sizes: Sequence[int | None]) -> list[int]:
    """Sizes that must all be known.

    Raises:
        ShapeUnknownError: one follows the input.
    """
    known = present(sizes)
    if len(known) < len(sizes):
        raise ShapeUnknownError(
            f"sizes {format_shape(tuple(sizes))} follow the input; fix them: --input-shape; or, where its sizes "
            "are fixed, simplify the model (onnxsim, onnxslim) or export it with dynamo=True"
        )
    return known


def kept_if_few(compute: Callable[[], npt.NDArray[Any]]) -> Callable[[], npt.NDArray[Any]]:
    """What computes elements, once if they are few: each step of a chain of small constants asks for those before."""
    kept: list[npt.NDArray[Any]] = []

    def load() -> npt.NDArray[Any]:
        if kept:
            return kept[0]
        elements = compute().view()
        if elements.size <= _FEW:
            elements.setflags(write=False)
            kept.append(elements)
        return elements

    return load


def constant_of(value: Value | None, limit: int = _FEW) -> npt.NDArray[Any] | None:
    """Elements of a small constant operand; None if it is computed, left out, or larger than `limit` elements."""
    if value is None or not value.is_constant or value.shape is None:
        return None
    count = volume(value.shape)
    if count is None or count > limit:
        return None
    try:
        return np.asarray(value.elements())
    except ModelFileError:  # computed from constants by an operation that cannot be run here
        return None


def numbers(value: Value | None, limit: int = _FEW) -> tuple[int, ...] | None:
    """Elements of a small constant operand as integers; None if they are not known, see `constant_of`."""
    elements = constant_of(value, limit)
    return None if elements is None else tuple(int(element) for element in elements.reshape(-1))


def number_of(value: Value | None) -> float | None:
    """The one element of a constant; None if it is computed, left out, or has others."""
    stored = constant_of(value, limit=1)
    return None if stored is None or stored.size != 1 else float(stored.reshape(-1)[0])
