"""The process in which the command line reads, compiles and writes models.

The readers and compilers of model files are native code, and a damaged or hostile file can make them crash. In a
process of its own that is the failure of one file, and the next file gets a new process. Jobs and reports go through
pipes as lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from xai_insert.errors import UnusedOptionError, XaiInsertError, reason
from xai_insert.files import size, sweep
from xai_insert.formats.deferred import leave_out
from xai_insert.options import Options
from xai_insert.report import Report

logger = logging.getLogger(__name__)

# The same modules as here, and never those of the current folder, which `-m` would put first.
# Ctrl-C reaches both processes; the parent ends this one.
_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "sys.path[:] = sys.argv[2:]; from xai_insert.cli.worker import serve; serve(int(sys.argv[1]))"
)


_STAGES = {
    "read": "reading the model",
    "located": "locating what to explain",
    "run": "running the model as it came",
    "done": "inserting the map",
}
"""What a process does until it says that it is past a step; see `insert_file` for these. The last is not limited."""
_GRACE = 0.2
# How long a file may keep a processor busy: a damaged one can do so for ever.
_SECONDS, _BYTES_PER_SECOND = 20.0, 10e6
_PROGRESS = 0.01  # of a processor: one that is less busy waits for something that will not come
# What it may allocate meanwhile: readers compute constants, and a damaged one of a few bytes can make them gigabytes.
_ALLOWANCE, _PER_BYTE = 1 << 30, 10
_DATA = re.compile(r"VmData:\s+(\d+) kB")


@dataclass(frozen=True)
class Job:
    """One model to insert into.

    Attributes:
        model: the file.
        output: the file to write; None writes nothing and reports what would be done.
        options: what to insert.
        dry_run: whether to write nothing although `output` is given.
        action: what to do instead of an insertion, see `xai_insert.cli.actions`.
    """

    model: Path
    output: Path | None
    options: Options
    dry_run: bool
    action: str = "insert"


Runner = Callable[[Job], Report]


def run_here(job: Job, passed: Callable[[str], None] = lambda _: None) -> Report:
    """Do a job in this process; errors become part of the report. See `insert_file` for `passed`."""
    from xai_insert.cli.actions import ACTIONS  # noqa: PLC0415 - the parent does not pay for it
    from xai_insert.pipeline import insert_file, plan_insertion  # noqa: PLC0415 - nor for that

    try:
        if job.action in ACTIONS:
            passed("run")  # these take their time, as an insertion does behind its first run
            return ACTIONS[job.action](job.model, job.output, job.options)
        if job.dry_run or job.output is None:
            return plan_insertion(job.model, job.options, job.output, passed)
        return insert_file(job.model, job.output, job.options, passed)
    except UnusedOptionError as err:
        return Report(source=str(job.model), error=str(err), unused_options=err.options)
    except XaiInsertError as err:
        return Report(source=str(job.model), error=" ".join(str(err).split()))
    except MemoryError:
        text = "the model takes more memory than there is for a file of its size; is it whole?"
        return Report(source=str(job.model), error=text)
    except Exception as err:  # a fault of ours must not take the other models of the call with it
        logger.info("internal error", exc_info=True)
        text = " ".join(f"{type(err).__name__}: {err}".split())[:300]
        return Report(source=str(job.model), error=f"internal error, please report it with the output of -v: {text}")


class Worker:
    """Does jobs in another process, which is started when it is needed and again after a crash.

    Args:
        verbose: how much the process logs to stderr.
        seconds: how long a processor may be busy with reading a model, locating what to explain, and running it once;
            None goes by the model's size. The process may wait as long for what does not come.
        cores: those that the process may run on; all if there are none.

    Attributes:
        cores: those.
        knows: suffix of the last model, whose libraries the process has imported.
    """

    def __init__(self, verbose: int, seconds: float | None = None, cores: Set[int] = frozenset()) -> None:
        self._verbose = verbose
        self._seconds = seconds
        self.cores = cores
        self.knows = ""
        self._process: subprocess.Popen[str] | None = None
        self._output: Path | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(0 if error is not None else _GRACE)

    def __call__(self, job: Job) -> Report:
        """Do one job; a crash, and a model that is not read in time, become errors in the report."""
        try:
            process = self._process or self._start()
        except OSError as err:  # too many files are open, or too many processes run
            text = f"cannot start the process that reads models: {reason(err)}"
            return Report(source=str(job.model), error=text)
        self._output, self.knows = job.output, job.model.suffix
        _ask(process, job)
        seconds = self._seconds or _SECONDS + size(job.model) / _BYTES_PER_SECOND
        try:
            answer, stage = self._last_answer(process, seconds)
        except _GivenUpError as err:
            self._stop()
            return Report(source=str(job.model), error=f"{err} (--time-limit SECONDS gives it more)")
        if not answer:
            return Report(source=str(job.model), error=_obituary(self._stop(), stage))
        report = Report(**json.loads(answer))
        if report.error is not None and not report.unused_options:
            self._stop()  # the library may still be busy with the file
        return report

    def may_use(self, cores: Set[int]) -> None:
        """Let the process run on further cores, with the threads that it starts from now on."""
        self.cores, process = frozenset(self.cores | cores), self._process
        if self.cores and process is not None:
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(process.pid, self.cores)

    def _last_answer(self, process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
        """What the process says last, the report, and in which stage; empty if the process ends.

        Raises:
            _GivenUpError: a stage took `seconds`.
        """
        answer = ""
        for stage in _STAGES.values():
            try:
                answer = self._answer(process, None if stage == _STAGES["done"] else seconds)
            except _GivenUpError as err:
                doubt = "; is the file whole?" if stage == _STAGES["read"] else ""
                raise _GivenUpError(f"{stage} {err}{doubt}") from None
            if answer.strip() not in _STAGES:
                break
        return answer, stage

    def _answer(self, process: subprocess.Popen[str], seconds: float | None) -> str:
        """The next line; empty if the process ends.

        Raises:
            _GivenUpError: it took `seconds` of a processor, or as long without using one.
        """
        began = used = _processor_seconds(process.pid)
        wait = seconds
        while True:
            try:
                return self._answers.get(timeout=wait)
            except queue.Empty:
                assert seconds is not None
                assert wait is not None
            now = _processor_seconds(process.pid)
            if now is None or used is None or began is None or now - began >= seconds:
                raise _GivenUpError(f"took longer than {seconds:.0f} s") from None
            if now - used < _PROGRESS * wait:
                raise _GivenUpError(f"made no progress for {wait:.0f} s") from None
            used, wait = now, max(seconds - (now - began), seconds / 10)

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _START, str(self._verbose), *sys.path]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", errors="surrogateescape"
        )
        if self.cores:
            os.sched_setaffinity(process.pid, self.cores)
        self._process, self._answers = process, queue.Queue()
        threading.Thread(target=_forward, args=(process, self._answers), daemon=True).start()
        return process

    def _stop(self, grace: float = _GRACE) -> int:
        """End the process, and what it has half done; returns its exit code, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        process.kill()
        code = process.wait()
        if self._output is not None:
            sweep(self._output, process.pid)
        return code


