"""Derivatives of what moves elements: each is the same movement backwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.graph import operators as kinds
from xai_insert.graph.items import present
from xai_insert.graph.operators import Operator
from xai_insert.graph.view import Node, constant_of, fixed, volume
from xai_insert.methods.gradients.step import Gradients, Rule, Step, repeated
from xai_insert.methods.shaping import total

_MOST_PAIRS = 1 << 24  # of elements taken and places they may come from, and of numbers that name places


def _regrouped(step: Step[Any]) -> Gradients:
    return {0: step.shaped(step.gradient, step.node.read(0))}


def _permuted(step: Step[Any]) -> Gradients:
    kind = step.kind(kinds.Permutation)
    if kind.perm is None:
        raise step.refusal("its order is not known")
    back = np.argsort(kind.perm).tolist()
    return {0: step.op.transpose(step.gradient, [*range(step.lead), *step.axes(back)])}


def picked_back(step: Step[Any], gradient: Any, axis: int, indices: Sequence[int], size: int) -> Any:
    """Sums of a derivative along an axis at the indices from which its elements came.

    Args:
        step: the node.
        gradient: of the rank of the first operand.
        axis: that of the operand.
        indices: of the operand, one for each element of the derivative.
        size: that of the operand.
    """
    op, axis = step.op, axis + step.lead
    places = np.asarray(indices)
    if len(places) and (np.diff(places) == 1).all():
        return _padded(step, gradient, axis, int(places[0]), size - 1 - int(places[-1]))
    rounds = _rounds(places.tolist(), size)
    is_full = all(len(places) not in inverse for inverse in rounds)
    source = gradient if is_full else _padded(step, gradient, axis, 0, 1)
    parts = [op.pick(source, inverse, axis) for inverse in rounds]
    return total(op, parts)


def _rounds(places: Sequence[int], size: int) -> list[list[int]]:
    """For each of `size` places the elements that came from it, one in each round; the number of all if there is none.

    The element of that number, behind the last, is zero.
    """
    rounds: list[list[int]] = []
    for element, place in enumerate(places):
        inverse = next((taken for taken in rounds if taken[place] == len(places)), None)
        if inverse is None:
            inverse = [len(places)] * size
            rounds.append(inverse)
        inverse[place] = element
    return rounds


def _padded(step: Step[Any], gradient: Any, axis: int, before: int, behind: int) -> Any:
    if before == behind == 0:
        return gradient
    rank = len(step.node.read(0).sizes) + step.lead
    return step.op.pad(gradient, *([count if i == axis else 0 for i in range(rank)] for count in (before, behind)))


def taken_back(step: Step[Any], gradient: Any, axis: int, where: Any, size: int, *, apart: bool = False) -> Any:
    """Sums of a derivative along an axis at computed indices from which its elements came.

    Args:
        step: the node.
        gradient: of the rank of the first operand.
        axis: that of the operand.
        where: indices: one for each element along the axis, or with `apart` of the sizes of the derivative.
        size: that of the operand.
        apart: whether each element has an index of its own.
    """
    op, rank = step.op, len(step.node.read(0).sizes)
    last = [other for other in range(rank) if other != axis] + [axis]
    where = op.cast(op.transpose(where, last) if apart else where, "float32")
    where = op.add(where, op.mul(op.greater(step.number(0.0), where), step.number(float(size))))
    own = op.equal(op.unsqueeze(where, [rank if apart else 1]), step.constant(np.arange(size)))
    moved = op.transpose(gradient, [*range(step.lead), *step.axes(last)])
    if not apart:
        made = op.matmul(moved, own)
        return op.transpose(made, [*range(step.lead), *step.axes([last.index(other) for other in range(rank)])])
    made = op.matmul(op.unsqueeze(moved, [step.lead + rank - 1]), own)  # an axis of one before that of the places
    order = [rank if other == axis else last.index(other) for other in range(rank)]
    made = op.transpose(made, [*range(step.lead), *step.axes([*order, rank - 1])])
    return step.shaped(made, step.node.read(0))


def _sliced(step: Step[Any]) -> Gradients:
    kind, source, result = step.kind(kinds.Slices), step.node.read(0), step.node.output
    if kind.cuts is None:
        raise step.refusal("what it keeps is computed")
    kept = [axis for axis in range(len(source.sizes)) if axis not in kind.dropped]
    gradient = step.gradient
    if kind.dropped:
        gradient = step.op.unsqueeze(gradient, step.axes(kind.dropped))
    for cut in kind.cuts:
        count = 1 if cut.axis in kind.dropped else result.sizes[kept.index(cut.axis)]
        size = source.sizes[cut.axis]
        if size == count and cut.step == 1:
            continue
        count, size = fixed([count, size])
        if count == 0:
            return {}
        places = [cut.start + cut.step * number for number in range(count)]
        gradient = picked_back(step, gradient, cut.axis, places, size)
    return {0: gradient}


def _split(step: Step[Any]) -> Gradients:
    kind, source = step.kind(kinds.Parts), step.node.read(0)
    if kind.axis is None:
        raise step.refusal("its axis is not known")
    axis = kind.axis
    counts = fixed([value.sizes[axis] for value in step.node.outputs])
    if all(part is not None for part in step.given):
        return {0: step.op.concat(present(step.given), axis + step.lead)}
    total, begin = None, 0
    size = fixed([source.sizes[axis]])[0]
    for part, count in zip(step.given, counts, strict=True):
        if part is not None:
            whole = _padded(step, part, axis + step.lead, begin, size - begin - count)
            total = whole if total is None else step.op.add(total, whole)
        begin += count
    return {0: total}


def _joined(step: Step[Any]) -> Gradients:
    kind = step.kind(kinds.Joined)
    made, begin = {}, 0
    counts = fixed([None if value is None else value.sizes[kind.axis] for value in step.node.inputs])
    for index, count in enumerate(counts):
        if index in step.wanted:
            made[index] = step.op.slice(step.gradient, kind.axis + step.lead, begin, begin + count)
        begin += count
    return made


def _picked(step: Step[Any]) -> Gradients:
    kind, source = step.kind(kinds.Picked), step.node.read(0)
    if step.wanted != {0}:
        raise step.refusal("what it takes it from is not known")
    count = volume(step.node.read(1).sizes)
    if kind.indices is None and None in (count, source.sizes[kind.axis]):
        raise step.refusal("what it takes is computed, and how much")
    size = fixed([source.sizes[kind.axis]])[0]
    gradient = step.gradient
    if kind.rank != 1:  # one axis in place of those of the indices
        shape = (*source.sizes[: kind.axis], count, *source.sizes[kind.axis + 1 :])
        gradient = step.op.reshape(gradient, [*step.sizes(source)[: step.lead], *_open(step, shape)])
    if kind.indices is None:
        where = step.op.reshape(step.forward.read(step.node.read(1)), [-1])
        return {0: taken_back(step, gradient, kind.axis, where, size)}
    return {0: picked_back(step, gradient, kind.axis, [index % size for index in kind.indices], size)}


def _taken(step: Step[Any]) -> Gradients:
    kind, source, places = step.kind(kinds.Taken), step.node.read(0), step.node.read(1)
    size = fixed([source.sizes[kind.axis]])[0]
    others = [axis for axis in range(len(source.sizes)) if axis != kind.axis]
    if len(places.sizes) != len(source.sizes):
        raise step.refusal("it takes whole rows, others in each image")
    if any(source.sizes[axis] != places.sizes[axis] for axis in others):
        raise step.refusal("it leaves out a part of further axes")
    if (volume([size if item is None else item for item in places.sizes]) or 1) * size > _MOST_PAIRS:
        raise step.refusal("it takes too many elements, each at a place of its own")
    where = step.surgeon.handle(places) if places.is_constant else step.forward.read(places)
    return {0: taken_back(step, step.gradient, kind.axis, where, size, apart=True)}


def _taken_apart(step: Step[Any]) -> Gradients:
    source = step.node.read(0)
    names = constant_of(step.node.read(1), _MOST_PAIRS)
    if names is None:
        raise step.refusal("what it takes is computed")
    deep = names.shape[-1]
    whole = fixed(source.sizes[:deep])
    flat = np.ravel_multi_index(tuple((names.reshape(-1, deep) % np.array(whole)).T), whole)
    lead = step.ahead
    gradient = step.op.reshape(step.gradient, [*lead, len(flat), -1, *[1] * (len(source.sizes) - 2)])
    return {0: step.shaped(picked_back(step, gradient, 0, flat.tolist(), volume(whole) or 1), source)}


def _open(step: Step[Any], shape: Sequence[int | None]) -> list[int]:
    if list(shape).count(None) > 1:
        raise step.refusal("several sizes follow the input")
    return [-1 if size is None else size for size in shape]


def _widened(step: Step[Any]) -> Gradients:
    """Expand and Tile: the sum over the copies."""
    source, result = step.node.read(0), step.node.output.sizes
    own = (1,) * (len(result) - len(source.sizes)) + source.sizes
    gradient = step.gradient
    once = repeated(own, result)
    if once:
        gradient = step.op.reduce(gradient, "sum", step.axes(once))
    reached = [1 if axis in once else size for axis, size in enumerate(result)]
    copied = [axis for axis, size in enumerate(own) if size != reached[axis] and size is not None]
    for axis in reversed(copied):
        times = fixed([reached[axis]])[0] // fixed([own[axis]])[0]
        sizes = [*reached[:axis], times, own[axis], *reached[axis + 1 :]]
        lead = step.ahead
        gradient = step.op.reduce(step.op.reshape(gradient, [*lead, *_open(step, sizes)]), "sum", [axis + step.lead])
        reached[axis] = own[axis]
        gradient = step.op.reshape(gradient, [*lead, *_open(step, reached)])
    return {0: step.shaped(gradient, source) if len(own) != len(source.sizes) else gradient}


def _pad(step: Step[Any]) -> Gradients:
    kind, source, result = step.kind(kinds.Padded), step.node.read(0), step.node.output
    if kind.before is None:
        raise step.refusal("its pads are computed")
    gradient = step.gradient
    for axis, before in enumerate(kind.before):
        size, whole = source.sizes[axis], result.sizes[axis]
        if before == 0 and size == whole:
            continue
        size, whole = fixed([size, whole])
        cells = np.arange(whole) - before
        if kind.mode == "constant":
            begin, end = max(before, 0), min(before + size, whole)
            gradient = step.op.slice(gradient, axis + step.lead, begin, end)
            gradient = _padded(step, gradient, axis + step.lead, max(-before, 0), max(before + size - whole, 0))
        elif kind.mode in _REPEATS:
            gradient = picked_back(step, gradient, axis, _REPEATS[kind.mode](cells, size).tolist(), size)
        else:
            raise step.refusal(f"no rule covers the mode {kind.mode}")
    return {0: gradient}


_REPEATS: Mapping[str, Any] = {
    "edge": lambda cells, size: np.clip(cells, 0, size - 1),
    "reflect": lambda cells, size: size - 1 - np.abs(size - 1 - np.abs(cells)),
    "symmetric": lambda cells, size: np.where(
        cells < 0, -1 - cells, np.where(cells < size, cells, 2 * size - 1 - cells)
    ),
    "wrap": lambda cells, size: cells % size,
}


def _blocks(step: Step[Any]) -> Gradients:
    kind, source, result = step.kind(kinds.Blocks), step.node.read(0).sizes, step.node.output.sizes
    side, op, lead = kind.side, step.op, step.ahead
    wide = source if kind.to_depth else result
    channels, height, width = fixed([wide[1], wide[2], wide[3]])
    rows, columns = height // side, width // side
    if kind.to_depth:
        order = [0, 1, 4, 2, 5, 3] if kind.depth_first else [0, 3, 4, 1, 5, 2]
        sizes = [channels, side, side] if kind.depth_first else [side, side, channels]
        gradient = op.reshape(step.gradient, [*lead, *step_batch(step), *sizes, rows, columns])
    else:
        order = [0, 1, 3, 5, 2, 4] if kind.depth_first else [0, 3, 5, 1, 2, 4]
        gradient = op.reshape(step.gradient, [*lead, *step_batch(step), channels, rows, side, columns, side])
    gradient = op.transpose(gradient, [*range(step.lead), *step.axes(order)])
    return {0: step.shaped(gradient, step.node.read(0))}


def _folded(step: Step[Any]) -> Gradients:
    """Blocks side by side: each cell goes back to its place in its block."""
    high, wide = step.kind(kinds.Folded).sides
    source, result = step.node.read(0), step.node.output
    channels, height, width = fixed(result.sizes[1:])
    sizes = [*step.ahead, *step_batch(step), channels, height // high, high, width // wide, wide]
    gradient = step.op.reshape(step.gradient, sizes)
    return {0: step.shaped(step.op.transpose(gradient, [*range(step.lead), *step.axes([0, 1, 3, 5, 2, 4])]), source)}


def step_batch(step: Step[Any]) -> list[int]:
    """The batch, open or known."""
    batch = step.node.read(0).sizes[0]
    return [-1 if batch is None else batch]


def _rolled(step: Step[Any]) -> Gradients:
    kind, sizes = step.kind(kinds.Rolled), step.node.output.sizes
    if kind.axes is None or kind.shifts is None:
        raise step.refusal("its shifts are computed")
    gradient = step.gradient
    for axis, shift in zip(kind.axes, kind.shifts, strict=True):
        size = fixed([sizes[axis]])[0]
        gradient = step.op.pick(gradient, ((np.arange(size) + shift) % size).tolist(), axis + step.lead)
    return {0: gradient}


def _shuffled(step: Step[Any]) -> Gradients:
    kind, sizes = step.kind(kinds.Shuffled), step.node.output.sizes
    (size,) = fixed([sizes[kind.axis]])
    back = np.arange(size).reshape(-1, kind.groups).T.reshape(-1)
    return {0: step.op.pick(step.gradient, back.tolist(), kind.axis + step.lead)}


def _scattered(step: Step[Any]) -> Gradients:
    """What is written over gets nothing, what is written the derivative where it was written last."""
    kind, op, node = step.node.kind, step.op, step.node
    source, updates = node.read(0), node.read(2)
    places = constant_of(node.read(1), _MOST_PAIRS)
    if not isinstance(kind, (kinds.Scattered, kinds.ScatteredApart)) or places is None or not kind.is_plain:
        raise step.refusal("where it writes is computed, or what was there is kept")
    names = _written_at(node, kind.axis, places)
    deep = names.shape[-1]
    whole, rest = fixed(source.sizes[:deep]), fixed(source.sizes[deep:])
    names = names.reshape(-1, deep) % np.array(whole)
    flat = np.ravel_multi_index(tuple(names.T), whole)
    count, width = volume(whole) or 1, volume(rest) or 1
    if np.array_equal(flat, np.arange(count)):  # all of it, in order: nothing of what was there is left
        return {2: step.shaped(step.gradient, updates)} if 2 in step.wanted else {}
    gradient = op.reshape(step.gradient, [*step.ahead, count, width])
    kept = np.ones((count, 1), np.float32)
    kept[flat] = 0
    made: dict[int, Any] = {}
    if 0 in step.wanted:
        made[0] = step.shaped(op.mul(gradient, step.constant(kept)), source)
    if 2 in step.wanted:
        if len(set(flat.tolist())) < len(flat):
            raise step.refusal("it writes twice to one place")
        made[2] = step.shaped(op.pick(gradient, flat.tolist(), step.lead), updates)
    return made


def _written_at(node: Node, axis: int | None, places: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The place in the first operand of each element that is written, or of each row, along the last axis."""
    if axis is None:
        return places.reshape(-1, 1) if node.type == "ScatterUpdate" else places
    own = np.indices(places.shape)
    own[axis] = places
    return np.moveaxis(own, 0, -1)


RULES: Mapping[type[Operator], Rule] = {
    kinds.Regroup: _regrouped,
    kinds.Permutation: _permuted,
    kinds.Slices: _sliced,
    kinds.Parts: _split,
    kinds.Joined: _joined,
    kinds.Picked: _picked,
    kinds.Taken: _taken,
    kinds.TakenApart: _taken_apart,
    kinds.Widened: _widened,
    kinds.Padded: _pad,
    kinds.Blocks: _blocks,
    kinds.Folded: _folded,
    kinds.Rolled: _rolled,
    kinds.Shuffled: _shuffled,
    kinds.Scattered: _scattered,
    kinds.ScatteredApart: _scattered,
}
