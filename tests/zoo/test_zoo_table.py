"""The table of supported models says what the zoo's tests found, and is not older than the zoo."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from model_zoo_fixtures import failures, fixtures
from tests.zoo import zoo_table

TABLE = Path(__file__).parents[2] / "docs" / "supported-models.md"


def test_every_fixture_stands_in_the_table():
    assert zoo_table.cells(TABLE.read_text(encoding="utf-8")) == {fixture.id for fixture in fixtures()}


def test_every_export_that_is_missing_stands_below_it():
    text = TABLE.read_text(encoding="utf-8")
    for arch, reasons in failures().items():
        for exporter, reason in reasons.items():
            line = next(line for line in text.splitlines() if line.startswith(f"* {arch} (") and line.endswith(reason))
            assert exporter in line


def reported(name, properties=(), error=""):
    return SimpleNamespace(
        nodeid=f"tests/zoo/test_zoo.py::test_fixture[{name}]",
        when="call",
        failed=bool(error),
        longreprtext=error,
        user_properties=properties,
    )


def found(difference, **beside):
    report = SimpleNamespace(
        method="recipro-cam", form="closed form", saliency_map={"shape": (1, 1000, 7, 7)}, mflops=1.25
    )
    rows = []
    (fixture,) = fixtures(id="resnet50.legacy")
    zoo_table.record(lambda *row: rows.append(row), fixture, report, difference, **beside)
    return rows


@pytest.fixture
def written(tmp_path):
    """Two runs over parts of the zoo, of which the second mends the first."""
    path = tmp_path / "rows.json"
    first, second = zoo_table.Writer(path), zoo_table.Writer(path)
    first.pytest_runtest_logreport(reported("resnet50.legacy", error="def f():\nE   ValueError: no\nE   more"))
    first.pytest_runtest_logreport(reported("resnet50.dynamo", error="E   KeyError: 'a | b'"))
    first.pytest_sessionfinish()
    second.pytest_runtest_logreport(reported("resnet50.legacy", found(2.6e-7, exact=True)))
    second.pytest_sessionfinish()
    return zoo_table.table(list(json.loads(path.read_text()).values()))


def test_runs_over_parts_of_the_zoo_come_together(written):
    (line,) = (line for line in written.splitlines() if line.startswith("| resnet50 |"))
    assert "| recipro-cam, closed form | 7x7 | 3e-07 | *failed* | 1.2 |" in line
    assert zoo_table.cells(written) == {"resnet50.legacy", "resnet50.dynamo"}


def test_exact_maps_are_counted(written):
    assert (
        "Of the 1 exports for which Recipro-CAM has no map, or has to run the rest of the model masked, 1 have"
        in written
    )


def test_a_failure_stands_in_the_table_with_its_reason(written):
    assert "* resnet50 (dynamo): KeyError: 'a / b'" in written
    assert "0 of 1 architectures (0.0 %), 1 of 2 exports" in written
