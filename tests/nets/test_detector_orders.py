"""Heads of detectors by kind: which channels are classes, in which order, of which levels, and what is no detector."""

from dataclasses import replace

import numpy as np
import pytest

from model_zoo_fixtures.testbed.nets import lookalikes, prompted
from model_zoo_fixtures.testbed.nets.design import Design
from model_zoo_fixtures.testbed.nets.detector_oracle import judge
from model_zoo_fixtures.testbed.nets.detectors import built
from model_zoo_fixtures.testbed.nets.graph import Net
from model_zoo_fixtures.testbed.nets.pyramids import Layout, pyramid

PLAIN = Design(
    classes=3,
    background="none",
    dropped=False,
    objectness="none",
    multiplied=False,
    activation="Sigmoid",
    fields=(),
    fused=False,
    form="deltas",
    reported="xyxy",
    normalised=False,
    layout=Layout("conv", False, "cells", False),
)
SOFTMAX = replace(PLAIN, background="first", dropped=True, activation="Softmax")
TOKENS = Layout("tokens", False, "cells", True)
SLOWER = Layout("conv", True, "cells", False)
COLUMNS = Layout("conv", False, "columns", True)

KINDS = {
    "heads of tokens with anchors": ("suppressed", replace(PLAIN, layout=TOKENS), 2),
    "as many classes with the background as anchors": ("separate", SOFTMAX, 4),
    "one class beside a dropped background": ("best flat", replace(SOFTMAX, classes=1), 2),
    "classes slower than anchors, and a background": ("best", replace(SOFTMAX, layout=SLOWER), 3),
    "undecoded scores in rows, classes slower": ("joined", replace(PLAIN, activation="none", layout=SLOWER), 4),
    "undecoded scores that are suppressed": ("suppressed", replace(PLAIN, activation="none"), 2),
    "undecoded scores of two classes behind a box": ("joined", replace(PLAIN, classes=2, activation="none"), 1),
    "boxes of classes": ("class boxes", replace(SOFTMAX, layout=Layout("conv", False, "cells", True)), 1),
    "outputs of each level as columns": ("levels", replace(PLAIN, classes=4, objectness="beside", layout=COLUMNS), 4),
    "boxes and classes in one head, without objectness": ("separate", replace(PLAIN, fused=True), 2),
    "one class times objectness in one head": (
        "joined",
        replace(PLAIN, classes=1, fused=True, objectness="beside", multiplied=True, fields=("coefficients",)),
        1,
    ),
    "key points beside the objectness of anchors": (
        "joined",
        replace(PLAIN, objectness="apart", fields=("points",), layout=Layout("conv", False, "anchors", False)),
        4,
    ),
    "key points behind objectness and classes": (
        "joined",
        replace(PLAIN, fused=True, objectness="beside", fields=("points",)),
        1,
    ),
    "four sides and four classes": ("separate", replace(PLAIN, classes=4, objectness="beside"), 1),
}


def net(batch=1):
    made = Net(np.random.default_rng(0))
    made.batch = batch
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [(64, 96), (32, 64)], ids=["grids", "a grid of one row"])
def test_classes_are_found(kind, sides):
    output, design, anchors = KINDS[kind]
    made = net()
    grids = [replace(grid, anchors=anchors) for grid in pyramid(made, *sides, 3, 8, 8)]
    verdict = judge(built(made, 0, output, design, grids, sides))
    assert verdict.judgement == "right", verdict.reason


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [prompted.text_scores, prompted.token_boxes, prompted.first_stage])
def test_products_with_embeddings_are_heads(kind, seed):
    made = Net(np.random.default_rng(seed))
    verdict = judge(kind(made, seed))
    assert verdict.acceptable, (made.tags, verdict.reason)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", lookalikes.LOOKALIKES)
def test_what_has_no_boxes_is_no_detector(kind, seed):
    verdict = judge(kind(Net(np.random.default_rng(seed)), seed))
    assert verdict.acceptable, verdict.reason
