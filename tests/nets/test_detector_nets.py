"""Generated detectors, and what looks like them: the map is that of the class scores, or there is none.

The default run takes some seeds; `pytest --zoo tests/nets/test_detector_nets.py`, as CI does, takes all.
"""

import logging

import pytest

from model_zoo_fixtures.testbed.nets.detector_oracle import judge
from model_zoo_fixtures.testbed.nets.detectors import generate

QUICK = range(10)
SEEDS = [*range(100), 121, 173, 277]  # 121 and 173 have key points; of 277 two levels have one size and one class
SEEDS += [283, 659, 736]  # scores times an objectness, attributes as many as classes, bins beside four classes
SEEDS += [827, 837, 905]  # boxes and raw scores of queries four wide, heads parted among outputs, two segmentations
SEEDS += [1017, 1142, 1439, 1465]  # key points, four sigmoid scores of tokens, anchors that vary, results that vary
SEEDS += [2181, 2253, 2565, 2984]  # key points before classes, two levels of one size, a scale, a side of a box in 0..1
SEEDS += [496, 589, 1136]  # a segmentation beside four channels, raw bins beside four classes, one beside a map of one
SEEDS += [8107, 8258, 10254]  # a sigmoid of one score beside sigmoid boxes, points beside boxes, sides that hardly move
SEEDS += [13091]  # one class times its objectness in one head, beside the visibilities of points
SEEDS += [14791, 15426]  # sides of boxes that stay in 0..1, on one level or of some anchors
SEEDS += [40449, 40863, 42068]  # two levels of one size, bins with an objectness, a side that hardly moves
SEEDS += [42276, 40130]  # undecoded levels of one size, four numbers of a box beside five classes
SEEDS += [40934]  # levels of one size whose objectness is multiplied to their classes
SEEDS += [3165, 3196, 5111, 5932]  # a scale, one class beside boxes with objectness, classes first, a level of a row
RIGHT = 0.8  # the others are refused


@pytest.fixture(scope="module")
def verdicts(request):
    logging.getLogger("xai_insert").setLevel(logging.ERROR)
    return [judge(generate(seed)) for seed in (SEEDS if request.config.getoption("--zoo") else QUICK)]


def test_no_map_is_wrong(verdicts):
    wrong = [(v.sample.seed, v.sample.tags, v.reason) for v in verdicts if v.judgement == "wrong"]
    assert not wrong, wrong[:5]


def test_most_maps_are_right(verdicts):
    refused = [(v.sample.seed, v.sample.tags, v.reason) for v in verdicts if v.judgement == "refused"]
    assert sum(v.acceptable for v in verdicts) >= RIGHT * len(verdicts), refused[:5]
