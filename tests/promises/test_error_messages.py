"""`docs/errors.md` against the source: each message that it explains is one that the tools can print."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import xai_insert
from xai_insert import errors

ROOT = Path(xai_insert.__file__).parent
PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| `")
]  # fmt: skip
MESSAGES = [message for cells in ROWS if len(cells) == 3 for message in re.findall(r"`([^`]+)`", cells[0])]
VARIABLE = "\0"


def template(node):
    """A string of the source, with a mark for what is filled in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or VARIABLE for part in node.values)
    return None


def templates():
    """Every string of the source, those that name a constant string of its module filled in."""
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        yield from (text for node in ast.walk(tree) if id(node) not in docs and (text := template(node)))


@pytest.fixture(scope="module")
def source():
    """What the tools can print; read when it is asked for, and not by every worker that collects tests."""
    return [re.sub(r"\s+", " ", text) for text in templates()]


def is_said(message, said):
    """Whether a template contains the message, where each `…` stands for what is filled in, once or side by side."""
    filled = f"{VARIABLE}(?:[^a-z]{{0,3}}{VARIABLE})*"
    return re.search(filled.join(map(re.escape, message.split("…"))), said) is not None


def test_messages_are_real(source):
    assert [message for message in MESSAGES if not any(is_said(message, said) for said in source)] == []


def test_the_page_was_read(source):
    assert len(MESSAGES) > 50
    assert not any(is_said("the model is … and …, which nobody says", said) for said in source)


def test_every_class_is_listed_as_it_says_itself():
    public = {
        name: inspect.getdoc(kind).splitlines()[0]
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.XaiInsertError) and kind is not errors.XaiInsertError
    }
    listed = {cells[0].strip("`| "): cells[1].strip(" |") for cells in ROWS if len(cells) == 2}
    assert listed == public
