"""Heads of detectors by kind: which channels are classes, in which order, of which levels, and what is no detector."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from model_zoo_fixtures.testbed.nets import lookalikes, prompted
from model_zoo_fixtures.testbed.nets.design import Design
from model_zoo_fixtures.testbed.nets.detector_oracle import judge, saliency
from model_zoo_fixtures.testbed.nets.detectors import built
from model_zoo_fixtures.testbed.nets.graph import Net
from model_zoo_fixtures.testbed.nets.oracle import distance
from model_zoo_fixtures.testbed.nets.pyramids import Layout, pyramid
from xai_insert import Options, insert
from xai_insert.errors import AmbiguousModelError
from xai_insert.locate.detector import Channels
from xai_insert.probe.heads import Effect
from xai_insert.probe.rivals import silent_class

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
JOINT = replace(PLAIN, objectness="beside", multiplied=True, fused=True)

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
    "anchors inside, one score of each class": ("separate", replace(JOINT, layout=SLOWER), 3),
    "anchors inside, a row of each box": ("joined", replace(JOINT, layout=SLOWER), 3),
    "anchors inside, one class": ("separate", replace(JOINT, classes=1, layout=SLOWER), 3),
    "anchors inside, no objectness": ("separate", replace(JOINT, objectness="none", layout=SLOWER), 2),
    "anchors inside, as many as classes": ("suppressed", replace(JOINT, classes=4, layout=SLOWER), 4),
    "objectness and classes before the box": (
        "joined",
        replace(JOINT, multiplied=False, first=("objectness", "scores")),
        3,
    ),
    "classes before the box": ("joined", replace(JOINT, multiplied=False, first=("scores",)), 2),
    "classes before the objectness, which the rows have before them": (
        "joined",
        replace(JOINT, multiplied=False, first=("boxes", "scores")),
        2,
    ),
    "scores with their objectness before visible points": (
        "joined",
        replace(JOINT, fields=("visible points",)),
        1,
    ),
    "key points between objectness and classes": (
        "joined",
        replace(JOINT, multiplied=False, fields=("points",), between=True),
        2,
    ),
    "key points between objectness and one class": (
        "joined",
        replace(JOINT, classes=1, multiplied=False, fields=("points",), between=True),
        1,
    ),
    "a quality of each anchor before all else": ("separate", replace(JOINT, quality=True), 3),
    "the same, not multiplied": ("joined", replace(JOINT, multiplied=False, quality=True), 3),
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


@pytest.mark.parametrize("anchors", [1, 2])
def test_scores_behind_a_box_that_may_hold_an_objectness(anchors):
    made = net()
    grids = [replace(grid, anchors=anchors) for grid in pyramid(made, 64, 64, 2, 8, 8)]
    sample = built(made, 0, "joined", replace(JOINT, classes=4, objectness="none", multiplied=False), grids, (64, 64))
    told = insert(sample.model, Options(output_dtype="f32", num_classes=4))
    nearest = min(distance(saliency(told.model, sample.feeds()), right) for right in sample.maps())
    assert nearest <= 1
    if anchors == 1:
        with pytest.raises(
            AmbiguousModelError, match="objectness and 3 classes, or 4 classes; say which: --num-classes"
        ):
            insert(sample.model)
    else:  # as YOLO's, one layer gives several boxes
        assert "first is taken for objectness" in insert(sample.model).report.reason


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


@pytest.mark.parametrize(
    ("classes", "effects", "background"),
    [
        (1, [Effect.SILENT, Effect.CLASS, Effect.CLASS], None),  # of one class, whose first anchor is never the best
        (2, [Effect.SILENT, Effect.CLASS, Effect.CLASS, Effect.CLASS], None),
        (2, [Effect.SILENT, Effect.CLASS, Effect.FALLING, Effect.CLASS], 0),
    ],
)
def test_a_background_is_a_class_of_several_that_no_anchor_reports(classes, effects, background):
    responses = {channel: SimpleNamespace(effect=effect) for channel, effect in enumerate(effects)}
    head = SimpleNamespace(index=0, is_class=True, is_fused=False, responses=responses)
    order = Channels(0, classes, len(effects) // classes, classes, classes_first=False)
    assert silent_class([head], {0: order}) == background
