"""Planted faults: what the locator found is transposed, mirrored, turned, rolled, widened or exchanged, and refused.

The quick run takes one fixture, `--long` three; `pytest --zoo tests/nets/test_planted_faults.py` takes thirty.
"""

from dataclasses import replace

from model_zoo_fixtures import fixtures, materialise
from model_zoo_fixtures.testbed.quick import some
from xai_insert import Options
from xai_insert.check_place import places_of
from xai_insert.errors import MisplacedMapError
from xai_insert.formats.backend import load
from xai_insert.locate.inputs import image_inputs
from xai_insert.tasks.choose import make_plan

QUICK = ["yolov8n.legacy", "mobilenetv3_large_100.ptir", "deit_tiny_distilled_patch16_224.legacy"]
CHOSEN = [
    *QUICK,
    "convnext_tiny.legacy",
    "densenet121.ptir",
    "dla34.legacy",
    "edgenext_xx_small.ptir",
    "efficientformer_l1.legacy",
    "efficientnet_b0.ptir",
    "ghostnet_050.legacy",
    "mobilenetv3_large_100.legacy",
    "regnetx_002.legacy",
    "resnet18_catavgmax.ptir",
    "resnet50.legacy",
    "squeezenet1_1.legacy",
    "swin_tiny_patch4_window7_224.legacy",
    "vit_tiny_patch16_224.ptir",
    "botnet26t_256.ptir",
    "levit_128.legacy",
    "centernet.ptir",
    "fasterrcnn_mobilenet_v3_large_320_fpn.ptir",
    "hf_detr.legacy",
    "hf_rt_detr.legacy",
    "libre_dfine.ptir",
    "nanodet.legacy",
    "ssd300_vgg16.ptir",
    "ssd_dense_drop_first.legacy",
    "yolov5_anchor.legacy",
    "yolox_n.ptir",
    "maskrcnn_resnet18_fpn.legacy",
]
# Wide views of weights without training: the blocks say nothing, so a fault cannot show.
SILENT = {"levit_128.legacy", "ssd300_vgg16.ptir"}


def pytest_generate_tests(metafunc):
    if "fixture" in metafunc.fixturenames:
        names = CHOSEN if metafunc.config.getoption("--zoo") else QUICK
        chosen = {fixture.id: fixture for fixture in fixtures() if fixture.id in names}
        metafunc.parametrize("fixture", some([chosen[name] for name in names], chosen[QUICK[1]]), ids=names)


def framed(feature, *lines, **changes):
    return replace(feature, frame=replace(feature.frame, lines=lines, **changes))


def backwards(line, size):
    return -line[0], line[1] + line[0] * (size - 1)


def transposed(feature):
    return framed(feature, *reversed(feature.frame.lines), transposed=not feature.frame.transposed)


def mirrored(feature):
    rows, columns = feature.frame.lines
    return framed(feature, rows, backwards(columns, feature.grid[1]))


def flipped(feature):
    rows, columns = feature.frame.lines
    return framed(feature, backwards(rows, feature.grid[0]), columns)


def turned(feature):
    return framed(feature, *map(backwards, feature.frame.lines, feature.grid))


def rolled(feature):
    return framed(feature, *feature.frame.lines, rolled=(feature.grid[0] // 2, feature.grid[1] // 2))


def widened(feature):
    """Tokens in rows of another length; maps know theirs."""
    (height, width), (rows, columns) = feature.grid, feature.frame.lines
    if len(feature.grid_axes) == 2 or height % 2:
        return transposed(feature)
    wide = framed(feature, (rows[0] * 2, rows[1] + rows[0] / 2), (columns[0] / 2, columns[1] - columns[0] / 4))
    return replace(wide, grid=(height // 2, width * 2))


def exchanged(features):
    """Rows for columns of a map, the sizes of a grid of tokens, or the place of the finest level for the coarsest."""
    first, *middle, last = features if len(features) > 1 else (*features, None)
    if last is not None:
        return [framed(first, *last.frame.lines), *middle, framed(last, *first.frame.lines)]
    return [replace(first, grid_axes=first.grid_axes[::-1], grid=first.grid[::-1])] if len(first.grid_axes) == 2 else []


FAULTS = {
    fault.__name__: lambda features, fault=fault: [fault(feature) for feature in features]
    for fault in (transposed, mirrored, flipped, turned, rolled, widened)
} | {"exchanged": exchanged}


class Once:
    """A model that is compiled once, whatever is asked of it."""

    def __init__(self, loaded):
        self._loaded, self._runner = loaded, None

    def between(self, features, results, **how):
        self._runner = self._runner or self._loaded.between(features, results, **how)
        return self._runner


def test_faults_are_refused(fixture, tmp_path):
    loaded = load(materialise(fixture, tmp_path), {})
    graph = loaded.view()
    image = image_inputs(graph)[0]
    found = [feature for feature in make_plan(loaded, graph, Options()).found.placed() if feature.positions != 1]
    asked = Once(loaded)
    assert places_of(found, asked, image) == ("axes" if fixture.id in SILENT else "blocks")
    if fixture.id in SILENT:
        return
    passed = []
    for name, fault in FAULTS.items():
        faulty = fault(found)
        try:
            if faulty:
                places_of(faulty, asked, image)
                passed.append(name)
        except MisplacedMapError:
            pass
    assert not passed


def test_there_are_thirty_and_blocks_prove_most():
    assert {fixture.id for fixture in fixtures()}.issuperset(CHOSEN)
    assert len(CHOSEN) == 30
    assert len(CHOSEN) - len(SILENT) >= 20
