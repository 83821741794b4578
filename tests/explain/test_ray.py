"""`xai-explain --engine ray`; what needs Ray is skipped without it."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from model_zoo_fixtures.testbed.explaining import IMAGES, SHAPES, call, rows
from xai_insert.explain import on_ray
from xai_insert.explain.errors import RunError
from xai_insert.explain.files import Source

os.environ.setdefault(on_ray._LOOPBACK_ALONE, "0")  # before Ray is imported
MODEL = SHAPES / "shapes_cnn.xml"


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:", "a:b", "ray://x"])
def test_what_is_no_address(address):
    with pytest.raises(RunError, match="not the address of a Ray cluster"):
        on_ray._is_of_loopback(address)


def test_a_dead_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert on_ray._is_of_loopback(f"127.0.0.1:{port}")
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(RunError, match=f"no Ray cluster answers at {address}: Connection refused"):
            on_ray._is_of_loopback(address)


def test_lists_of_images():
    sources = [Source(Path(f"/{number}.png"), str(number)) for number in range(2 * on_ray.PART + 1)]
    lists = list(on_ray._lists(iter(sources)))
    assert len(lists) == 3
    assert lists[-1] == '[["/128.png", "128"]]'


def test_a_dead_address_is_one_line(tmp_path):
    pytest.importorskip("ray")
    arguments = ["-o", tmp_path, "--format", "jsonl", "--engine", "ray", "--address", "127.0.0.1:9"]
    result = call(MODEL, IMAGES[0], *arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: no Ray cluster answers at 127.0.0.1:9: Connection refused"


def test_every_image_once(tmp_path):
    pytest.importorskip("ray")
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(on_ray.PART + 10):
        shutil.copy(IMAGES[number % len(IMAGES)], folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"none")
    result = call(MODEL, folder, "-o", tmp_path / "out", "--format", "jsonl", "--engine", "ray")
    assert result.exit_code == 1
    assert f"{on_ray.PART + 10} explained, 1 not readable" in result.stdout
    assert "bad.png" in result.stderr
    assert len({row["source"] for row in rows(tmp_path / "out")}) == len(rows(tmp_path / "out")) == on_ray.PART + 11
    call(MODEL, folder, "-o", tmp_path / "one", "--format", "jsonl")
    assert [row["maps"] for row in rows(tmp_path / "one")] == [row["maps"] for row in rows(tmp_path / "out")]
