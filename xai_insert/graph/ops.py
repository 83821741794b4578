"""The small closed set of operations in which saliency methods are written, and the surgeon that splices them in.

A method is written once, as a function from values to values over `Ops`; each format supplies `Ops` and `Surgeon`.
`V` is the format's own handle of a value in the model being edited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy.typing as npt

from xai_insert.graph.view import Node, Shape, Value

V = TypeVar("V")
Size = Any
"""A size for `Ops.reshape`: an int, -1 for the one that is inferred, or a `V` that `Ops.size` gave."""
Reduction = Literal["mean", "max", "min", "sum"]
Function = Literal["exp", "log", "erf", "tanh", "sin", "cos"]


@dataclass(frozen=True)
class Windows:
    """How a convolution lies on its grid.

    Attributes:
        strides: steps, one for each side.
        dilations: likewise.
        pads_begin: cells of zeros before the first.
        pads_end: cells of zeros behind the last.
        groups: of channels.
    """

    strides: Sequence[int]
    dilations: Sequence[int]
    pads_begin: Sequence[int]
    pads_end: Sequence[int]
    groups: int = 1


class Ops(Protocol[V]):
    """Operations on values. Elementwise ones broadcast as NumPy does."""

    def constant(self, elements: npt.NDArray[Any]) -> V:
        """A constant of `elements`' shape and dtype."""

    def add(self, a: V, b: V) -> V:
        """`a + b`."""

    def sub(self, a: V, b: V) -> V:
        """`a - b`."""

    def mul(self, a: V, b: V) -> V:
        """`a * b`."""

    def div(self, a: V, b: V) -> V:
        """`a / b`."""

    def maximum(self, a: V, b: V) -> V:
        """The larger of both."""

    def sqrt(self, a: V) -> V:
        """Square root."""

    def floor(self, a: V) -> V:
        """Round down."""

    def nonzero_or(self, a: V, other: V) -> V:
        """`a` where it is above zero, else `other`."""

    def matmul(self, a: V, b: V) -> V:
        """Matrix product over the last two axes."""

    def matmul_transposed(self, a: V, b: V, rank: int = 2) -> V:
        """Matrix product with `b`, of rank `rank`, whose last two axes are exchanged: `[out, in]`."""

    def conv1x1(self, a: V, weight: V) -> V:
        """`[B, C, h, w]` and `[K, C, 1, 1]` to `[B, K, h, w]`."""

    def mixed_channels(self, a: V, b: V, sizes: Sequence[Size]) -> V:
        """`a`, `[B, M, C]`, times the channels of `b`, `[B, C, h, w]`: `[B, M, h*w]`; `sizes` are B and C."""

    def reduce(self, a: V, mode: Reduction, axes: Sequence[int]) -> V:
        """Reduce over `axes`, which stay with size 1."""

    def reshape(self, a: V, sizes: Sequence[Size]) -> V:
        """The same elements in another shape."""

    def unsqueeze(self, a: V, axes: Sequence[int]) -> V:
        """The same elements with axes of size 1 added, so that they stand at `axes` of the result."""

    def transpose(self, a: V, perm: Sequence[int]) -> V:
        """Permute the axes."""

    def slice(self, a: V, axis: int, start: Size, end: Size) -> V:
        """`a[..., start:end, ...]` along `axis`."""

    def concat(self, parts: Sequence[V], axis: int) -> V:
        """Join along `axis`."""

    def expand(self, a: V, sizes: Sequence[int]) -> V:
        """Broadcast against `sizes`, in both directions."""

    def softmax(self, a: V, axis: int = -1) -> V:
        """Softmax over one axis."""

    def resize(self, a: V, height: Size, width: Size) -> V:
        """`[B, C, h, w]` to another grid: bilinear, pixel centres at halves, no smoothing before shrinking."""

    def largest(self, a: V, count: int) -> V:
        """Indices of the `count` largest elements of `[B, K]`, the largest first: int64 `[B, count]`."""

    def gather(self, a: V, indices: V) -> V:
        """The parts of `a` along its first axis that `indices` name, in their place."""

    def equal(self, a: V, b: V) -> V:
        """1 where both are equal, else 0, in float32."""

    def greater(self, a: V, b: V) -> V:
        """1 where `a` is greater than `b`, else 0, in float32."""

    def sigmoid(self, a: V) -> V:
        """`1 / (1 + exp(-a))`."""

    def top(self, a: V, count: V) -> tuple[V, V]:
        """The `count` (int64 `[1]`) largest along the last axis and their int64 indices, largest first."""

    def take(self, a: V, indices: V, axis: int) -> V:
        """`a` at `indices` along `axis`; on the other axes `indices` has `a`'s sizes."""

    def suppress(self, boxes: V, scores: V, most: int, overlap: float, threshold: float) -> V:
        """Greedy suppression of boxes that overlap a better one of the same class.

        Args:
            boxes: corners, float32 `[B, A, 4]`.
            scores: float32 `[B, K, A]`.
            most: boxes kept for a class, at most.
            overlap: intersection over union above which the lower of two boxes is dropped.
            threshold: a box is kept if its score is greater.

        Returns:
            int64 `[S, 3]`: image, class and box of each that is kept, in no particular order.
        """

    def mark(self, a: V, places: V) -> V:
        """Float32 `a` with 1 at `places`, int64 `[S, rank of a]`."""

    def cumulative(self, a: V, axis: int) -> V:
        """Sums of the elements up to each along `axis`."""

    def isolated(self, a: V, channels: int, *, is_map: bool = False, is_given: bool = True) -> V:
        """`[B, channels]`, or the map `[B, channels, h, w]`, unchanged, as a value that no runtime takes for `a`.

        A new output of it leaves the precision of what is before alone, and the names of its outputs. `is_given` says
        that it may become an output as it is; one that is computed with may be `a` itself where nothing changes by it.
        """

    def in_planes(self, a: V, work: Callable[[V], V]) -> V:
        """What `work` makes of the maps `[B, K, h, w]`, done map by map where the runtime has their channels together.

        Args:
            a: the maps.
            work: keeps each element in its place, and looks at whole maps alone; its argument may have other sizes on
                the last two axes.
        """

    def numbers(self, count: V) -> V:
        """0, 1, 2, ... up to but without `count` (int64 `[1]`): int64."""

    def function(self, name: Function, a: V) -> V:
        """A function of each element."""

    def power(self, a: V, b: V) -> V:
        """`a ** b`."""

    def convolve(self, a: V, weight: V, windows: Windows) -> V:
        """`[B, I, ...]` and `[O, I / groups, ...]` to `[B, O, ...]`; or with the format's own layout of the weight."""

    def spread(self, a: V, weight: V, windows: Windows, added: Sequence[int]) -> V:
        """The transpose of `convolve`: `[B, O, ...]` to `[B, I, ...]`, of the same weight.

        Args:
            a: what the convolution gave.
            weight: as for `convolve`.
            windows: likewise; its pads are cut off the result.
            added: cells of zeros behind the last of the result, fewer than strides.
        """

    def interleave(self, maps: Sequence[V | None], side: int) -> V | None:
        """`side * side` maps `[B, C, h, w]` woven into one `[B, C, side * h, side * w]`.

        The map of number `i * side + j` has the cells whose row is `i` and whose column is `j` modulo `side`; zeros
        where it is None, which the first is not. None where runtimes have no quick operation for that.
        """

    def pad(self, a: V, before: Sequence[int], behind: Sequence[int]) -> V:
        """Zeros around the elements, for each axis."""

    def pick(self, a: V, indices: Sequence[int], axis: int) -> V:
        """The elements at known indices along an axis."""

    def cast(self, a: V, dtype: str) -> V:
        """Convert to the NumPy dtype named."""

    def size(self, a: V, axis: int) -> V:
        """The size of one axis while the model runs, int64 `[1]`."""

    def number(self, size: V) -> V:
        """A size (int64 `[1]`) as float32 `[1]`."""


