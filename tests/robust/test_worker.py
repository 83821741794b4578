"""The process in which the command line handles models: what a crash or a hang in it does to the call."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import openvino.opset13 as opset
import pytest

from model_zoo_fixtures.testbed import models
from xai_insert import Options
from xai_insert.cli import worker
from xai_insert.cli.worker import Job, Worker, run_here
from xai_insert.cli.workers import Workers
from xai_insert.report import Report

CRASH = "import os, signal, sys; sys.stdin.readline(); os.kill(os.getpid(), signal.SIGSEGV)"
KILLED = "import os, signal, sys; sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)"
QUIT = "import sys; sys.stdin.readline(); sys.exit(3)"
SLEEP = "import time; time.sleep(60)"
BUSY = "import sys; sys.stdin.readline(); print('read', flush=True)\nwhile True: pass"
NAPPING = (
    "import json, sys, time; sys.stdin.readline(); end = time.monotonic() + 1\n"
    "while time.monotonic() < end: time.sleep(0.01); sum(range(20000))\n"
    "print(json.dumps({'source': 'done'}), flush=True)"
)
SLOW_AFTER_RUN = (
    "import json, sys, time; sys.stdin.readline(); print('read', flush=True); print('located', flush=True); "
    "print('run', flush=True); time.sleep(1); print(json.dumps({'source': 'done'}), flush=True)"
)


@pytest.fixture
def job(tmp_path):
    onnx.save(models.classifier(models.CLOSED["global average pool"]), tmp_path / "good.onnx")
    return Job(tmp_path / "good.onnx", tmp_path / "out.onnx", Options(), dry_run=False)


def test_the_same_report_as_without_a_process(job):
    with Worker(0) as work:
        found = work(job).as_dict()
    expected = run_here(job).as_dict()
    assert {key: found[key] for key in ("source", "output", "method", "bytes_after", "error")} == {
        key: expected[key] for key in ("source", "output", "method", "bytes_after", "error")
    }
    assert found["target"]["grid"] == [6, 6]


def test_options_reach_the_process(job):
    options = Options(output_dtype="f32", input_shapes={"image": (2, 3, 16, None)}, saliency_size=None)
    with Worker(0) as work:
        report = work(dataclasses.replace(job, options=options, dry_run=True))
    assert report.error is None
    assert report.saliency_map["dtype"] == "f32"
    assert report.saliency_map["shape"] == [2, 5, 8, None]


@pytest.mark.parametrize(("script", "message"), [(CRASH, "SIGSEGV"), (QUIT, "exit code 3"), (KILLED, "memory ran out")])
def test_a_crash_is_the_failure_of_one_file(job, monkeypatch, script, message):
    start = worker._START
    with Worker(0) as work:
        monkeypatch.setattr(worker, "_START", script)
        assert message in work(job).error
        monkeypatch.setattr(worker, "_START", start)
        assert work(job).error is None


def test_a_reader_that_never_ends_is_given_up(job, monkeypatch):
    monkeypatch.setattr(worker, "_START", SLEEP)
    with Worker(0, seconds=0.2) as work:
        assert "reading the model made no progress for 0 s" in (error := work(job).error)
        assert "--time-limit" in error


def test_a_step_that_never_ends_is_given_up_by_its_name(job, monkeypatch):
    monkeypatch.setattr(worker, "_START", BUSY)
    with Worker(0, seconds=2) as work:
        assert "locating what to explain took longer than 2 s" in work(job).error


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells the time of another process")
def test_a_process_that_must_wait_for_the_processor_has_its_time(job, monkeypatch):
    monkeypatch.setattr(worker, "_START", NAPPING)
    with Worker(0, seconds=0.9) as work:
        assert work(job).source == "done"


def several(job, tmp_path, count):
    goals = [tmp_path / f"out{index}.onnx" for index in range(count)]
    return [dataclasses.replace(job, output=goal) for goal in goals]


def test_several_at_once_report_in_order(job, tmp_path):
    jobs = several(job, tmp_path, 5)
    jobs[2] = dataclasses.replace(jobs[2], model=tmp_path / "missing.onnx")
    with Workers(3, 0) as work:
        reports = list(work(jobs))
    assert [report.error for report in reports] == [None, None, "no such file", None, None]
    assert [report.output for report in reports[3:]] == [str(job.output) for job in jobs[3:]]
    assert len({job.output.read_bytes() for job in (jobs[0], *jobs[3:])}) == 1


def test_formats_stay_together_on_cores_of_their_own(job, tmp_path, monkeypatch):
    """A process imports one format's libraries, and no thread of it takes the other's core."""
    given, cores = [], sorted(os.sched_getaffinity(0))
    both = threading.Barrier(2)

    def done(self, job):
        first, mine = self.knows == "", self.cores
        self.knows = job.model.suffix
        if first:
            both.wait(10)
        given.append((id(self), mine, job.model.suffix))
        return Report(source=str(job.model))

    monkeypatch.setattr(worker.Worker, "__call__", done)
    jobs = [dataclasses.replace(job, model=tmp_path / f"{i}.{'xml' if i % 2 else 'onnx'}") for i in range(8)]
    with Workers(2, 0) as work:
        assert [report.source for report in work(jobs)] == [str(item.model) for item in jobs]
    for number in {number for number, _, _ in given}:
        formats = [suffix for other, _, suffix in given if other == number]
        assert sum(a != b for a, b in itertools.pairwise(formats)) <= 1  # when none of the first is left
    if len(cores) > 1:
        first = list({number: mine for number, mine, _ in reversed(given)}.values())
        assert not first[0] & first[1]
        assert first[0] | first[1] == {*cores}


@pytest.fixture
def interruptible():
    """Ctrl-C raises, whatever the process that runs the tests has made of it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("an interruption would end this process of several that run the tests")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interruption_ends_all_that_run(job, tmp_path, monkeypatch, interruptible):
    monkeypatch.setattr(worker, "_START", SLEEP)
    workers = Workers(2, 0)
    start = time.monotonic()

    def interrupted():
        with workers:
            for _ in workers(several(job, tmp_path, 4)):
                pass

    def interrupt():
        while sum(item._process is not None for item in workers._all) < 2:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 20
    assert all(item._process is None for item in workers._all)


