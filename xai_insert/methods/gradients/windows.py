"""Derivatives of convolutions and pools, as transposed convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.graph.operators import Operator, Window
from xai_insert.graph.ops import Windows
from xai_insert.graph.view import fixed, volume
from xai_insert.methods.gradients.step import Gradients, Rule, Step

_MOST_PHASES = 8  # of a convolution that is turned round as convolutions, which runtimes do faster


def _window(step: Step[Any]) -> Gradients:
    kind = step.node.kind
    if not isinstance(kind, Window) or kind.kernel is None:
        raise step.refusal("its kernel is not known")
    if kind.pool is None:
        return _convolution(step, kind)
    if kind.pool in ("mean", "max") and not any(item is not None for item in step.given[1:]):
        return _mean_pool(step, kind, kind.kernel) if kind.pool == "mean" else _max_pool(step, kind, kind.kernel)
    raise step.refusal("no rule covers this kind of pool")


def _back(step: Step[Any], kind: Window, kernel: Sequence[int]) -> tuple[Windows, list[int]]:
    """How the transpose lies, and the cells that it adds behind the last."""
    source, result = (fixed(value.sizes[2:]) for value in (step.node.read(0), step.node.output))
    begin, end, added = [], [], []
    for axis, (size, count) in enumerate(zip(source, result, strict=True)):
        reach = (kernel[axis] - 1) * kind.dilations[axis] + 1
        whole = (count - 1) * kind.strides[axis] + reach
        if kind.pads_begin is None:
            total = max(whole - size, 0)
            before = total - total // 2 if kind.is_late else total // 2
        else:
            before = kind.pads_begin[axis]
        over = whole - before - size
        begin.append(before)
        end.append(max(over, 0))
        added.append(max(-over, 0))
    return Windows(kind.strides, kind.dilations, begin, end, kind.groups), added


def _convolution(step: Step[Any], kind: Window) -> Gradients:
    if step.wanted != {0}:
        raise step.refusal("its weights are computed")
    source, result = step.node.read(0), step.node.output
    ends = [value.sizes[1] for value in (source, result)]
    gradient = step.flat(step.gradient, result)
    if not kind.transposed:
        windows, added = _back(step, kind, kind.kernel or ())
        phases = _phases(kind, windows, fixed(source.sizes[2:]), fixed(result.sizes[2:]))
        if phases is not None:
            return {0: step.unflat(_woven(step, kind, gradient, phases), source)}
    weight, gradient = step.turned(1, gradient, is_square=ends[0] == ends[1])
    if kind.transposed:
        return {0: step.unflat(_forth(step, kind, gradient, weight), source)}
    return {0: step.unflat(step.op.spread(gradient, weight, windows, added), source)}


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


def _phases(kind: Window, windows: Windows, source: Sequence[int], result: Sequence[int]) -> list[list[_Phase]] | None:
    """By axis, the phases that the kernel reaches; None if they are too many, or not the first ones."""
    is_apart = any(stride > 1 < dilation for stride, dilation in zip(kind.strides, kind.dilations, strict=True))
    if is_apart or (volume(kind.strides) or 1) > _MOST_PHASES:
        return None
    axes = []
    for axis, (size, count) in enumerate(zip(source, result, strict=True)):
        stride, pad, phases = kind.strides[axis], windows.pads_begin[axis], []
        for first in range(stride):
            lag, tap = divmod(first + pad, stride)
            taps = range(tap, (kind.kernel or ())[axis], stride)
            begin = (len(taps) - 1) * kind.dilations[axis] - lag
            phases.append(_Phase(taps[::-1], begin, -(-size // stride) + lag - count))
        reached = [phase for phase in phases if phase.taps]
        if phases[: len(reached)] != reached or any(min(phase.begin, phase.end) < 0 for phase in reached):
            return None
        axes.append(reached)
    return axes


def _woven(step: Step[Any], kind: Window, gradient: Any, phases: Sequence[Sequence[_Phase]]) -> Any:
    """The derivative by the sources: that of each phase, in its cells; zero where no phase is."""
    op = step.op
    channels, *sides = fixed(step.node.read(0).sizes[1:])
    counts = [-(-size // stride) for size, stride in zip(sides, kind.strides, strict=True)]
    once = (1,) * len(sides)

    def along(axis: int, chosen: tuple[_Phase, ...]) -> Any:
        if axis == len(sides):
            begin, end = [phase.begin for phase in chosen], [phase.end for phase in chosen]
            weight = _reversed(step, kind, [phase.taps for phase in chosen])
            return op.convolve(gradient, weight, Windows(once, kind.dilations, begin, end, kind.groups))
        parts = [along(axis + 1, (*chosen, phase)) for phase in phases[axis]]
        stride, before, behind = kind.strides[axis], counts[:axis], sides[axis + 1 :]
        if stride == 1:
            return parts[0]
        missing = stride - len(parts)
        if behind:
            lines = [op.reshape(part, [-1, channels, volume(counts[: axis + 1]), volume(behind)]) for part in parts]
            joined = op.concat(lines, 3) if len(lines) > 1 else lines[0]
            if missing:
                joined = op.pad(joined, [0] * 4, [0, 0, 0, missing * (volume(behind) or 1)])
        else:  # numbers one by one: joining or padding them is slower than exchanging two axes
            lines = [op.reshape(part, [-1, 1, channels * (volume(counts) or 1)]) for part in parts]
            joined = op.concat(lines, 1) if len(lines) > 1 else lines[0]
            if missing:
                joined = op.pad(joined, [0] * 3, [0, missing, 0])
            joined = op.transpose(joined, (0, 2, 1))
        whole = counts[axis] * stride
        joined = op.reshape(joined, [-1, channels, *before, whole, *behind])
        return joined if whole == sides[axis] else op.slice(joined, axis + 2, 0, sides[axis])

    return along(0, ())


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
    windows, _ = _back(step, kind, kernel)
    sides, begin = [], []
    for side, pad, apart in zip(_covered(step, windows, kernel), windows.pads_begin, windows.dilations, strict=True):
        reached = np.flatnonzero(side.any(axis=0))
        first = min(int(reached[0]), pad // apart)
        begin.append(pad - first * apart)
        sides.append(int(reached[-1]) + 1 - first)
    return sides, *_back(step, replace(kind, pads_begin=tuple(begin)), sides)


def _mean_pool(step: Step[Any], kind: Window, kernel: Sequence[int]) -> Gradients:
    source, op = step.node.read(0), step.op
    channels = fixed(source.sizes[1:2])[0]
    gradient = step.flat(step.gradient, step.node.output)
    counts = _counts(step, kind, _back(step, kind, kernel)[0], kernel)
    kernel, windows, added = _reaching(step, kind, kernel)
    if np.ptp(counts):
        gradient = op.div(gradient, step.constant(counts))
        counts = np.ones(1)
    weight = step.constant(np.full((channels, 1, *kernel), 1 / counts.flat[0]))
    lies = Windows(windows.strides, windows.dilations, windows.pads_begin, windows.pads_end, channels)
    return {0: step.unflat(op.spread(gradient, weight, lies, added), source)}


def _counts(step: Step[Any], kind: Window, windows: Windows, kernel: Sequence[int]) -> npt.NDArray[np.float64]:
    """By how many cells each mean is divided."""
    sides = [side.sum(axis=1) for side in _covered(step, windows, kernel)]
    if kind.counts_pads:  # of the cells that a window larger than the padded map would need, none counts
        source = fixed(step.node.read(0).sizes[2:])
        pads = step.node.attrs.get("pads") or (0,) * (2 * len(source))
        for axis, size in enumerate(source):
            end = size + (pads[len(source) + axis] if kind.pads_begin is not None else windows.pads_end[axis])
            first = np.arange(len(sides[axis]))[:, None] * windows.strides[axis] - windows.pads_begin[axis]
            sides[axis] = (first + np.arange(kernel[axis]) * windows.dilations[axis] < end).sum(axis=1)
    total = np.ones(1)
    for side in sides:
        total = np.multiply.outer(total, side)
    return total.reshape(1, 1, *(len(side) for side in sides))


def _max_pool(step: Step[Any], kind: Window, kernel: Sequence[int]) -> Gradients:
    """To the cell that is the maximum, the first of equals, as PyTorch does."""
    kernel, windows, added = _reaching(step, kind, kernel)
    op, source, result = step.op, step.node.read(0), step.node.output
    channels, *grid = fixed(result.sizes[1:])
    cells = volume(kernel) or 1
    one_hot = np.tile(np.eye(cells).reshape(cells, 1, *kernel), (channels, *[1] * (len(kernel) + 1)))
    weight = step.constant(one_hot)
    lies = Windows(windows.strides, windows.dilations, windows.pads_begin, windows.pads_end, channels)
    found = op.convolve(step.operand(0), weight, lies)
    apart = [-1, channels, cells, *grid]
    same = op.equal(op.reshape(found, apart), op.unsqueeze(step.result(), [2]))
    valid = np.ones((), bool)
    for side in _covered(step, windows, kernel):
        valid = np.multiply.outer(valid, side)
    count = len(kernel)
    order = [*range(1, 2 * count, 2), *range(0, 2 * count, 2)]
    inside = valid.transpose(order).reshape(cells, *grid)
    if not inside.all():
        same = op.mul(same, step.constant(inside))
    first = op.mul(same, op.equal(op.cumulative(same, 2), step.number(1.0)))
    share = op.mul(op.unsqueeze(step.gradient, [2 + step.lead]), first)
    share = op.reshape(share, [-1, channels * cells, *grid])
    return {0: step.unflat(op.spread(share, weight, lies, added), source)}


RULES: Mapping[type[Operator], Rule] = {Window: _window}