class _GivenUpError(Exception):
    """A process has had its time."""


def _ask(process: subprocess.Popen[str], job: Job) -> None:
    """Hand a job to the process; of one that has ended, the answer will say that."""
    assert process.stdin is not None
    request = asdict(job) | {"model": str(job.model), "output": None if job.output is None else str(job.output)}
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()


def _processor_seconds(process: int) -> float | None:
    """How long a process has kept processors busy; None where the system does not tell."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def _forward(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            answers.put(line)
    answers.put("")


def _hold_memory(model: Path) -> Callable[[], None]:
    """Let this process allocate what reading `model` takes and no more, until the result is called; on Linux."""
    try:
        import resource  # noqa: PLC0415 - not everywhere

        used = _DATA.search(Path("/proc/self/status").read_text())
    except (ImportError, OSError):
        used = None
    if used is None:
        return lambda: None
    before = soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = int(used[1]) * 1024 + _ALLOWANCE + _PER_BYTE * size(model)
    resource.setrlimit(resource.RLIMIT_DATA, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, before)


def _obituary(code: int, stage: str) -> str:
    if code == -signal.SIGKILL:
        return f"the process was killed while {stage}, perhaps because the machine's memory ran out"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"the model crashed the library that reads or runs it ({how}) while {stage}; is the file whole?"


def serve(verbose: int) -> None:
    """Do jobs from stdin until it is closed."""
    leave_out("openvino.tools.ovc")  # converters that nothing here calls take as long to import as the rest of it
    configure_logging(verbose)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="surrogateescape")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # native libraries print
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]

    def send(line: str) -> None:
        answers.write(line)
        answers.flush()

    try:
        for line in sys.stdin:
            job = _job(json.loads(line))
            release = _hold_memory(job.model)

            def passed(step: str, release: Callable[[], None] = release) -> None:
                release()
                send(f"{step}\n")

            report = run_here(job, passed)
            release()
            send(json.dumps(report.as_dict()) + "\n")
    except BrokenPipeError:  # the parent is gone
        pass


def _job(request: dict[str, Any]) -> Job:
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in request["options"].items()
    }
    options["input_shapes"] = {name: tuple(sizes) for name, sizes in options["input_shapes"].items()}
    output = request["output"]
    return Job(
        Path(request["model"]),
        None if output is None else Path(output),
        Options(**options),
        bool(request["dry_run"]),
        request["action"],
    )


def configure_logging(verbose: int) -> None:
    """Show this tool's log, and of other libraries' nothing: some print tracebacks of what they then put up with."""
    logging.getLogger().addHandler(logging.NullHandler())
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        root = logging.getLogger("xai_insert")
        root.addHandler(handler)
        root.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
