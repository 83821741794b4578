"""What an operator does to the axes of its operands: one typed record per family, the same for every format.

A format's reader gives each node its record, keyed by domain and type. An operator without one is `Unknown`: nothing
may be assumed of it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operator:
    """The base of all records."""


@dataclass(frozen=True, slots=True)
class Unknown(Operator):
    """An operator of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Pointwise(Operator):
    """Element by element, of operands that broadcast as NumPy's do."""


@dataclass(frozen=True, slots=True)
class InPlace(Operator):
    """Mixes elements of its first operand (norms, softmax) but leaves each where it is."""


@dataclass(frozen=True, slots=True)
class Window(Operator):
    """Convolution or pool, `[N, C, spatial...]`.

    Attributes:
        kernel: its sides; None where they are not known.
        strides: steps, one for each side.
        dilations: likewise.
        pads_begin: cells added before the first; None where the sizes of operand and result tell (`SAME_UPPER`).
        keeps_channels: whether channel i of the result comes from channel i alone.
        transposed: whether it is a transposed convolution, whose strides widen the grid.
    """

    kernel: tuple[int, ...] | None
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_begin: tuple[int, ...] | None
    keeps_channels: bool = False
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Reduction(Operator):
    """A reduction over axes; None where they are not known."""

    axes: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Product(Operator):
    """Matrix product of the last two axes, each operand transposed before it or not."""

    transpose_a: bool = False
    transpose_b: bool = False


@dataclass(frozen=True, slots=True)
class FusedAttention(Operator):
    """`softmax(query @ key) @ value` over `[..., T, d]`."""


@dataclass(frozen=True, slots=True)
class Regroup(Operator):
    """The same elements in the same order, in another shape."""


@dataclass(frozen=True, slots=True)
class Permutation(Operator):
    """Another order of the axes; None where it is not known."""

    perm: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Cut:
    """What is kept of one axis: `start`, `start + step`, ... as many as the result has."""

    axis: int
    start: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Slices(Operator):
    """Parts of axes; None where they are not known. `dropped` are axes of which one element is kept, without the axis.

    With `cuts` of negative step an axis is reversed.
    """

    cuts: tuple[Cut, ...] | None
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Parts(Operator):
    """A split along one axis; the results' sizes say where."""

    axis: int | None


@dataclass(frozen=True, slots=True)
class Picked(Operator):
    """Stored indices taken along an axis: in place of it, an axis for each of the indices' own."""

    axis: int
    indices: tuple[int, ...] | None
    rank: int


@dataclass(frozen=True, slots=True)
class Joined(Operator):
    """A concatenation along one axis."""

    axis: int


@dataclass(frozen=True, slots=True)
class Widened(Operator):
    """Broadcast to another shape (Expand) or repeated (Tile): what was of size 1 or less becomes a new axis."""


@dataclass(frozen=True, slots=True)
class Padded(Operator):
    """Cells added before each axis (negative: cut off); None where they are not known."""

    before: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Resized(Operator):
    """Interpolation to the result's sizes.

    Attributes:
        corners: whether the first and last cells of both grids coincide, in place of their outer edges.
    """

    corners: bool = False


@dataclass(frozen=True, slots=True)
class Blocks(Operator):
    """Space to depth, or depth to space, in blocks of `side`, `[N, C, H, W]`."""

    side: int
    to_depth: bool


@dataclass(frozen=True, slots=True)
class Rolled(Operator):
    """Elements shifted along axes, those that leave coming in at the other end; None where it is not known."""

    axes: tuple[int, ...] | None
    shifts: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Scattered(Operator):
    """Rows of the third operand written over rows of the first, at stored or computed indices of the first axis."""


@dataclass(frozen=True, slots=True)
class ControlFlow(Operator):
    """A node with graphs of its own (If, Loop, Scan): what it gives in the shape of what it reads lies where that does.

    That is the one thing here that is assumed; the proof of place asks the model.
    """
