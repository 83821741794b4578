"""Damaged and boundless pictures, and what else ends a run of `xai-explain` early."""

import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model_zoo_fixtures.testbed.explaining import WithMap, call, on_page
from model_zoo_fixtures.testbed.quick import some

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "model_zoo_fixtures" / "shapes"
MODEL = WithMap("shapes_cnn.xml")
MAIN = "from xai_insert.cli.explain import main; main()"
SIDE = 60000

PICTURE = (SHAPES / "images" / "shape_0.png").read_bytes()
HUGE = {
    "bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, *[0] * 6),
    "pnm": b"P6\n%d %d\n255\n" % (SIDE, SIDE) + bytes(100),
    "pam": b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" % (SIDE, SIDE) + bytes(100),
    "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (SIDE, SIDE) + bytes(100),
    "sun": struct.pack(">8I", 0x59A66A95, SIDE, SIDE, 24, 0, 1, 0, 0) + bytes(100),
    "pam of 15000": b"P7\nWIDTH 15000\nHEIGHT 15000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(100),
}
DAMAGED = {
    "cut off": PICTURE[: len(PICTURE) // 2],
    "tiff without strips": b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHIIHHII", 256, 4, 1, 9, 257, 4, 1, 9),
    "noise behind a head": PICTURE[:60] + bytes(range(256)) * 4,
}


def start(*arguments, script=MAIN, **settings):
    command = [sys.executable, "-c", script, str(MODEL), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **settings)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    shutil.copy(SHAPES / "images" / "shape_0.png", "images/good.png")
    return tmp_path


def test_no_picture_ends_a_run_or_prints_but_one_line(folder):
    for name, content in (HUGE | DAMAGED).items():
        Path(f"images/{name}.png").write_bytes(content)
    process = start("images", "-o", "o", stdout=subprocess.PIPE)
    lines, errors = process.communicate()
    failed = [line for line in errors.splitlines() if line.startswith("error: cannot read images/")]
    assert [line for line in errors.splitlines() if line not in failed and not line.startswith("note:")] == []
    assert {name for name in HUGE if f"error: cannot read images/{name}.png" in errors} == set(HUGE)
    assert process.returncode == 1
    assert f"{len(failed)} not readable" in lines
    assert Path("o/images/good.jpg").is_file()
    assert Path("o/index.html").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_full_stdout(folder):
    with Path("/dev/full").open("w") as full:
        process = start("images", "-o", "o", stdout=full)
        errors = process.communicate()[1]
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "error: cannot write to the standard output: No space left on device"
    assert Path("o/index.html").is_file()


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals(folder, number, code):
    for index in range(400):
        shutil.copy("images/good.png", f"images/{index}.png")
    process = start("images", "-q", "-o", "o", stdout=subprocess.PIPE)
    end = time.monotonic() + 60
    while not Path("o/results.jsonl").exists() or not Path("o/results.jsonl").stat().st_size:
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert Path("o/index.html").is_file()
    assert not list(Path("o").rglob("*.part"))


def limited(kind, most):
    def limit():
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))

    return limit


@pytest.mark.parametrize("size", some([50, 1500, 4000], 1500))
def test_a_file_that_may_not_grow(folder, size):
    """As on a full disk: one line, nothing partial, and the next run finishes."""
    process = start("images", "-q", "-o", "o", stdout=subprocess.PIPE, preexec_fn=limited(resource.RLIMIT_FSIZE, size))
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert [line[:19] for line in errors.splitlines() if not line.startswith("note:")] == ["error: cannot write"]
    assert not list(Path("o").rglob("*.part"))
    result = call(MODEL, "images", "-q", "-o", "o")
    assert result.stderr.count("error:") == result.exit_code == 0
    assert len(on_page(Path("o"))) == 1


@pytest.mark.parametrize("most", some([6, 8, 10, 14, 20, 30], 10))
def test_few_open_files(folder, most):
    process = start("images", "-q", "-o", "o", stdout=subprocess.PIPE, preexec_fn=limited(resource.RLIMIT_NOFILE, most))
    errors = process.communicate()[1]
    if process.returncode:
        assert process.returncode == 1
        assert "Traceback" not in errors
        assert errors.splitlines()
        assert all(line.startswith(("error: ", "note: ")) for line in errors.splitlines()), errors
    assert not list(Path("o").rglob("*.part"))
    result = call(MODEL, "images", "-q", "-o", "o")
    assert result.stderr.count("error:") == result.exit_code == 0


@pytest.mark.parametrize("most", some(range(6, 12), 8))
def test_few_open_files_lose_no_record(folder, most):
    """A journal that cannot be read is not taken for an empty one."""
    assert call(MODEL, "images", "-q", "-o", "o").exit_code == 0
    before = Path("o/results.jsonl").read_bytes()
    limit = limited(resource.RLIMIT_NOFILE, most)
    start("images", "-q", "-o", "o", stdout=subprocess.PIPE, preexec_fn=limit).communicate()
    assert Path("o/results.jsonl").read_bytes() == before
