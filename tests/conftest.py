"""Options of the test run, and the table of supported models that a run over the zoo writes."""

import random
from collections import defaultdict
from pathlib import Path

import pytest

from tests.zoo import zoo_table
from xai_insert import Options, insert_file

SHAPES = Path(__file__).parents[1] / "model_zoo_fixtures" / "shapes"


def pytest_addoption(parser):
    parser.addoption("--zoo", action="store_true", help="test the whole model zoo (minutes), not a subset")
    parser.addoption("--long", action="store_true", help="all cases of every matrix, not some of each")
    parser.addoption("--zoo-table", metavar="FILE", type=Path, help="write what the tests of the whole zoo found")


def pytest_configure(config):
    path = config.getoption("--zoo-table")
    if path is not None and not config.getoption("--zoo"):
        raise pytest.UsageError("--zoo-table needs --zoo")
    if path is not None and not hasattr(config, "workerinput"):  # workers report to the one that writes
        config.pluginmanager.register(zoo_table.Writer(path))


MATRICES = {"explain", "nets", "oracles", "robust", "zoo"}
"""Rooms where one test may stand for dozens of models, each of which is inserted into."""
CASES = 2


def pytest_collection_modifyitems(config, items):
    """Take some cases of each matrix, always the same ones, and none that is marked as long.

    All are taken with `--long`, and where files or tests are named.
    """
    named = [given for given in config.args if ".py" in str(given)]
    if named or config.getoption("--long") or config.getoption("--zoo") or config.getoption("keyword"):
        return
    cases = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("long"):
            cases[item.path, item.originalname].append(item)
    kept = set()
    for (path, name), group in cases.items():
        most = CASES if path.parent.name in MATRICES else len(group)
        kept.update(random.Random(name).sample(group, min(most, len(group))))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.fixture(scope="session")
def inserted_shapes(tmp_path_factory):
    """Folder with the shape classifier with a map, in both formats: `shapes.xml` and `shapes.onnx`."""
    folder = tmp_path_factory.mktemp("inserted")
    for suffix in ("xml", "onnx"):
        insert_file(SHAPES / f"shapes_cnn.{suffix}", folder / f"shapes.{suffix}", Options(check=False))
    return folder