def test_the_time_of_each_stage(job):
    report = run_here(job)
    assert set(report.seconds) == {"load", "plan", "emit", "check", "write"}
    assert min(report.seconds.values()) > 0
    assert set(run_here(dataclasses.replace(job, dry_run=True)).seconds) == {"load", "plan", "emit"}


def test_what_follows_the_plain_run_may_take_its_time(job, monkeypatch):
    monkeypatch.setattr(worker, "_START", SLOW_AFTER_RUN)
    with Worker(0, seconds=0.5) as work:
        assert work(job).source == "done"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux limits what a process allocates")
def test_constants_that_unfold_to_gigabytes_are_refused(tmp_path):
    """OpenVINO computes the axes of a mean while it reads, here from a Range whose end takes 8 bytes of the file."""
    image = opset.parameter([1, 3, 12, 12], np.float32)
    end = opset.constant(np.int64(4_242))
    axes = opset.range(opset.constant(np.int64(2)), end, opset.constant(np.int64(1)), "i64")
    pooled = opset.reduce_mean(image, opset.minimum(axes, opset.constant(np.int64(3))), keep_dims=False)
    logits = opset.matmul(pooled, opset.constant(np.ones((3, 5), np.float32)), False, False)
    path = tmp_path / "range.xml"
    ov.save_model(ov.Model([logits], [image]), path, compress_to_fp16=False)
    weights = path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").write_bytes(weights.replace(np.int64(4_242).tobytes(), np.int64(1 << 29).tobytes()))
    with Worker(0) as work:
        assert "more memory than there is" in work(Job(path, tmp_path / "out.xml", Options(), dry_run=False)).error
        assert "more memory than there is" in work(Job(path, None, Options(), dry_run=True)).error


def test_an_error_of_ours_is_said_to_be_one(job, monkeypatch):
    def broken(*_args, **_kwargs):
        raise KeyError("x")

    monkeypatch.setattr("xai_insert.several.make_plan", broken)
    assert "internal error" in run_here(job).error


def test_modules_of_the_current_folder_are_not_imported(job, tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('hostile')")
    command = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable, "-I"]
    script = "import sys; from xai_insert.cli.insert import main; main()"
    root = str(Path(worker.__file__).parents[2])
    done = subprocess.run(
        [*command, "-c", f"import sys; sys.path.insert(0, {root!r}); {script}", "good.onnx", "-o", "out.onnx"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
