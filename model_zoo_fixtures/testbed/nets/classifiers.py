"""Classifiers drawn from a grammar: what is done to the image, backbone, bodies, collapse, head and tail.

sample = generate(seed)     # the same seed gives the same network
verdict = judge(sample)     # see testbed.nets.oracle
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model_zoo_fixtures.testbed.nets import transformers
from model_zoo_fixtures.testbed.nets.backbones import BACKBONES, FREE_BACKBONES, Image, cut_patches, patches
from model_zoo_fixtures.testbed.nets.bodies import BODIES, FREE_BODIES
from model_zoo_fixtures.testbed.nets.graph import Feature, Net, Target
from model_zoo_fixtures.testbed.nets.heads import COLLAPSES, FREE_COLLAPSES, HEADS, WHOLE_HEADS, average, maximum, total
from model_zoo_fixtures.testbed.nets.oracle import Sample
from model_zoo_fixtures.testbed.nets.prepare import prepared

SIDES = (16, 24, 32, 48)
EQUAL = ((16, 16), (16, 32), (24, 16), (32, 16), (16, 24), (24, 24))


def generate(seed: int) -> Sample:
    """One classifier."""
    net = Net(np.random.default_rng(seed))
    kind = KINDS[int(net.rng.choice(len(KINDS), p=SHARES))]
    net.tag(f"kind {kind.__name__}")
    return kind(net, seed)


def plain(net: Net, seed: int) -> Sample:
    """A backbone, bodies, a collapse and a head."""
    _free_batch(net)
    rows, columns = _size(net)
    channels, classes = net.pick([8, 12, 16, 24]), net.pick([3, 4, 5, 9, 16])
    feature = _backbone(net, ("image", rows, columns), channels)
    return _finish(net, seed, _head(net, feature, classes), (3, rows, columns), classes)


def framed(net: Net, seed: int) -> Sample:
    """The image is flipped, turned, rolled, cropped, padded or has its channels last."""
    _free_batch(net)
    rows, columns = _size(net)
    channels, classes = net.pick([8, 12, 16, 24]), net.pick([3, 4, 5, 9, 16])
    image, sizes = prepared(net, rows, columns)
    return _finish(net, seed, _head(net, _backbone(net, image, channels), classes), sizes, classes)


def equal(net: Net, seed: int) -> Sample:
    """As many channels as tokens, as many classes as tokens, rows or columns, as many images as rows."""
    rows, columns = net.pick(EQUAL)
    h, w = rows // 4, columns // 4
    net.batch = net.pick(["N", 1, h])
    channels, classes = net.pick([h * w, h * w, h * w, 2 * h, w * 2]), net.pick([h * w, h, w, 2 * h, 5])
    kind = net.pick([patches, cut_patches])
    net.tag(f"backbone {kind.__name__}")
    feature = kind(net, ("image", rows, columns), channels)
    net.keep(feature)
    return _finish(net, seed, _head(net, feature, classes), (3, rows, columns), classes)


def free_sides(net: Net, seed: int) -> Sample:
    """Any size of the image: no size stands in the graph."""
    net.dynamic = True
    net.batch = net.pick(["N", 1])
    rows, columns = _size(net)
    channels, classes = net.pick([8, 12, 16, 24]), net.pick([3, 4, 5, 9, 16])
    feature = _backbone(net, ("image", rows, columns), channels)
    return _finish(net, seed, _head(net, feature, classes), (3, rows, columns), classes)


def views(net: Net, seed: int) -> Sample:
    """Flipped views folded into the batch, their scores averaged."""
    net.batch = net.pick(["N", 1])
    net.views = net.pick([[(), (1,)], [(), (0,)], [(), (1,), (0,), (0, 1)]])
    net.refusal_ok = True
    rows, columns = _size(net)
    classes = net.pick([3, 4, 5, 9])
    parts = []
    for view in net.views:
        part = "image"
        for axis in view:
            part = net.node("Slice", part, net.ints(-1), net.ints(-(2**62)), net.ints(2 + axis), net.ints(-1))
        parts.append(part)
    x = net.node("Concat", *parts, axis=0)
    scores = _head(net, _backbone(net, (x, rows, columns), 12), classes)
    scores = net.node("Reshape", scores, net.ints(len(net.views), -1, classes))
    return _finish(net, seed, net.reduce("ReduceMean", scores, [0]), (3, rows, columns), classes)


def streams(net: Net, seed: int) -> Sample:
    """Two backbones on one image that meet behind their pools: on one grid, or on two."""
    _free_batch(net)
    net.refusal_ok = True
    rows, columns = net.pick([(16, 24), (24, 16), (16, 16), (32, 16)])
    classes, channels = net.pick([3, 4, 5, 9]), net.pick([8, 12])
    ends, grids = [], []
    same = net.chance(0.6)
    for index in range(2):
        side = 2 if index and not same else 4
        weight = net.weight(channels, 3, side, side, gain=1.4)
        x = net.node("Relu", net.node("Conv", "image", weight, net.bias(channels), strides=[side] * 2))
        cells = net.cells(rows // side, columns // side)
        ends.append(Feature(x, np.repeat(cells[:, None], channels, 1)))
        grids.append(net.grid)
    net.tag("streams on one grid" if same else "streams on two grids")
    net.trunk[:] = [Target(tuple(ends), grids[0])] if same else []
    return _finish(net, seed, _late(net, ends, classes), (3, rows, columns), classes)


def forks(net: Net, seed: int) -> Sample:
    """One backbone, two branches of convolutions that meet behind their pools."""
    _free_batch(net)
    rows, columns = _size(net)
    classes, channels = net.pick([3, 4, 5, 9]), net.pick([8, 12])
    stem = _backbone(net, ("image", rows, columns), channels)
    ends = [net.point(net.conv(stem, channels, net.pick([1, 3])), "Relu") for _ in range(2)]
    net.keep(*ends)
    return _finish(net, seed, _late(net, ends, classes), (3, rows, columns), classes)


def _late(net: Net, ends: list[Feature], classes: int) -> str:
    """Two pools, joined before the scores or behind them."""
    vectors = [net.pick([average, maximum, total])(net, end) for end in ends]
    head = net.pick(HEADS)
    net.tag(f"head {head.__name__}")
    if net.chance(0.5):
        return net.node("Add", *(head(net, vector, classes) for vector in vectors))
    both = net.node("Concat", *(name for name, _ in vectors), axis=1)
    return head(net, (both, sum(width for _, width in vectors)), classes)


def tokens(net: Net, seed: int) -> Sample:
    """A transformer with tokens before or behind its patches."""
    _free_batch(net)
    rows, columns = net.pick([*EQUAL, (32, 32)])
    h, w = rows // 4, columns // 4
    classes = net.pick([3, 4, 5, 9, h * w])
    feature = net.pick([patches, cut_patches])(net, ("image", rows, columns), net.pick([12, 16, h * w]))
    return _finish(net, seed, transformers.head(net, feature, classes), (3, rows, columns), classes)


KINDS: tuple[Callable[[Net, int], Sample], ...] = (plain, equal, framed, free_sides, tokens, forks, streams, views)
SHARES = (0.36, 0.16, 0.14, 0.08, 0.12, 0.06, 0.04, 0.04)


def _free_batch(net: Net) -> None:
    net.batch = net.pick([1, 1, "N", "N", 2, 3])


def _size(net: Net) -> tuple[int, int]:
    rows = net.pick(SIDES)
    return rows, rows if net.chance(0.3) else net.pick(SIDES)


def _backbone(net: Net, image: Image, channels: int) -> Feature:
    kind = net.pick(FREE_BACKBONES if net.dynamic else BACKBONES)
    net.tag(f"backbone {kind.__name__}")
    feature = kind(net, image, channels)
    net.keep(feature)
    return feature


def _head(net: Net, feature: Feature, classes: int) -> str:
    for _ in range(net.pick([0, 0, 1, 1, 2])):
        body = net.pick(FREE_BODIES if net.dynamic else BODIES)
        net.tag(f"body {body.__name__}")
        feature = body(net, feature)
        net.keep(feature)
    if not net.dynamic and net.chance(0.15):
        whole = net.pick(WHOLE_HEADS)
        net.tag(f"head {whole.__name__}")
        return whole(net, feature, classes)
    collapse, head = net.pick(FREE_COLLAPSES if net.dynamic else COLLAPSES), net.pick(HEADS)
    net.tag(f"collapse {collapse.__name__}")
    net.tag(f"head {head.__name__}")
    return head(net, collapse(net, feature), classes)


def _finish(net: Net, seed: int, logits: str, image: tuple[int, ...], classes: int) -> Sample:
    output = net.node("Softmax", logits, axis=-1) if net.chance(0.4) else logits
    declared = [size if size == 3 or not net.dynamic else f"side{axis}" for axis, size in enumerate(image)]
    return Sample(
        seed=seed,
        tags=tuple(net.tags),
        model=net.model(output, declared, (classes,)),
        targets=tuple(net.trunk),
        scores=(logits,),
        image=image,
        batch=net.batch if isinstance(net.batch, int) else 2,
        static=isinstance(net.batch, int),
        region=net.region,
        refusal_ok=net.refusal_ok,
    )
