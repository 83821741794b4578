"""From the rows of a detector's heads to its outputs: activations, boxes, objectness, joining and selection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from model_zoo_fixtures.testbed.nets import box_forms
from model_zoo_fixtures.testbed.nets.box_forms import Priors
from model_zoo_fixtures.testbed.nets.design import Design, Parts
from model_zoo_fixtures.testbed.nets.graph import Net
from model_zoo_fixtures.testbed.nets.pyramids import Rows, joined, listed

Treat = Callable[[str, int, int, Priors | None], str]  # value, axis of the numbers, rank, priors
KEPT = 5  # boxes


def report(net: Net, design: Design, parts: Parts, output: str, image: tuple[int, int]) -> tuple[list[str], int | None]:
    """Names of the outputs, and the label of class 0 of the heads."""
    if output == "heads":
        return _heads(net, design, parts), None
    if output == "class boxes":
        scores = _table(net, design, parts, "scores", _scores(net, design))
        return _gated(net, design, parts, [_boxes_of_classes(net, design, parts, image), scores]), None
    treated = _treatments(net, design, image)
    if output == "levels":
        return [
            listed(net, _early(net, design, name, rows, treated[name]), design.layout)
            for name, levels in parts.rows.items()
            for rows in levels
        ], None
    tables = {name: _table(net, design, parts, name, treated[name]) for name in parts.rows}
    if design.multiplied:
        for gate in [name for name in ("objectness", "quality") if name in tables]:
            tables["scores"] = net.node("Mul", tables["scores"], tables.pop(gate))
    if output == "joined":
        names = ["boxes", *(name for name in ("objectness", "scores") if name in tables)]
        names += [name for name in tables if name not in names]
        if design.between:
            names = [name for name in names if name != "scores"] + ["scores"]
        if net.chance(0.2):
            names.reverse()
        axis = 1 if design.layout.order == "columns" else 2
        return [net.node("Concat", *(tables[name] for name in names), axis=axis)], None
    if output == "separate":
        return [tables[name] for name in (tables if net.chance(0.5) else reversed(tables))], None
    offset = net.pick([0, 0, 1])
    net.tag(f"labels from {offset}")
    first = offset - (design.background == "first")
    count = design.classes if design.dropped else design.scores
    if output == "suppressed":
        return _suppressed(net, tables["boxes"], tables["scores"], offset), first
    return _best(net, tables["boxes"], tables["scores"], count, offset, flat=output == "best flat"), first


def _treatments(net: Net, design: Design, image: tuple[int, int]) -> dict[str, Treat]:
    def boxes(x: str, axis: int, rank: int, priors: Priors | None) -> str:
        assert priors is not None
        made = box_forms.decoded(net, x, axis, rank, priors, design.form, design.reported)
        return _normalised(net, design, made, axis, rank, image)

    def points(x: str, axis: int, rank: int, priors: Priors | None) -> str:
        assert priors is not None
        columns = [net.node("Slice", x, net.ints(i), net.ints(i + 1), net.ints(axis)) for i in range(6)]
        step = 3 if "visible points" in design.fields else 2
        for index, column in enumerate(columns):
            if index % step == 2:
                columns[index] = net.node("Sigmoid", column)
            else:
                centre = (priors.x, priors.y)[index % step]
                columns[index] = net.node("Add", net.node("Mul", column, priors.stride), centre)
        return net.node("Concat", *columns, axis=axis)

    def angle(x: str, axis: int, rank: int, priors: Priors | None) -> str:
        return net.node("Mul", net.node("Sub", net.node("Sigmoid", x), net.scalar(0.25)), net.scalar(np.pi))

    def coefficients(x: str, axis: int, rank: int, priors: Priors | None) -> str:
        return net.node("Tanh", x)

    def attributes(x: str, axis: int, rank: int, priors: Priors | None) -> str:
        return x if design.activation == "none" else net.node("Sigmoid", x)

    def sigmoid(x: str, axis: int, rank: int, priors: Priors | None) -> str:
        return net.node("Sigmoid", x)

    others: dict[str, Treat] = {"angle": angle, "coefficients": coefficients, "attributes": attributes}
    others |= {"objectness": sigmoid, "quality": sigmoid, "points": points, "visible points": points}
    return {"boxes": boxes, "scores": _scores(net, design), **others}


def _scores(net: Net, design: Design) -> Treat:
    def scores(x: str, axis: int, rank: int, priors: Priors | None) -> str:
        if design.activation == "Softmax":
            x = net.node("Softmax", x, axis=axis)
        elif design.activation == "Sigmoid":
            x = net.node("Sigmoid", x)
        if design.dropped:
            start = int(design.background == "first")
            x = net.node("Slice", x, net.ints(start), net.ints(start + design.classes), net.ints(axis))
        return x

    return scores


def _early(net: Net, design: Design, name: str, rows: Rows, treat: Treat) -> Rows:
    made = treat(rows.name, 2, 4 if rows.flat else 5, box_forms.of_grid(net, rows))
    scores = design.classes if design.dropped else design.scores
    return replace(rows, name=made, width={"boxes": 4, "scores": scores}.get(name, rows.width))


def _table(net: Net, design: Design, parts: Parts, name: str, treat: Treat) -> str:
    """`[B, L, X]` or `[B, X, L]`: treated level by level, or once all are joined."""
    layout, levels = design.layout, parts.rows[name]
    if net.dynamic or net.chance(0.5):
        return joined(net, [listed(net, _early(net, design, name, rows, treat), layout) for rows in levels], layout)
    together = joined(net, [listed(net, rows, layout) for rows in levels], layout)
    priors = box_forms.of_list(net, [rows.grid for rows in levels], layout)
    return treat(together, 1 if layout.order == "columns" else 2, 3, priors)


def _normalised(net: Net, design: Design, boxes: str, axis: int, rank: int, image: tuple[int, int]) -> str:
    if not design.normalised or net.dynamic:
        return boxes
    height, width = image
    sides = (height, width, height, width) if design.reported == "yxyx" else (width, height, width, height)
    shape = [1] * rank
    shape[axis] = 4
    return net.node("Div", boxes, net.const(np.array(sides, np.float32).reshape(shape)))


def _gated(net: Net, design: Design, parts: Parts, outputs: list[str]) -> list[str]:
    if "objectness" not in parts.rows:
        return outputs
    gate = net.node("Sigmoid", _table(net, design, parts, "objectness", lambda x, *_: x))
    return [outputs[0], net.node("Mul", outputs[1], gate)]


def _boxes_of_classes(net: Net, design: Design, parts: Parts, image: tuple[int, int]) -> str:
    """`[B, L, K, 4]`."""
    levels = []
    for rows in parts.rows["boxes"]:
        x = net.node("Reshape", rows.name, net.ints(0, design.scores, box_forms.width_of(design.form), -1))
        made = box_forms.decoded(net, x, 2, 4, box_forms.of_grid(net, rows), design.form, design.reported)
        levels.append(net.node("Transpose", _normalised(net, design, made, 2, 4, image), perm=[0, 3, 1, 2]))
    return levels[0] if len(levels) == 1 else net.node("Concat", *levels, axis=1)


def _heads(net: Net, design: Design, parts: Parts) -> list[str]:
    """As they are, with the channels last, or as rows."""
    how = net.pick(["as they are", "last", "rows", "flattened"])
    net.tag(f"heads {how}")
    if design.layout.layer != "conv" or how == "as they are":
        return list(parts.raw)
    if how == "rows" and not design.fused:
        return [listed(net, rows, design.layout) for levels in parts.rows.values() for rows in levels]
    last = [net.node("Transpose", value, perm=[0, 2, 3, 1]) for value in parts.raw]
    if how != "flattened":
        return last
    widths = [next(n for n in net.weights if n.name == _weight_of(net, value)).dims[0] for value in parts.raw]
    return [net.node("Reshape", value, net.ints(0, -1, width)) for value, width in zip(last, widths, strict=True)]


def _weight_of(net: Net, value: str) -> str:
    return next(node for node in net.nodes if value in node.output).input[1]


def _suppressed(net: Net, boxes: str, scores: str, offset: int) -> list[str]:
    """The best boxes after suppression, of one image."""
    by_class = net.node("Transpose", scores, perm=[0, 2, 1])
    limits = net.ints(KEPT), net.scalar(0.5), net.scalar(0.05)
    chosen = net.node("NonMaxSuppression", boxes, by_class, *limits)
    classes, rows = (net.node("Gather", chosen, net.const(np.array(column, np.int64)), axis=1) for column in (1, 2))
    picked = net.node("Gather", net.node("Squeeze", boxes, net.ints(0)), rows, axis=0)
    labels = net.node("Add", classes, net.ints(offset)) if offset else classes
    best = net.node("GatherND", net.node("Squeeze", by_class, net.ints(0)), _pairs(net, chosen))
    if net.chance(0.4):
        return [picked, best, labels]
    parts = [picked, net.node("Unsqueeze", best, net.ints(1))]
    column = net.node("Unsqueeze", net.node("Cast", labels, to=1), net.ints(1))
    return [net.node("Concat", *parts, column, axis=1)]


def _pairs(net: Net, chosen: str) -> str:
    return net.node("Slice", chosen, net.ints(1), net.ints(3), net.ints(1))


def _best(net: Net, boxes: str, scores: str, count: int, offset: int, *, flat: bool) -> list[str]:
    """The best rows, or the best pairs of a row and a class."""
    if flat:
        best, index = _topk(net, net.node("Reshape", scores, net.ints(0, -1)))
        size = net.ints(count)
        rows, labels = net.node("Div", index, size), net.node("Mod", index, size)
    else:
        best, rows = _topk(net, net.reduce("ReduceMax", scores, [2]))
        every = net.node("ArgMax", scores, axis=2, keepdims=0)
        labels = net.node("GatherElements", every, rows, axis=1)
    labels = net.node("Add", labels, net.ints(offset)) if offset else labels
    wide = net.node("Tile", net.node("Unsqueeze", rows, net.ints(2)), net.ints(1, 1, 4))
    picked = net.node("GatherElements", boxes, wide, axis=1)
    if net.chance(0.5):
        return [picked, best, labels]
    tail = [
        net.node("Unsqueeze", best, net.ints(2)),
        net.node("Unsqueeze", net.node("Cast", labels, to=1), net.ints(2)),
    ]
    return [net.node("Concat", picked, *tail, axis=2)]


def _topk(net: Net, scores: str) -> tuple[str, str]:
    net.node("TopK", scores, net.ints(KEPT), axis=1)
    node = net.nodes[-1]
    node.output.append(f"{node.output[0]}i")
    return node.output[0], node.output[1]
