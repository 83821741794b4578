"""Options of the test run, and the table of supported models that a run over the zoo writes."""

from pathlib import Path

import pytest

from tests.zoo import zoo_table
from xai_insert import insert_file

SHAPES = Path(__file__).parents[1] / "model_zoo_fixtures" / "shapes"


def pytest_addoption(parser):
    parser.addoption("--zoo", action="store_true", help="test the whole model zoo (minutes), not a subset")
    parser.addoption("--long", action="store_true", help="all cases of the long matrices, not some of each")
    parser.addoption("--zoo-table", metavar="FILE", type=Path, help="write what the tests of the whole zoo found")


def pytest_configure(config):
    path = config.getoption("--zoo-table")
    if path is not None and not config.getoption("--zoo"):
        raise pytest.UsageError("--zoo-table needs --zoo")
    if path is not None and not hasattr(config, "workerinput"):  # workers report to the one that writes
        config.pluginmanager.register(zoo_table.Writer(path))


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked as long, unless all of it is wanted or one is asked for by its name."""
    if config.getoption("--long") or any("::" in str(given) for given in config.args):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(scope="session")
def inserted_shapes(tmp_path_factory):
    """Folder with the shape classifier with a map, in both formats: `shapes.xml` and `shapes.onnx`."""
    folder = tmp_path_factory.mktemp("inserted")
    for suffix in ("xml", "onnx"):
        insert_file(SHAPES / f"shapes_cnn.{suffix}", folder / f"shapes.{suffix}")
    return folder
