"""Many small models in one call: one by one, and several at once.

    python -m benchmarks.cost.many_models [--count 24] [--jobs 2] [--rounds 3]

Inserts into copies of the bundled models with `xai-insert --jobs`, in turn with one and with several processes, and
prints the wall time, the processor's time and how many times faster several are; then one bundled model of each kind
and format alone, with the libraries that its processes import from the other format. Modules are compiled in a run that
is not counted, whatever the environment says of bytecode: compiling those of this package takes a quarter of a second.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.lib.tables import Setting, text_table

_SHAPES = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes"
_KINDS = ("cnn", "vit", "detector", "segmenter")
_FORMATS = {".onnx": "openvino", ".xml": "onnx"}
_COMMAND = [sys.executable, "-m", "xai_insert.cli.insert", "-q"]


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds on the wall, and of the processor in all processes of a command."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, env=environment)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, used


def as_installed(folder: Path) -> dict[str, str]:
    """The environment of a command whose modules are compiled once, as those of an installed package are.

    Args:
        folder: where they are kept.
    """
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(folder)}


def imported(command: list[str], library: str, environment: dict[str, str]) -> bool:
    """Whether a process of a command imports a library."""
    command = [command[0], "-X", "importtime", *command[1:]]
    environment = environment | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return any(line.rpartition("|")[2].strip() == library for line in done.stderr.splitlines())


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xai-insert-") as scratch:
        folder = Path(scratch)
        goal = folder / "inserted"
        goal.mkdir()
        environment = as_installed(folder / "bytecode")
        models = []
        for index, (kind, suffix) in zip(range(args.count), itertools.cycle(itertools.product(_KINDS, _FORMATS))):
            source = _SHAPES / f"shapes_{kind}{suffix}"
            models.append(folder / f"{index}_{source.name}")
            shutil.copy(source, models[-1])
            if suffix == ".xml":
                shutil.copy(source.with_suffix(".bin"), models[-1].with_suffix(".bin"))
        command = [*_COMMAND, *map(str, models), "-o", str(goal), "--jobs"]
        timed([*command, str(args.jobs)], environment)
        rounds = np.array(
            [[timed([*command, str(jobs)], environment) for jobs in (1, args.jobs)] for _ in range(args.rounds)]
        )
        (one, one_used), (several, several_used) = np.median(rounds, axis=0)
        faster = np.median(rounds[:, 0, 0] / rounds[:, 1, 0])
        rows = [
            {"models": str(args.count), "jobs": "1", "s": f"{one:.2f}", "processor s": f"{one_used:.2f}"},
            {
                "models": str(args.count),
                "jobs": str(args.jobs),
                "s": f"{several:.2f}",
                "processor s": f"{several_used:.2f}",
                "times faster": f"{faster:.2f}",
            },
        ]
        print(text_table(rows), end="\n\n")
        alone = []
        for kind, (suffix, other) in itertools.product(_KINDS, _FORMATS.items()):
            command = [*_COMMAND, str(_SHAPES / f"shapes_{kind}{suffix}"), "-o", str(folder / f"alone{suffix}")]
            wall, used = np.median([timed(command, environment) for _ in range(args.rounds)], axis=0)
            foreign = other if imported(command, other, environment) else "none"
            alone.append(
                {"model": f"{kind}{suffix}", "s": f"{wall:.2f}", "processor s": f"{used:.2f}", "imports": foreign}
            )
        print(text_table(alone), Setting.here("benchmarks.cost.many_models").text(), sep="\n\n")


if __name__ == "__main__":
    main()
