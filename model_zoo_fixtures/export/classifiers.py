"""Export the classifiers of the zoo and write their fixtures.

Run ``python -m model_zoo_fixtures.export.classifiers`` with the extra ``export`` installed. Every architecture is
exported in a process of its own, which is stopped when an exporter takes too long.
"""

import argparse
import fnmatch
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model_zoo_fixtures.export import manifest
from model_zoo_fixtures.export.architectures import Architecture
from model_zoo_fixtures.export.zoo_list import CLASSIFIERS

_SECONDS_PER_EXPORT = 150
_MARK = "fixture-result "


def main(arguments: list[str] | None = None) -> int:
    """Export what the command line asks for; give 0, or 1 when nothing matches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", metavar="PATTERN", help="architectures to export; default: all")
    parser.add_argument("--exporter", action="append", help="exporters to use; default: those of the architecture")
    parser.add_argument("--full-weights", type=Path, metavar="DIR", help="keep the exports with their weights there")
    parser.add_argument("--missing", action="store_true", help="skip what is there or is known to fail")
    parser.add_argument("--worker", metavar="ARCH", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        from model_zoo_fixtures.export.worker import export_all

        for result in export_all(_architecture(options.worker), options.exporter, options.full_weights):
            print(_MARK + json.dumps(result), flush=True)
        return 0
    if options.full_weights is not None:
        options.full_weights.mkdir(parents=True, exist_ok=True)
    chosen = [arch for arch in CLASSIFIERS if any(fnmatch.fnmatch(arch.id, p) for p in options.only or ["*"])]
    for arch in chosen:
        wanted = [name for name in arch.exporters if not options.exporter or name in options.exporter]
        if options.missing:
            wanted = [name for name in wanted if not manifest.is_settled(arch.id, name)]
        _export_architecture(arch, wanted, options.full_weights)
    return 0 if chosen else 1


def _architecture(name: str) -> Architecture:
    return next(arch for arch in CLASSIFIERS if arch.id == name)


def _export_architecture(arch: Architecture, exporters: list[str], full_weights: Path | None) -> None:
    remaining = list(exporters)
    while remaining:
        began = time.monotonic()
        results, reason = _run_worker(arch, remaining, full_weights)
        for result in results:
            remaining.remove(result["exporter"])
        if remaining and reason:
            results.append({"exporter": remaining.pop(0), "failure": reason})
        manifest.add(arch, results)
        summary = ", ".join(f"{r['exporter']}: {r.get('failure') or r['kilobytes']}" for r in results)
        print(f"{arch.id} ({time.monotonic() - began:.0f} s) {summary}", flush=True)


def _run_worker(
    arch: Architecture, exporters: list[str], full_weights: Path | None
) -> tuple[list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "model_zoo_fixtures.export.classifiers", "--worker", arch.id]
    for exporter in exporters:
        command += ["--exporter", exporter]
    if full_weights is not None:
        command += ["--full-weights", str(full_weights)]
    reason = "the exporter ended its process"
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
            count, deadline = 0, time.monotonic() + _SECONDS_PER_EXPORT
            while process.poll() is None:
                time.sleep(0.2)
                done = log.read_text(errors="replace").count(_MARK)
                if done > count:
                    count, deadline = done, time.monotonic() + _SECONDS_PER_EXPORT
                if time.monotonic() > deadline:
                    process.kill()
                    process.wait()
                    reason = f"took more than {_SECONDS_PER_EXPORT} s"
        lines = log.read_text(errors="replace").splitlines()
    results = [json.loads(line.partition(_MARK)[2]) for line in lines if _MARK in line]
    if process.returncode == 1 and not results:
        reason = f"could not be built: {lines[-1][:150] if lines else 'no message'}"
    return results, reason


if __name__ == "__main__":
    sys.exit(main())
