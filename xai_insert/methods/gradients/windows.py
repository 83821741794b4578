"""Derivatives of convolutions and pools, as transposed convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.graph.operators import Operator, Window
from xai_insert.graph.ops import Size, Windows
from xai_insert.graph.sliding import first_pad
from xai_insert.graph.view import fixed, volume
from xai_insert.methods.gradients.step import Gradients, Rule, Step
from xai_insert.methods.shaping import product_of

_LARGE = 64  # cells of a window that may leave the map, where sizes are not known
_MOST_PHASES = 8  # of a convolution that is turned round as convolutions, which runtimes do faster


def _window(step: Step[Any]) -> Gradients:
    kind = step.kind(Window)
    if kind.kernel is None:
        raise step.refusal("its kernel is not known")
    if kind.pool is None:
        return _convolution(step, kind)
    if kind.pool in ("mean", "max") and not any(item is not None for item in step.given[1:]):
        return _mean_pool(step, kind, kind.kernel) if kind.pool == "mean" else _max_pool(step, kind, kind.kernel)
    raise step.refusal("no rule covers this kind of pool")


def _back(step: Step[Any], kind: Window, kernel: Sequence[int]) -> tuple[Windows, list[int]]:
    """How the transpose lies, and the cells that it adds behind the last."""
    if _is_open(step):
        return _open_back(step, kind)
    source, result = (fixed(value.sizes[2:]) for value in (step.node.read(0), step.node.output))
    begin, end, added = [], [], []
    for axis, (size, count) in enumerate(zip(source, result, strict=True)):
        reach = (kernel[axis] - 1) * kind.dilations[axis] + 1
        whole = (count - 1) * kind.strides[axis] + reach
        before = first_pad(kind, max(whole - size, 0)) if kind.pads_begin is None else kind.pads_begin[axis]
        over = whole - before - size
        begin.append(before)
        end.append(max(over, 0))
        added.append(max(-over, 0))
    return Windows(kind.strides, kind.dilations, begin, end, kind.groups), added


def _is_open(step: Step[Any]) -> bool:
    """Whether sides follow the image."""
    return any(None in value.sizes[2:] for value in (step.node.read(0), step.node.output))


def _open_back(step: Step[Any], kind: Window) -> tuple[Windows, list[int]]:
    """How the transpose lies for any sizes: what it gives has a few cells more than the source, see `_cropped`."""
    forth = _open_forth(step, kind)
    end = [0 if stride > 1 else pad for stride, pad in zip(kind.strides, forth.pads_end, strict=True)]
    windows = Windows(kind.strides, kind.dilations, forth.pads_begin, end, kind.groups)
    return windows, [stride - 1 for stride in kind.strides]


def _open_forth(step: Step[Any], kind: Window) -> Windows:
    """How a convolution or pool lies by what is stored of it alone."""
    begin = kind.pads_begin
    if begin is None or kind.transposed or kind.rounds_up:
        raise step.refusal("its pads follow from its sizes")
    return Windows(kind.strides, kind.dilations, begin, kind.pads_end, kind.groups)


def _cropped(step: Step[Any], gradient: Any, strides: Sequence[int]) -> Any:
    """What `_open_back` has made, with as many cells as the source has."""
    for axis, (size, stride) in enumerate(zip(step.known(step.node.read(0))[2:], strides, strict=True), 2):
        if stride > 1 and _is_open(step):
            gradient = step.op.slice(gradient, axis, 0, size)
    return gradient


def _convolution(step: Step[Any], kind: Window) -> Gradients:
    if step.wanted != {0}:
        raise step.refusal("its weights are computed")
    source, result = step.node.read(0), step.node.output
    ends = [value.sizes[1] for value in (source, result)]
    gradient = step.flat(step.gradient, result)
    if not kind.transposed:
        windows, added = _back(step, kind, kind.kernel or ())
        more = _more(step, kind)
        phases = _phases(kind, windows, more)
        if phases is not None:
            return {0: step.unflat(_woven(step, kind, gradient, phases, more), source)}
    weight, gradient = step.turned(1, gradient, is_square=ends[0] == ends[1])
    if kind.transposed:
        return {0: step.unflat(_forth(step, kind, gradient, weight), source)}
    return {0: step.unflat(_cropped(step, step.op.spread(gradient, weight, windows, added), kind.strides), source)}


def _more(step: Step[Any], kind: Window) -> list[int]:
    """By axis, how many cells a phase has at most more than there are results."""
    source, result = step.node.read(0).sizes[2:], step.node.output.sizes[2:]
    if not _is_open(step):
        sides = zip(fixed(source), fixed(result), kind.strides, strict=True)
        return [-(-size // stride) - count for size, count, stride in sides]
    forth, more = _open_forth(step, kind), []
    for axis, (stride, size) in enumerate(zip(kind.strides, kind.kernel or (), strict=True)):
        over = (size - 1) * kind.dilations[axis] - forth.pads_begin[axis] - forth.pads_end[axis]
        more.append(-(-over // stride))
    return more


@dataclass(frozen=True)
class _Phase:
    """Along one axis, the sources `first`, `first + stride`, ... of a convolution; without strides all of them.

    The derivative by them is a convolution without strides.

    Attributes:
        taps: those of the kernel that reach them, back to front.
        begin: cells of padding before the derivative by the results.
        end: cells behind it.
    """

    taps: Sequence[int]
    begin: int
    end: int


def _phases(kind: Window, windows: Windows, more: Sequence[int]) -> list[list[_Phase]] | None:
    """By axis, the phases that the kernel reaches; None if they are too many, or not the first ones."""
    is_apart = any(stride > 1 < dilation for stride, dilation in zip(kind.strides, kind.dilations, strict=True))
    if is_apart or (volume(kind.strides) or 1) > _MOST_PHASES:
        return None
    axes = []
    for axis, (stride, pad) in enumerate(zip(kind.strides, windows.pads_begin, strict=True)):
        phases = [_phase(kind, axis, *divmod(first + pad, stride), more[axis]) for first in range(stride)]
        reached = [phase for phase in phases if phase.taps]
        if phases[: len(reached)] != reached or any(min(phase.begin, phase.end) < 0 for phase in reached):
            return None
        axes.append(reached)
    return axes


def _phase(kind: Window, axis: int, lag: int, tap: int, more: int) -> _Phase:
    """What the taps of the kernel from `tap` on, a stride apart, make of cells that lie `lag` behind."""
    taps = range(tap, (kind.kernel or ())[axis], kind.strides[axis])
    return _Phase(taps[::-1], (len(taps) - 1) * kind.dilations[axis] - lag, lag + more)


def _woven(
    step: Step[Any], kind: Window, gradient: Any, phases: Sequence[Sequence[_Phase]], more: Sequence[int]
) -> Any:
    """The derivative by the sources: that of each phase, in its cells; zero where no phase is."""
    op = step.op
    _, channels, *sides = step.known(step.node.read(0))
    counts = [
        count + extra if isinstance(count, int) else op.add(count, op.constant(np.array([extra], np.int64)))
        for count, extra in zip(step.measured(gradient, step.node.output, 0)[2:], more, strict=True)
    ]
    parts = {
        places: _of_phase(step, kind, gradient, [axis[place] for axis, place in zip(phases, places, strict=True)])
        for places in product(*(range(len(axis)) for axis in phases))
    }
    whole = _interleaved(step, kind, parts)
    if whole is None:
        whole = _joined(step, kind, parts, channels, counts)
    for axis, (count, stride, side) in enumerate(zip(counts, kind.strides, sides, strict=True), 2):
        if stride > 1 and not (isinstance(count, int) and count * stride == side):
            whole = op.slice(whole, axis, 0, side)
    return whole


def _of_phase(step: Step[Any], kind: Window, gradient: Any, chosen: Sequence[_Phase]) -> Any:
    begin, end = [phase.begin for phase in chosen], [phase.end for phase in chosen]
    weight = _reversed(step, kind, [phase.taps for phase in chosen])
    return step.op.convolve(gradient, weight, Windows((1,) * len(begin), kind.dilations, begin, end, kind.groups))


def _interleaved(step: Step[Any], kind: Window, parts: Mapping[tuple[int, ...], Any]) -> Any | None:
    """The maps of all phases, by their places, as one; None where they have to be joined axis by axis."""
    stride = kind.strides[0]
    if stride == 1 or list(kind.strides) != [stride, stride]:
        return None
    return step.op.interleave([parts.get(places) for places in product(range(stride), repeat=2)], stride)


def _joined(
    step: Step[Any], kind: Window, parts: Mapping[tuple[int, ...], Any], channels: Size, counts: Sequence[Size]
) -> Any:
    """The same, axis by axis, the last first."""
    op, of = step.op, partial(product_of, step.op)

    def along(places: tuple[int, ...]) -> Any:
        axis = len(places)
        if axis == len(counts):
            return parts[places]
        stride = kind.strides[axis]
        maps = [along((*places, place)) for place in sorted({found[axis] for found in parts})]
        if stride == 1:
            return maps[0]
        maps += [op.mul(maps[0], step.number(0.0))] * (stride - len(maps))
        behind = [of(pair) for pair in zip(counts[axis + 1 :], kind.strides[axis + 1 :], strict=True)]
        if behind:
            lines = [op.reshape(item, [-1, channels, of(counts[: axis + 1]), of(behind)]) for item in maps]
            woven = op.concat(lines, 3)
        else:  # numbers one by one: joining them is slower than exchanging two axes
            lines = [op.reshape(item, [-1, 1, of([channels, *counts])]) for item in maps]
            woven = op.transpose(op.concat(lines, 1), (0, 2, 1))
        return op.reshape(woven, [-1, channels, *counts[:axis], of([counts[axis], stride]), *behind])

    return along(())


def _reversed(step: Step[Any], kind: Window, taps: Sequence[Sequence[int]]) -> Any:
    """The weight from results to sources, with some taps of its windows by axis."""
    op, weight = step.op, step.operand(1)
    sizes, kernel = list(fixed(step.node.read(1).sizes)), list(kind.kernel or ())
    lead = sizes[: len(sizes) - len(kernel)]  # groups, results, sources; groups within the results but in OpenVINO
    is_apart = len(lead) == 3
    if kind.groups > 1 and not is_apart:
        weight = op.reshape(weight, [kind.groups, lead[0] // kind.groups, lead[1], *kernel])
    first = int(kind.groups > 1)
    order = [*range(first), first + 1, first, *range(first + 2, first + 2 + len(kernel))]
    weight = op.transpose(weight, order)
    for axis, size in enumerate(kernel, first + 2):
        if list(taps[axis - first - 2]) != list(range(size)):
            weight = op.pick(weight, taps[axis - first - 2], axis)
    if kind.groups > 1 and not is_apart:
        weight = op.reshape(weight, [kind.groups * lead[1], lead[0] // kind.groups, *map(len, taps)])
    return weight


def _forth(step: Step[Any], kind: Window, gradient: Any, weight: Any) -> Any:
    """The convolution of which a transposed one is the transpose."""
    source, result = (fixed(value.sizes[2:]) for value in (step.node.read(0), step.node.output))
    begin = kind.pads_begin
    if begin is None:
        raise step.refusal("its pads follow from its sizes")
    end = []
    for axis, (size, count) in enumerate(zip(source, result, strict=True)):
        reach = ((kind.kernel or ())[axis] - 1) * kind.dilations[axis] + 1
        end.append((size - 1) * kind.strides[axis] + reach - begin[axis] - count)
    cut = [min(behind, 0) for behind in end]
    if any(cut):  # cells that no window reaches
        kept = [count + less for count, less in zip(result, cut, strict=True)]
        for axis, count in enumerate(kept):
            gradient = step.op.slice(gradient, axis + 2, 0, count)
    behind = [max(number, 0) for number in end]
    return step.op.convolve(gradient, weight, Windows(kind.strides, kind.dilations, begin, behind, kind.groups))


def _covered(step: Step[Any], windows: Windows, kernel: Sequence[int]) -> list[npt.NDArray[np.bool_]]:
    """For each side, whether a cell of each window `[windows, kernel]` lies in the map."""
    sides = []
    source, result = (fixed(value.sizes[2:]) for value in (step.node.read(0), step.node.output))
    for axis, (size, count) in enumerate(zip(source, result, strict=True)):
        first = np.arange(count)[:, None] * windows.strides[axis] - windows.pads_begin[axis]
        cell = first + np.arange(kernel[axis]) * windows.dilations[axis]
        sides.append((cell >= 0) & (cell < size))
    return sides


def _reaching(step: Step[Any], kind: Window, kernel: Sequence[int]) -> tuple[list[int], Windows, list[int]]:
    """Kernel, windows and added cells of a pool, without the places that lie outside of the map in every window.

    Some networks pool whole maps by a kernel as large as their channels are many.
    """
    windows, added = _back(step, kind, kernel)
    if _is_open(step):
        if (volume(kernel) or 1) > _LARGE:
            raise step.refusal("its windows may be larger than the map")
        return list(kernel), windows, added
    sides, begin = [], []
    for side, pad, apart in zip(_covered(step, windows, kernel), windows.pads_begin, windows.dilations, strict=True):
        reached = np.flatnonzero(side.any(axis=0))
        first = min(int(reached[0]), pad // apart)
        begin.append(pad - first * apart)
        sides.append(int(reached[-1]) + 1 - first)
    return sides, *_back(step, replace(kind, pads_begin=tuple(begin)), sides)


def _mean_pool(step: Step[Any], kind: Window, kernel: Sequence[int]) -> Gradients:
    source, op = step.node.read(0), step.op
    if _is_whole(step, kind, kernel):
        gradient = op.mul(step.gradient, step.number(1 / (volume(kernel) or 1)))
        return {0: step.spread(gradient, range(2, 2 + len(kernel)))}
    channels = fixed(source.sizes[1:2])[0]
    gradient = step.flat(step.gradient, step.node.output)
    counts = _counts(step, kind, _back(step, kind, kernel)[0], kernel)
    kernel, windows, added = _reaching(step, kind, kernel)
    if np.ptp(counts):
        gradient = op.div(gradient, step.constant(counts))
        counts = np.ones(1)
    weight = step.constant(np.full((channels, 1, *kernel), 1 / counts.flat[0]))
    lies = replace(windows, groups=channels)
    return {0: step.unflat(_cropped(step, op.spread(gradient, weight, lies, added), kind.strides), source)}


def _is_whole(step: Step[Any], kind: Window, kernel: Sequence[int]) -> bool:
    """Whether the one window of a pool is the map, so that its derivative is the same for all cells."""
    sides, results = step.node.read(0).sizes[2:], step.node.output.sizes[2:]
    return tuple(kernel) == tuple(sides) and set(results) == {1} and not any((*(kind.pads_begin or ()), *kind.pads_end))


def _counts(step: Step[Any], kind: Window, windows: Windows, kernel: Sequence[int]) -> npt.NDArray[np.float64]:
    """By how many cells each mean is divided."""
    if _is_open(step):
        if kind.may_pad and not kind.counts_pads:
            raise step.refusal("how many cells its windows have follows from its sizes")
        return np.full((1,), float(volume(kernel) or 1))
    sides = [side.sum(axis=1) for side in _covered(step, windows, kernel)]
    if kind.counts_pads:
        sides = _with_pads(step, kind, windows, kernel, [len(side) for side in sides])
    total = np.ones(1)
    for side in sides:
        total = np.multiply.outer(total, side)
    return total.reshape(1, 1, *(len(side) for side in sides))


def _with_pads(
    step: Step[Any], kind: Window, windows: Windows, kernel: Sequence[int], counts: Sequence[int]
) -> list[npt.NDArray[np.int64]]:
    """Cells of each window by axis, those of the pads too; what it would need beyond a padded map counts nothing."""
    source = fixed(step.node.read(0).sizes[2:])
    sides = []
    for axis, size in enumerate(source):
        end = size + (windows.pads_end if kind.pads_begin is None else kind.pads_end)[axis]
        first = np.arange(counts[axis])[:, None] * windows.strides[axis] - windows.pads_begin[axis]
        sides.append((first + np.arange(kernel[axis]) * windows.dilations[axis] < end).sum(axis=1))
    return sides


def _max_pool(step: Step[Any], kind: Window, kernel: Sequence[int]) -> Gradients:
    """To the cell that is the maximum, the first of equals, as PyTorch does."""
    kernel, windows, added = _reaching(step, kind, kernel)
    op, source = step.op, step.node.read(0)
    _, channels, *grid = step.measured(step.gradient, step.node.output, step.lead)
    cells = volume(kernel) or 1
    one_hot = np.eye(cells).reshape(cells, 1, *kernel)
    weight = step.constant(np.tile(one_hot, (channels, *[1] * (len(kernel) + 1))))
    forth = replace(_open_forth(step, kind) if _is_open(step) else windows, groups=channels)
    found = op.convolve(step.operand(0), weight, forth)
    same = op.equal(op.reshape(found, [-1, channels, cells, *grid]), op.unsqueeze(step.result(), [2]))
    if (inside := _inside(step, windows, kernel, one_hot)) is not None:
        same = op.mul(same, inside)
    first = op.mul(same, op.equal(op.cumulative(same, 2), step.number(1.0)))
    share = op.mul(op.unsqueeze(step.gradient, [2 + step.lead]), first)
    share = op.reshape(share, [-1, channels * cells, *grid])
    lies = replace(windows, groups=channels)
    return {0: step.unflat(_cropped(step, op.spread(share, weight, lies, added), kind.strides), source)}


def _inside(step: Step[Any], windows: Windows, kernel: Sequence[int], one_hot: npt.NDArray[Any]) -> Any:
    """1 for each cell of each window that lies in the map, 0 for one that was added; None if all do."""
    op, kind = step.op, step.node.kind
    if not _is_open(step):
        valid = np.ones((), bool)
        for side in _covered(step, windows, kernel):
            valid = np.multiply.outer(valid, side)
        count = len(kernel)
        order = [*range(1, 2 * count, 2), *range(0, 2 * count, 2)]
        inside = valid.transpose(order).reshape(len(one_hot), *valid.shape[::2])
        return None if inside.all() else step.constant(inside)
    if not isinstance(kind, Window) or not kind.may_pad:
        return None
    ones = op.add(op.mul(op.slice(step.operand(0), 1, 0, 1), step.number(0.0)), step.number(1.0))
    return op.unsqueeze(op.convolve(ones, step.constant(one_hot), replace(_open_forth(step, kind), groups=1)), [1])


RULES: Mapping[type[Operator], Rule] = {Window: _window}
