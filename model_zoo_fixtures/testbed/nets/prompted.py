"""Detectors whose scores are products with embeddings, or which look at tokens and queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model_zoo_fixtures.testbed.nets import box_forms
from model_zoo_fixtures.testbed.nets.detector_oracle import Part, Sample
from model_zoo_fixtures.testbed.nets.finishing import merged, sample
from model_zoo_fixtures.testbed.nets.graph import Array, Net
from model_zoo_fixtures.testbed.nets.pyramids import Grid, Layout, convolved, head, listed, pyramid, tower

SIZES = ((64, 96), (96, 64), (64, 64), (32, 64))


def _start(net: Net, count: int, first: int) -> tuple[list[Grid], tuple[int, int]]:
    net.batch = net.pick([1, "N"])
    sides = net.pick(SIZES)
    return pyramid(net, *sides, count, net.pick([8, 12]), first), sides


def _unit(net: Net, x: str, axis: int) -> str:
    return net.node("Div", x, net.node("ReduceL2", x, axes=[axis], keepdims=1))


def _text(net: Net, classes: int, width: int) -> tuple[Array, bool]:
    """Embeddings `[K, D]`, and whether they are an input."""
    given = net.chance(0.3)
    net.tag("text given" if given else "text stored")
    return net.rng.standard_normal((classes, width)).astype(np.float32), given


def text_scores(net: Net, seed: int) -> Sample:
    """Embeddings of each cell times those of texts, which stand left or right."""
    grids, sides = _start(net, net.pick([1, 2, 3]), 8)
    classes, width = net.pick([1, 2, 3, 4, 5, 8]), net.pick([8, 12])
    side = net.pick(["left", "right"])
    net.tag(f"text {side}")
    text, given = _text(net, classes, width)
    name = "text" if given else ""
    kept = net.const(text[None] if side == "left" else text.T) if not given else ""
    if given:
        kept = net.node("Unsqueeze", name, net.ints(0)) if side == "left" else net.node("Transpose", name, perm=[1, 0])
    layout = Layout("conv", False, "cells", True)
    scaled = net.chance(0.6)
    levels, products, scores, boxes = [], [], [], []
    for grid in grids:
        x = convolved(net, tower(net, grid).name, grid.channels, width, 1)
        x = net.node("Reshape", x, net.ints(0, width, -1))
        if net.chance(0.5):
            x = _unit(net, x, 1)
        if side == "right":
            x = net.node("Transpose", x, perm=[0, 2, 1])
        product = net.node("MatMul", kept, x) if side == "left" else net.node("MatMul", x, kept)
        products.append((Part(product, _cells(grid, classes, columns=side == "left")),))
        if scaled:
            product = net.node("Add", net.node("Mul", product, net.scalar(1.7)), net.scalar(-0.5))
        levels.append((Part(product, _cells(grid, classes, columns=side == "left")),))
        product = net.node("Sigmoid", product)
        scores.append(net.node("Transpose", product, perm=[0, 2, 1]) if side == "left" else product)
        _, rows = head(net, tower(net, grid), 4, layout)
        box = box_forms.decoded(net, rows.name, 2, 4, box_forms.of_grid(net, rows), "distances", "xyxy")
        boxes.append(listed(net, box_forms.replaced(rows, box), layout))
    outputs = [v[0] if len(v) == 1 else net.node("Concat", *v, axis=1) for v in (boxes, scores)]
    beside = {"text": text} if given else {}
    strides = [grid.stride for grid in grids]
    readings = merged(levels, strides) + merged(products, strides)
    return sample(net, seed, sides, outputs, readings=readings, classes=classes, beside=beside, refusal_ok=classes == 4)


def _cells(grid: Grid, classes: int, *, columns: bool = False, start: int = 0) -> Callable[[Array], Array]:
    def read(array: Array) -> Array:
        array = array if columns else array.transpose(0, 2, 1)
        array = array[:, :, start : start + grid.cells]
        return array.reshape(len(array), 1, classes, grid.rows, grid.columns)

    return read


def _tokens(net: Net, grid: Grid) -> str:
    """`[B, h * w, C]` behind a layer."""
    x = net.node("Transpose", net.node("Reshape", grid.name, net.ints(0, grid.channels, -1)), perm=[0, 2, 1])
    return net.node("Relu", net.linear(x, grid.channels, grid.channels))


def token_boxes(net: Net, seed: int) -> Sample:
    """A box and scores of texts for each token; boxes by sigmoid."""
    (grid,), sides = _start(net, 1, net.pick([8, 16]))
    tokens, width = _tokens(net, grid), grid.channels
    classes, inner = net.pick([1, 2, 3, 4, 5, 8]), net.pick([8, 12])
    text, given = _text(net, classes, inner)
    embedded = _unit(net, net.linear(tokens, width, inner), 2)
    kept = net.node("Transpose", "text", perm=[1, 0]) if given else net.const(text.T)
    product = net.node("MatMul", embedded, kept)
    scores = product
    if net.chance(0.6):
        shift = net.linear(tokens, width, 1)
        scale = net.node("Add", net.node("Elu", net.linear(tokens, width, 1)), net.scalar(1.0))
        scores = net.node("Mul", net.node("Add", product, shift), scale)
        net.tag("shift and scale")
    boxes = net.linear(net.node("Relu", net.linear(tokens, width, width)), width, 4)
    if net.chance(0.7):
        y, x = np.mgrid[: grid.rows, : grid.columns] + 0.5
        places = np.stack([x / grid.columns, y / grid.rows, 0 * x + 0.2, 0 * x + 0.2], -1).reshape(1, -1, 4)
        boxes = net.node("Add", boxes, net.const(np.log(places / (1 - places)).astype(np.float32)))
    outputs = [net.node("Sigmoid", boxes), scores]
    readings = [((Part(scores, _cells(grid, classes)),),)]
    if net.chance(0.3):
        outputs[1] = net.node("Sigmoid", scores)
    return sample(
        net,
        seed,
        sides,
        outputs if net.chance(0.5) else outputs[::-1],
        readings=readings,
        classes=classes,
        refusal_ok=classes == 4,
        beside={"text": text} if given else {},
    )


def first_stage(net: Net, seed: int) -> Sample:
    """Queries are the tokens with the best class scores."""
    grids, sides = _start(net, net.pick([1, 2, 3]), 8)
    width, classes = grids[0].channels, net.pick([1, 2, 3, 4, 5, 8])
    parts = [
        net.node("Transpose", net.node("Reshape", grid.name, net.ints(0, width, -1)), perm=[0, 2, 1]) for grid in grids
    ]
    memory = parts[0] if len(parts) == 1 else net.node("Concat", *parts, axis=1)
    memory = net.node("Relu", net.linear(memory, width, width))
    scores = net.linear(memory, width, classes)
    starts = np.cumsum([0, *(grid.cells for grid in grids)])
    levels = [(Part(scores, _cells(g, classes, start=int(s))),) for g, s in zip(grids, starts, strict=False)]
    net.node("TopK", net.node("ReduceMax", scores, axes=[2], keepdims=0), net.ints(4), axis=1)
    net.nodes[-1].output.append(f"{net.nodes[-1].output[0]}i")
    rows = net.node("Unsqueeze", net.nodes[-1].output[1], net.ints(2))
    chosen = net.node("GatherElements", memory, net.node("Tile", rows, net.ints(1, 1, width)), axis=1)
    outputs = _decoder(net, chosen, memory, width, classes)
    return sample(net, seed, sides, outputs, readings=merged(levels, [grid.stride for grid in grids]), classes=classes)


def queries(net: Net, seed: int) -> Sample:
    """Learned queries that read the encoder's tokens: no location has class scores."""
    (grid,), sides = _start(net, 1, net.pick([8, 16]))
    width, classes = grid.channels, net.pick([2, 3, 4, 5, 8])
    memory = net.node("LayerNormalization", _tokens(net, grid), net.bias(width, gain=1.0), net.bias(width), axis=-1)
    count = net.pick([4, 5, grid.cells])
    zero = net.node("Mul", net.node("ReduceMean", memory, axes=[1, 2], keepdims=1), net.scalar(0.0))
    start = net.node("Add", net.bias(1, count, width, gain=1.0), zero)
    outputs = _decoder(net, start, memory, width, classes + 1)

    def read(array: Array) -> Array:
        return array.mean(2).reshape(len(array), grid.rows, grid.columns)

    return sample(net, seed, sides, outputs, features=[Part(memory, read)], refusal_ok=True)


def _decoder(net: Net, x: str, memory: str, width: int, classes: int) -> list[str]:
    """Cross-attention, then scores and boxes of each query."""
    query, key, value = (net.linear(v, width, width) for v in (x, memory, memory))
    weights = net.node("MatMul", query, net.node("Transpose", key, perm=[0, 2, 1]))
    weights = net.node("Softmax", net.node("Mul", weights, net.scalar(width**-0.5)), axis=2)
    x = net.node("Add", x, net.linear(net.node("MatMul", weights, value), width, width))
    x = net.node("Add", x, net.linear(net.node("Relu", net.linear(x, width, 2 * width)), 2 * width, width))
    scores = net.linear(x, width, classes)
    if net.chance(0.3):
        scores = net.node("Softmax", scores, axis=2)
    return [scores, net.node("Sigmoid", net.linear(x, width, 4))]


PROMPTED: tuple[Callable[[Net, int], Sample], ...] = (text_scores, text_scores, token_boxes, first_stage, queries)
