"""What an operator does to the axes of its operands: one typed record per family, the same for every format.

A format's reader gives each node its record, by domain and type. Of one without, `Unknown`, nothing may be assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from xai_insert.graph.in_place import BatchNorm as BatchNorm  # noqa: PLC0414
from xai_insert.graph.in_place import InPlace as InPlace  # noqa: PLC0414
from xai_insert.graph.in_place import LocalNorm as LocalNorm  # noqa: PLC0414
from xai_insert.graph.in_place import Norm as Norm  # noqa: PLC0414
from xai_insert.graph.in_place import Operator as Operator  # noqa: PLC0414
from xai_insert.graph.in_place import Pointwise as Pointwise  # noqa: PLC0414
from xai_insert.graph.in_place import Rounded as Rounded  # noqa: PLC0414
from xai_insert.graph.in_place import Shuffled as Shuffled  # noqa: PLC0414
from xai_insert.graph.in_place import Softmax as Softmax  # noqa: PLC0414
from xai_insert.graph.in_place import UnitNorm as UnitNorm  # noqa: PLC0414
from xai_insert.graph.in_place import Unknown as Unknown  # noqa: PLC0414


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
        pads_end: like `pads_begin`, behind the last; empty where the sizes tell.
        rounds_up: whether a last window may reach beyond the cells.
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
    pads_end: tuple[int, ...] = ()
    rounds_up: bool = False

    @property
    def may_pad(self) -> bool:
        """Whether cells are added, or the sizes tell how many."""
        if self.pads_begin is None:
            return self.kernel is None or set(self.kernel) != {1}
        return any((*self.pads_begin, *self.pads_end))


@dataclass(frozen=True, slots=True)
class Reduction(Operator):
    """A reduction over axes, None where they are not known.

    `mode` is `mean`, `max`, `min`, `sum`, `prod`, `l1`, ...; empty for the place of the greatest or least.
    """

    axes: tuple[int, ...] | None
    mode: str = ""


@dataclass(frozen=True, slots=True)
class Product(Operator):
    """Matrix product of the last two axes, each operand transposed before it or not.

    With `factor`, and a third operand times `bias_factor` added.
    """

    transpose_a: bool = False
    transpose_b: bool = False
    factor: float = 1.0
    bias_factor: float = 1.0

    @property
    def is_scaled(self) -> bool:
        return (self.factor, self.bias_factor) != (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Contracted(Unknown):
    """An Einsum of two operands that is no matrix product between transposes.

    Attributes:
        labels: one letter for each axis of both operands and of the result, of each no letter twice; None if unknown.
    """

    labels: tuple[str, str, str] | None = None


@dataclass(frozen=True, slots=True)
class FusedAttention(Operator):
    """`softmax(query @ key * scale + mask) @ value` over `[..., T, d]`.

    Attributes:
        scale: None for `1 / sqrt(d)`.
        is_causal: whether no token sees those behind it.
        is_plain: whether there are no further inputs or modes.
    """

    scale: float | None = None
    is_causal: bool = False
    is_plain: bool = True

    def factor(self, width: int) -> float:
        """What products of vectors of this width are multiplied by."""
        return self.scale or 1 / math.sqrt(width)


@dataclass(frozen=True, slots=True)
class Regroup(Operator):
    """The same elements in the same order, in another shape; `new_axes`, of size 1, where that is all, if known."""

    new_axes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Permutation(Operator):
    """Another order of the axes; None where it is not known."""

    perm: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Cut:
    """What is kept of one axis: `start`, `start + step`, ... as many as the result has.

    In steps of one it stops before `end`; None for the end of the axis.
    """

    axis: int
    start: int
    step: int = 1
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Slices(Operator):
    """Parts of axes; None where they are not known. `dropped` are axes of which one element is kept, without the axis.

    With `cuts` of negative step an axis is reversed. `single` is the one that leaves something out, in steps of one.
    """

    cuts: tuple[Cut, ...] | None
    dropped: tuple[int, ...] = ()
    single: Cut | None = None


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
    is_least: bool = False


@dataclass(frozen=True, slots=True)
class OfRegions(Unknown):
    """Maps read inside of regions, the second operand.

    Attributes:
        features: the operands that are maps.
        scale: cells of a map for one unit of the regions' coordinates; None if it differs between maps.
    """

    features: tuple[int, ...] = (0,)
    scale: float | None = None


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

Family = TypeVar("Family", bound=Operator)
Rule = TypeVar("Rule")


def folded(sides: tuple[int, ...] | None, strides: tuple[int, ...]) -> Operator:
    """What lays blocks of these sides at these steps: `Folded` where they neither overlap nor leave gaps."""
    return Folded((sides[0], sides[1])) if sides is not None and len(sides) == 2 and sides == strides else Unknown()


def rule_for(rules: Mapping[type[Operator], Rule], kind: Operator) -> Rule | None:
    """The rule of a record's own type, or of the nearest family above it."""
    return next((rules[family] for family in type(kind).__mro__ if family in rules), None)
