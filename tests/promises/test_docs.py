"""The documentation: links lead somewhere, pictures are small, commands have options that exist."""

import re
import shlex
from pathlib import Path

import pytest

from xai_insert.cli import evaluate, explain, insert
from xai_insert.registry import METHODS_FOLDER, names
from xai_insert.tasks.choose import method

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "tests", "benchmarks")
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md"))))
}
COMMANDS = {"xai-insert": insert.main, "xai-explain": explain.main, "xai-evaluate": evaluate.main}
MOST_BYTES = 60_000


def text_of(page):
    return PAGES[page].read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for address in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" not in address:
            assert (PAGES[page].parent / address.partition("#")[0]).exists(), address


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_these_options(page):
    for block in re.findall(r"```(?:sh|yaml)\n(.*?)```", text_of(page), flags=re.DOTALL):
        for part in re.split(r"\n|&&|- run:", block):
            words = shlex.split(part, comments=True)
            if words and words[0] in COMMANDS:
                known = {name for option in COMMANDS[words[0]].params for name in option.opts}
                assert {word for word in words if word.startswith("-")} <= known, part


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_files_of_this_repository_are_there(page):
    for module in re.findall(r"python -m ((?:benchmarks|tests|model_zoo_fixtures)[\w.]*)", text_of(page)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for path in re.findall(
        r"\b(?:tests|model_zoo_fixtures|benchmarks|xai_insert|scripts)/[\w/]+(?:\.\w+)?", text_of(page)
    ):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", ["benchmarks/README.md", "tests/README.md"])
def test_an_index_lists_every_room_and_command(page):
    folder = (ROOT / page).parent
    for room in folder.glob("*/__init__.py"):
        assert f"`{room.parent.name}/`" in text_of(page)
    for path in folder.glob("*/*.py"):
        if re.search(r"^if __name__ == ", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert ".".join(path.relative_to(ROOT).with_suffix("").parts) in text_of(page)


def test_every_method_has_a_page_with_a_small_picture():
    pages = [page for page in PAGES if page.startswith("docs/methods/") and not page.endswith("README.md")]
    assert {f"docs/methods/{method(name).page}" for name in names(METHODS_FOLDER)} <= set(pages)
    for page in pages:
        assert "## When it misleads" in text_of(page)
        assert f"({Path(page).name})" in text_of("docs/methods/README.md")
        (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text_of(page))
        assert (PAGES[page].parent / picture).stat().st_size < MOST_BYTES
