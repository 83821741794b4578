"""Peak memory of a process that compiles a model and runs it a few times.

`python -m benchmarks.cost.memory MODEL [--precision f32] [--batch 1] [--reshape]` prints it in bytes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.lib.runners import open_runner, random_feeds
from benchmarks.lib.variants import Variant

_RUNS = 3
_ROOT = Path(__file__).parents[2]


def peak_memory(variant: Variant, precision: str | None, batch: int, repeats: int = 3) -> int:
    """Peak resident memory in bytes of a new process that uses the model: the middle one of a few trials."""
    command = [sys.executable, "-m", "benchmarks.cost.memory", str(variant.path.resolve()), "--batch", str(batch)]
    command += ["--precision", precision or "default"]
    command += ["--reshape"] if variant.reshape_to else []
    trials = [subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True) for _ in range(repeats)]
    return sorted(int(trial.stdout) for trial in trials)[repeats // 2]


def own_peak() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which on Linux begins with the peak of the process that started this one.
        kilobytes = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:")).split()[1]
        return int(kilobytes) * 1024
    import resource  # noqa: PLC0415 - not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Run the command line interface."""
    parser = argparse.ArgumentParser(description="Print the peak memory in bytes of running a model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--precision", choices=["f32", "default"], default="f32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--reshape", action="store_true", help="reshape an IR of static batch 1")
    args = parser.parse_args()
    precision = None if args.precision == "default" else args.precision
    runner = open_runner(args.model, precision, args.batch if args.reshape else None)
    runner.feed(random_feeds(runner.inputs, args.batch))
    for _ in range(_RUNS):
        runner()
    print(own_peak())


if __name__ == "__main__":
    main()
