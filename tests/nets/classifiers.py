"""Classifiers drawn from a grammar: what stands before the backbone, backbone, bodies, collapse, head and tail.

sample = generate(seed)     # the same seed gives the same network
verdict = judge(sample)     # see tests.nets.oracle
"""

from __future__ import annotations

import numpy as np

from tests.nets.backbones import BACKBONES
from tests.nets.bodies import BODIES
from tests.nets.graph import Feature, Net
from tests.nets.heads import COLLAPSES, HEADS
from tests.nets.oracle import Sample

SIDES = (16, 24, 32, 48)


def generate(seed: int) -> Sample:
    """One classifier."""
    net = Net(np.random.default_rng(seed))
    batch = net.pick([1, 1, "N", "N", 2, 3])
    net.batch = batch
    rows = net.pick(SIDES)
    columns = rows if net.chance(0.3) else net.pick(SIDES)
    channels, classes = net.pick([8, 12, 16, 24]), net.pick([3, 4, 5, 9, 16])
    backbone = net.pick(BACKBONES)
    net.tag(f"backbone {backbone.__name__}")
    feature = backbone(net, ("image", rows, columns), channels)
    net.keep(feature)
    logits = _head(net, feature, classes)
    return _finish(net, seed, logits, (3, rows, columns), classes)


def _head(net: Net, feature: Feature, classes: int) -> str:
    for _ in range(net.pick([0, 0, 1, 1, 2])):
        body = net.pick(BODIES)
        net.tag(f"body {body.__name__}")
        feature = body(net, feature)
        net.keep(feature)
    collapse, head = net.pick(COLLAPSES), net.pick(HEADS)
    net.tag(f"collapse {collapse.__name__}")
    net.tag(f"head {head.__name__}")
    return head(net, collapse(net, feature), classes)


def _finish(net: Net, seed: int, logits: str, image: tuple[int, ...], classes: int) -> Sample:
    output = net.node("Softmax", logits, axis=-1) if net.chance(0.4) else logits
    model = net.model(output, image, (classes,))
    return Sample(
        seed=seed,
        tags=tuple(net.tags),
        model=model,
        targets=tuple(net.trunk),
        scores=(logits,),
        image=image,
        batch=net.batch if isinstance(net.batch, int) else 2,
        static=isinstance(net.batch, int),
        region=net.region,
        refusal_ok=net.refusal_ok,
    )
