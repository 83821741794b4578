"""Outputs are replaced whole: whoever stops the tool at any step finds the old model or the new one."""

import os

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.replaced_models import KINDS, results, write_models
from xai_insert import Options, insert_file

UNCHECKED = Options(check=False)  # what is replaced is tested, not what is inserted


class Stop(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_leaves_a_whole_model(tmp_path, monkeypatch, kind, order):
    sources = [write_models(tmp_path, kind)[index] for index in order]
    suffix = sources[0].suffix
    image = np.random.default_rng(0).standard_normal((1, 3, models.SIDE, models.SIDE)).astype(np.float32)
    (fresh := tmp_path / "fresh").mkdir()
    for name, source in zip(("old", "new"), sources, strict=True):
        insert_file(source, fresh / f"{name}{suffix}", UNCHECKED)
    old, new = (results(fresh / f"{name}{suffix}", image) for name in ("old", "new"))
    replace, left, seen = os.replace, 0, []

    def stopping(*arguments):
        nonlocal left
        if not left:
            raise Stop
        left -= 1
        replace(*arguments)

    steps = 0
    while not seen or seen[-1] != "finished":
        (goal := tmp_path / f"goal{steps}").mkdir()
        insert_file(sources[0], goal / f"model{suffix}", UNCHECKED)
        monkeypatch.setattr(os, "replace", stopping)
        left = steps
        try:
            insert_file(sources[1], goal / f"model{suffix}", UNCHECKED)
            seen.append("finished")
        except Stop:
            found = results(goal / f"model{suffix}", image)
            is_old, is_new = (len(found) == len(them) and all(map(np.array_equal, found, them)) for them in (old, new))
            assert is_old or is_new, f"after {steps} steps"
            seen.append("old" if is_old else "new")
        monkeypatch.setattr(os, "replace", replace)
        steps += 1
    assert seen[0] == "old"
    assert seen == [*sorted(seen[:-1], reverse=True), "finished"], "back and forth"
    for path in fresh.glob("new*"):
        again = goal / path.name.replace("new", "model")
        if path.suffix in (".bin", ".xml", ".data") or kind != KINDS[2]:
            assert again.read_bytes() == path.read_bytes(), "the steps leave no trace"
    assert not [path for path in goal.iterdir() if path.name.startswith(".")]


def test_the_same_model_again(tmp_path):
    source = write_models(tmp_path, "openvino")[0]
    insert_file(source, tmp_path / "out.xml")
    before = [(tmp_path / f"out{suffix}").read_bytes() for suffix in (".xml", ".bin")]
    insert_file(source, tmp_path / "out.xml")
    assert [(tmp_path / f"out{suffix}").read_bytes() for suffix in (".xml", ".bin")] == before
