"""What ends a run early, and what does not: full disks, readers that go, odd names, signals."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.commands import invoke
from model_zoo_fixtures.testbed.quick import some
from xai_insert import files
from xai_insert.cli.insert import main
from xai_insert.cli.worker import run_here

ROOT = Path(__file__).parents[2]
MAIN = "from xai_insert.cli.insert import main; main()"
HANGS = """
import xai_insert.cli.worker as worker
worker._START = '''
import os, sys, time
line = sys.stdin.readline()
import json
job = json.loads(line)
if "first" in job["model"]:
    print("read"); print("located"); print("run"); print(json.dumps({"source": "first", "check": "done"}), flush=True)
    sys.stdin.readline()
from xai_insert.files import _prefix
os.mkdir(f"out/{_prefix(os.getpid())}half")
open("ready", "w").close()
time.sleep(60)
'''
worker.Report.text = lambda self: self.source
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    model = models.classifier(models.CLOSED["global average pool"])
    onnx.save(model, tmp_path / "good.onnx")
    ov.save_model(ov.Core().read_model(tmp_path / "good.onnx"), tmp_path / "good.xml", compress_to_fp16=False)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*arguments, script=MAIN, **settings):
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def left_over(folder):
    return [path for path in Path(folder).rglob("*") if path.name.startswith(".") or path.name.endswith(".part")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_full_stdout_is_one_line_and_all_models_are_done(folder):
    with Path("/dev/full").open("w") as full:
        process = start("good.onnx", "good.xml", "-o", "out", stdout=full)
        errors = process.communicate()[1]
    assert process.returncode == 1
    assert errors.splitlines() == ["error: cannot write to the standard output: No space left on device"]
    assert {path.name for path in Path("out").iterdir()} == {"good.onnx", "good.xml", "good.bin"}


@pytest.mark.parametrize("kind", ["reader gone", "closed"])
def test_nobody_reads(folder, kind):
    script = MAIN if kind == "reader gone" else "import os, sys; os.closerange(0, 2); " + MAIN
    if kind == "closed":
        script = f"import os, sys; os.execv(sys.executable, [sys.executable, '-c', {MAIN!r}, *sys.argv[1:]])"
        script = f"import os; os.close(0); os.close(1); {script}"
    read, write = os.pipe()
    os.close(read)
    process = start("good.onnx", "good.xml", "-o", "out", script=script, stdout=write)
    os.close(write)
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert {path.name for path in Path("out").iterdir()} == {"good.onnx", "good.xml", "good.bin"}


@pytest.mark.parametrize("source", ["good.onnx", "good.xml"])
@pytest.mark.parametrize("size", some([100, 3000], 3000))
def test_a_file_that_may_not_grow(folder, source, size):
    goal = f"out/new{Path(source).suffix}"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    process = start(source, "-o", goal, preexec_fn=limit, stdout=subprocess.PIPE)
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1
    assert "internal error" not in errors
    assert "writ" in errors
    assert not list(Path("out").iterdir())


@pytest.mark.parametrize("most", some([5, 6, 8, 9, 10, 12, 16], 5, 12))
def test_few_open_files(folder, most):
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    process = start("good.onnx", "-o", "out/new.onnx", preexec_fn=limit, stdout=subprocess.PIPE)
    errors = process.communicate()[1]
    if process.returncode:
        assert process.returncode == 1
        assert len(errors.splitlines()) == 1, errors
        assert "internal error" not in errors
        assert not list(Path("out").iterdir())
    else:
        assert [path.name for path in Path("out").iterdir()] == ["new.onnx"]


def test_the_next_run_tidies_what_a_killed_one_left(folder):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone, alive = files._prefix(ended.pid), files._prefix(os.getppid())
    elsewhere = gone.replace(files._machine(), "0" * 8)
    for name in (gone, alive, elsewhere):
        Path(f"out/{name}half").mkdir()
        Path(f"out/{name}half/a.onnx").write_bytes(b"half")
        Path(f"out/{name}r.part").write_bytes(b"half")
    Path("kept").mkdir()
    Path("kept/mine").write_text("mine")
    Path(f"out/{gone}link").symlink_to(Path("kept").resolve())
    assert invoke(main, "good.onnx", "-o", "out/new.onnx", "--report", "out/r.json", obj=run_here).exit_code == 0
    kept = {f"{name}{what}" for name in (alive, elsewhere) for what in ("half", "r.part")}
    assert {path.name for path in Path("out").iterdir()} == {"new.onnx", "r.json"} | kept
    assert Path("kept/mine").read_text() == "mine"


@pytest.mark.parametrize("name", ["b.XML", "b.XmL"])
def test_suffix_in_capitals(folder, name):
    assert invoke(main, "good.xml", "-o", name, obj=run_here).exit_code == 0
    assert Path(name).is_file()
    assert "saliency_map" in {next(iter(port.get_names())) for port in ov.Core().read_model(name).outputs}
    assert not left_over(folder)


@pytest.mark.parametrize("name", some(["two\nlines", "caf\udce9", "L" * 240], "caf\udce9"))
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_odd_names(folder, name, suffix):
    process = start("good.onnx", "-o", f"out/{name}{suffix}", "--report", "r.json", stdout=subprocess.PIPE)
    lines, errors = process.communicate()
    if process.returncode:  # a library may refuse a name; then nothing is there
        assert len(errors.splitlines()) == 1
        assert "internal error" not in errors
        assert not list(Path("out").iterdir())
        return
    assert Path(f"out/{name}{suffix}").is_file()
    assert not left_over(folder)
    assert len([line for line in lines.splitlines() if "written" in line and suffix in line]) == 1
    assert json.loads(Path("r.json").read_text())["models"][0]["output"] == f"out/{name}{suffix}"


def test_a_newline_in_the_name_of_a_source(folder):
    Path("two\nlines.onnx").write_bytes(b"noise")
    result = invoke(main, "two\nlines.onnx", "-o", "out/a.onnx", obj=run_here)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("number", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_signals(folder, number, code, word):
    for name in ("first", "second"):
        Path(f"{name}.onnx").write_bytes(Path("good.onnx").read_bytes())
    arguments = ("first.onnx", "second.onnx", "-o", "out", "--report", "r.json")
    process = start(*arguments, script=HANGS + MAIN, stdout=subprocess.PIPE)
    end = time.monotonic() + 20
    while not Path("ready").exists():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(getattr(signal, number))
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == code
    assert errors.splitlines() == [f"error: {word}"]
    assert not list(Path("out").iterdir())
    assert [report["source"] for report in json.loads(Path("r.json").read_text())["models"]] == ["first"]
    assert not left_over(folder)
