"""The process in which the engine inserts into damaged files and runs what was written.

It imports everything and forks; the child works, and if it dies, the next child takes over at once. It runs on one
processor: a damaged model of a few kilobytes gains nothing from threads, which wait for each other by spinning.
"""

from __future__ import annotations

import json
import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import onnxruntime as ort
import openvino as ov

from model_zoo_fixtures.testbed.commands import invoke
from xai_insert import Options, insert_file
from xai_insert.cli.explain import main as explain
from xai_insert.errors import XaiInsertError
from xai_insert.explain.journal import is_sound, written
from xai_insert.feeds import random_array
from xai_insert.formats.onnx import model as _onnx  # noqa: F401 - before the fork
from xai_insert.formats.onnx.runtime import _TYPES as ONNX_TYPES
from xai_insert.formats.openvino import model as _openvino  # noqa: F401
from xai_insert.formats.openvino.view import dtype_name, static_shape
from xai_insert.strip import strip_file
from xai_insert.verify import verify_file

_LIMIT = 12 << 30  # of allocations: those beyond fail as on a machine of that size
_SIZE = 12  # of what a model leaves open


def main() -> None:
    """Keep a child that answers requests, until stdin is closed; a line says when it is ready and when it has died."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # native libraries print
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT, _LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {usable[os.getpid() % len(usable)]})
    code = 1
    while code:
        child = os.fork()
        if not child:
            _serve(answers)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _say(answers, died=code)


def _serve(answers: TextIO) -> None:
    _say(answers, ready=os.getpid())
    for line in open(0, "rb", buffering=0, closefd=False):  # noqa: SIM115 - what follows the line is for the next child
        request = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5")  # peak memory from here on
        source, output = Path(request["source"]), Path(request["output"])
        if request["action"] == "explain":
            kind, detail = _explain(request["arguments"], output)
        elif request["action"] == "verify":
            kind, detail = _end(verify_file, source) or ("verified", "")
        elif request["action"] == "strip":
            kind, detail = _end(strip_file, source, output) or _written(source, output, "stripped")
        else:
            kind, detail = _insert(source, output, request["options"])
        _say(answers, kind=kind, detail=detail, peak=_megabytes("VmHWM"), now=_megabytes("VmRSS"))


def _say(answers: TextIO, **what: Any) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


def _megabytes(what: str) -> float:
    """A size from the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


def _insert(source: Path, output: Path, options: dict[str, Any]) -> tuple[str, str]:
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    chosen = Options(**given, given=())  # so that one which does nothing here is no refusal
    end = _end(insert_file, source, output, chosen)
    return end or _written(source, output, "inserted", just_load=not options.get("check", True))


def _end(call: Callable[..., object], *arguments: Any) -> tuple[str, str] | None:
    """How a call ended that did not do its work."""
    try:
        call(*arguments)
    except XaiInsertError as err:
        text = " ".join(str(err).split())
        return "refused", f"{type(err).__name__}: {text[:300]}"
    except MemoryError:
        return "memory", traceback.format_exc()[-1500:]
    except Exception:  # what the fuzzer is for
        return "traceback", traceback.format_exc()[-1500:]
    return None


def _written(source: Path, output: Path, kind: str, *, just_load: bool = False) -> tuple[str, str]:
    """`kind` if what was written runs."""
    run = _run_onnx if output.suffix == ".onnx" else _run_openvino
    try:
        run(output, just_load)
    except Exception as err:  # whatever the runtime raises
        # The check runs in float32; where the runtime's default precision refuses the plain model, nothing is lost.
        kind = "rejected" if _works(run, source, just_load) else "like the plain model"
        return kind, f"{type(err).__name__}: {err}"[:500]
    return kind, ""


def _explain(arguments: list[str], output: Path) -> tuple[str, str]:
    result = invoke(explain, *arguments)
    if isinstance(result.exception, MemoryError):
        return "memory", "MemoryError"
    if result.exc_info is None or not isinstance(result.exception, (SystemExit, type(None))):
        return "traceback", "".join(traceback.format_exception(result.exception))[-1500:]
    said = result.stderr.strip()
    if result.exit_code:
        is_told = result.exit_code in (1, 2) and any(word in said for word in ("error:", "Error:"))
        return "refused" if is_told else "rejected", f"{result.exit_code}: {said[:300]}"
    lines = (output / "results.jsonl").read_bytes().splitlines()
    if not lines or not all(is_sound(json.loads(line)) for line in lines):
        return "rejected", "the journal holds other lines than records"
    drawn = {path.stem for path in Path(arguments[1]).iterdir()}
    records = [record for record in map(json.loads, lines) if record["name"] in drawn]
    if not records or not all((output / name).is_file() for record in records for name in written(record)):
        return "rejected", "no record, or one whose file is not there"
    return "explained", ""


def _works(run: Any, path: Path, just_load: bool) -> bool:
    try:
        run(path, just_load)
    except Exception:  # whatever the runtime raises
        return False
    return True


def _run_onnx(path: Path, just_load: bool) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if just_load:
        return
    rng = np.random.default_rng(0)
    feeds = {}
    for arg in session.get_inputs():
        shape = tuple(size if isinstance(size, int) else None for size in arg.shape)
        feeds[arg.name] = random_array(rng, shape, ONNX_TYPES.get(arg.type, arg.type[7:-1]), size=_SIZE)
    session.run(None, feeds)


def _run_openvino(path: Path, just_load: bool) -> None:
    compiled = ov.Core().compile_model(str(path), "CPU")
    if just_load:
        return
    rng = np.random.default_rng(0)
    feeds = {}
    for index, port in enumerate(compiled.inputs):
        shape = static_shape(port.get_partial_shape()) or ()
        feeds[index] = random_array(rng, shape, dtype_name(port.get_element_type()), size=_SIZE)
    compiled(feeds)
