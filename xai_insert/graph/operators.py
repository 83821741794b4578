"""What an operator does to the axes of its operands: one typed record per family, the same for every format.

A format's reader gives each node its record, by domain and type. Of one without, `Unknown`, nothing may be assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True, slots=True)
class Operator:
    """The base of all records."""


@dataclass(frozen=True, slots=True)
class Unknown(Operator):
    """An operator of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Pointwise(Operator):
    """Element by element, of operands that broadcast as NumPy's do.

    Attributes:
        function: what is computed, by ONNX's name for it in lower case.
        parameters: its attributes, in ONNX's order.
    """

    function: str = ""
    parameters: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class InPlace(Operator):
    """Mixes elements of its first operand (norms, softmax) but leaves each where it is."""


@dataclass(frozen=True, slots=True)
class Softmax(InPlace):
    """Softmax over axes, or its logarithm."""

    axes: tuple[int, ...] = (-1,)
    is_log: bool = False


@dataclass(frozen=True, slots=True)
class Norm(InPlace):
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias`; scale and bias are the second and third operand, if any.

    Attributes:
        axes: those of mean and variance; None where they are not known.
        epsilon: what is added.
        is_centred: whether the mean is subtracted; without, the variance is the mean square.
        is_scaled: whether it is divided at all.
        epsilon_outside: whether epsilon is added behind the root.
        groups: groups into which axis 1 is divided before; 0 for none.
        by_channel: whether scale and bias hold one element for each of axis 1.
    """

    axes: tuple[int, ...] | None = None
    epsilon: float = 0.0
    is_centred: bool = True
    is_scaled: bool = True
    epsilon_outside: bool = False
    groups: int = 0
    by_channel: bool = False


@dataclass(frozen=True, slots=True)
class BatchNorm(InPlace):
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias`, of stored scale, bias, mean, variance by channel."""

    epsilon: float = 0.0


@dataclass(frozen=True, slots=True)
class UnitNorm(InPlace):
    """`x` over its Euclidean length along axes.

    Attributes:
        axes: None where they are not known.
        epsilon: least square of the length, or what is added to it.
        is_added: whether it is added.
    """

    axes: tuple[int, ...] | None = None
    epsilon: float = 0.0
    is_added: bool = False


@dataclass(frozen=True, slots=True)
class LocalNorm(InPlace):
    """`x / (bias + alpha / size * (sum of squares)) ** beta`, summed over `size` neighbours along axis 1.

    Of an even number of neighbours, one more comes behind.
    """

    size: int
    alpha: float
    beta: float
    bias: float


@dataclass(frozen=True, slots=True)
class Shuffled(InPlace):
    """The elements along an axis, `groups` rows of them, column by column."""

    axis: int
    groups: int


@dataclass(frozen=True, slots=True)
class Rounded(InPlace):
    """Quantisation to fewer bits, or back."""


@dataclass(frozen=True, slots=True)
class Window(Operator):
    """Convolution or pool, `[N, C, spatial...]`.

    Attributes:
        kernel: its sides; None where they are not known.
        strides: steps, one for each side.
        dilations: likewise.
        pads_begin: cells added before the first, or taken off by a transposed convolution; None where the sizes of
            operand and result tell (`SAME_UPPER`, `output_shape`).
        keeps_channels: whether channel i of the result comes from channel i alone.
        transposed: whether it is a transposed convolution, whose strides widen the grid.
        groups: of channels, of a convolution.
        pool: `mean` or `max`, `other` for another; None for a convolution.
        counts_pads: whether a mean counts the cells that were added.
        is_late: of an odd number of cells that sizes tell, whether one more comes first (`SAME_LOWER`).
    """

    kernel: tuple[int, ...] | None
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_begin: tuple[int, ...] | None
    keeps_channels: bool = False
    transposed: bool = False
    groups: int = 1
    pool: str | None = None
    counts_pads: bool = False
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Reduction(Operator):
    """A reduction over axes; None where they are not known."""

    axes: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Product(Operator):
    """Matrix product of the last two axes, each operand transposed before it or not.

    With `factor`, and a third operand times `bias_factor` added.
    """

    transpose_a: bool = False
    transpose_b: bool = False
    factor: float = 1.0
    bias_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Contracted(Unknown):
    """An Einsum of two operands that is no matrix product between transposes.

    Attributes:
        labels: one letter for each axis of both operands and of the result, of each no letter twice; None if unknown.
    """

    labels: tuple[str, str, str] | None = None


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


_MANY = 1 << 16


def cut_from(axis: int, size: int | None, start: int, step: int) -> Cut | None:
    """What is kept of an axis from `start` on; None where it is counted from an end that is not known."""
    if size is None:
        return Cut(axis, start, step) if 0 <= start < _MANY else None
    return Cut(axis, max(0, start + size) if start < 0 else min(start, size - (step < 0)), step)


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
class Taken(Operator):
    """Elements of one axis, others at each place of the other axes: GatherElements."""

    axis: int


@dataclass(frozen=True, slots=True)
class Joined(Operator):
    """A concatenation along one axis."""

    axis: int


@dataclass(frozen=True, slots=True)
class Widened(Operator):
    """Broadcast to another shape (Expand) or repeated (Tile): what was of size 1 or less becomes a new axis."""


@dataclass(frozen=True, slots=True)
class Padded(Operator):
    """Cells added before each axis (negative: cut off); None where they are not known.

    `mode` is `constant`, or what they repeat: `reflect`, `edge`, `symmetric`, `wrap`.
    """

    before: tuple[int, ...] | None
    mode: str = "constant"


@dataclass(frozen=True, slots=True)
class Resized(Operator):
    """Interpolation to the result's sizes.

    Attributes:
        corners: whether the first and last cells of both grids coincide, in place of their outer edges.
        mode: `nearest`, `linear`, `cubic`, `mean` of the cells that a cell of the result covers; empty for another.
        coordinates, rounding: ONNX's `coordinate_transformation_mode` and `nearest_mode`.
        coefficient: of cubic interpolation.
        skips_outside: whether cells outside of the map have no weight; else they have that of the edge.
        sizes_at: the operand that tells the result's sizes; None where scales do, or the operation itself.
    """

    corners: bool = False
    mode: str = ""
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    coefficient: float = -0.75
    skips_outside: bool = False
    sizes_at: int | None = None


@dataclass(frozen=True, slots=True)
class Blocks(Operator):
    """Space to depth or back in blocks of `side`, `[N, C, H, W]`: places before the depth, unless `depth_first`."""

    side: int
    to_depth: bool
    depth_first: bool = False


@dataclass(frozen=True, slots=True)
class Folded(Operator):
    """Blocks of `sides`, the channels `[N, C * sides, cells]`, laid beside one another: `[N, C, H, W]` (Col2Im)."""

    sides: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Sampled(Operator):
    """A map `[N, C, h, w]` read at computed points `[N, m, n, 2]` in -1 to 1: `[N, C, m, n]`.

    Attributes:
        mode: nearest, linear or cubic.
        padding: what is read outside: zeros, border or reflection.
        corners: whether -1 and 1 are the middles of the outermost cells, not their edges.
    """

    mode: str = "linear"
    padding: str = "zeros"
    corners: bool = False


@dataclass(frozen=True, slots=True)
class Ranked(Unknown):
    """The largest or smallest elements along an axis, and where they were: which these are is not known."""

    axis: int


@dataclass(frozen=True, slots=True)
class TakenApart(Unknown):
    """Elements at places that indices name, of several axes at once (GatherND): where a cell goes is not known."""


@dataclass(frozen=True, slots=True)
class Rolled(Operator):
    """Elements shifted along axes, those that leave coming in at the other end; None where it is not known."""

    axes: tuple[int, ...] | None
    shifts: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Scattered(Operator):
    """Rows of the third operand written over rows of the first, at stored or computed indices of the first axis.

    Attributes:
        axis: along which each index is; None where an index names a place of the first axes.
        is_plain: whether what was there before is lost.
    """

    axis: int | None = None
    is_plain: bool = True


@dataclass(frozen=True, slots=True)
class ScatteredApart(Unknown):
    """Likewise, but of other places: where a cell goes is not known. Attributes are those of `Scattered`."""

    axis: int | None = None
    is_plain: bool = True


@dataclass(frozen=True, slots=True)
class ControlFlow(Operator):
    """A node with graphs of its own (If, Loop, Scan): what it gives in the shape of what it reads is said to lie there.

    Attributes:
        moves: whether they may arrange or cut what they work on.
        moves_first: whether they may do so along its first axis alone, as with the images of a batch.
        resizes: whether they interpolate, to other sizes as well.
    """

    moves: bool = False
    moves_first: bool = False
    resizes: bool = False


LIGHT = (Pointwise, InPlace, Reduction, Regroup, Permutation)
"""What runtimes merge with the layer before it."""
AFFINE = ("add", "sub", "mul", "div")
"""Functions that scale or shift what they read, where the other operand is stored."""

Rule = TypeVar("Rule")


def folded(sides: tuple[int, ...] | None, strides: tuple[int, ...]) -> Operator:
    """What lays blocks of these sides at these steps: `Folded` where they neither overlap nor leave gaps."""
    return Folded((sides[0], sides[1])) if sides is not None and len(sides) == 2 and sides == strides else Unknown()


def rule_for(rules: Mapping[type[Operator], Rule], kind: Operator) -> Rule | None:
    """The rule of a record's own type, or of the nearest family above it."""
    return next((rules[family] for family in type(kind).__mro__ if family in rules), None)
