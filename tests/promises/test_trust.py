"""docs/trust.md: each promise names tests, and these are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
SECTION = PAGE.split("## The promises")[1].split("\n## ")[0]
ROWS = [line for line in SECTION.splitlines() if line.startswith("| ")][2:]


def run_by_pytest(path):
    """The tests of a file: functions of the module, not skipped whatever happens."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", ())]
        if isinstance(node, ast.FunctionDef) and not any(
            "mark.xfail" in mark or "mark.skip(" in mark for mark in marks
        ):
            found.add(node.name)
    return found


@pytest.mark.parametrize("row", ROWS)
def test_every_promise_names_a_test(row):
    promise, held = (cell.strip() for cell in row.strip("|").split(" | "))
    assert promise.endswith(".")
    assert re.fullmatch(r"(`tests/[\w/]+\.py::test_\w+`(, )?)+", held)


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_the_tests_that_are_named_are_there(path, name):
    assert name in run_by_pytest(path)


def test_files_that_are_named_are_there():
    for path in re.findall(r"\btests/[\w/]+(?:\.py)?", PAGE):
        assert (ROOT / path).exists(), path


def test_the_list_is_long_enough_to_be_one():
    assert len(ROWS) >= 30