class Surgeon(Protocol[V]):
    """Edits one model: copies nodes, adds outputs, keeps names unique. Nothing that was there changes."""

    @property
    def ops(self) -> Ops[V]:
        """Writes new nodes, under one prefix."""

    def handle(self, value: Value) -> V:
        """The value of the view in the model being edited; floats as float32, whatever the model computes in."""

    def copy(self, node: Node, inputs: Sequence[V | None]) -> Sequence[V]:
        """A twin of `node` that reads `inputs`; weights are shared, not stored again.

        It computes in float32 and does not round: what quantises an activation gives it back, within the range of an
        activation function that was folded into it.
        """

    def stored(self, node: Node, index: int) -> V:
        """A constant operand, float32, read so that a runtime still merges the node with what it is stored for."""

    def rounds(self, node: Node) -> bool:
        """Whether `node` quantises, or computes with integers, what its copy does not."""

    def repeat(self, runs: int | V, body: Callable[[V], V], width: int) -> V:
        """Run what `body` writes several times, one after another.

        Args:
            runs: how often; if that is told while the model runs, int64 `[1]`.
            body: writes one run by `ops`, `handle` and `copy`, which are those of the loop meanwhile. Its argument is
                the number of the run, an int64 scalar, its result float32 `[N, width]`.
            width: see `body`.

        Returns:
            float32 `[runs, N, width]`.
        """

    def within(self, value: V) -> V:
        """What was written before a loop, as its body reads it; elsewhere itself."""

    def pinned(self, value: V, shape: Shape, image: Value, axes: Sequence[int]) -> V:
        """`value`, of `shape`, in a way that the model cannot be reshaped to other sizes of `image`.

        Args:
            value: what fits these sizes of the image alone.
            shape: its sizes, the batch first.
            image: an input of the model.
            axes: those of its frames, its height and its width.
        """

    def add_input(self, name: str, dtype: str, shape: Shape) -> V:
        """Append a graph input that must be fed under the name `name`."""

    def prune(self) -> None:
        """Remove what was added and is read by nothing."""

    def add_output(self, value: V, name: str, dtype: str, shape: Shape) -> None:
        """Append a graph output that a runtime finds under the single name `name`."""
