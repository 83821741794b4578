"""Insert into damaged model files, explain damaged pictures, and see that every call ends cleanly.

Run from the repository root: ``python -m benchmarks.robustness.fuzz --count 30000``. What is damaged and how a call may
end stands in `model_zoo_fixtures.testbed.fuzz.engine`; `--only N` repeats one file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from model_zoo_fixtures.testbed.fuzz.engine import BAD, CLEAN, GROUPS, fuzz

_SAVE = 100  # files between two writings of the counts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line interface; returns 1 if a file ended badly."""
    parser = argparse.ArgumentParser(description="Insert into damaged model files, and explain damaged pictures.")
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first file")
    parser.add_argument("--only", type=int, action="append", help="repeat one file; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after this time; the number that ran is printed")
    parser.add_argument("--keep", type=Path, help="folder for the files that end badly")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    args = parser.parse_args(argv)
    numbers = args.only or range(args.start, args.start + args.count)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    counts: Counter[tuple[str, str]] = Counter()
    slowest = largest = 0.0
    began = time.perf_counter()

    def summary() -> str:
        found = {
            "first": numbers[0],
            "files": sum(counts.values()),
            "counts": {group: {kind: counts[group, kind] for kind in (*CLEAN, *BAD)} for group in GROUPS},
            "slowest_seconds": round(slowest, 2),
            "largest_megabytes": round(largest),
            "seconds": round(time.perf_counter() - began),
        }
        return json.dumps(found, indent=2)

    for done, (case, outcome) in enumerate(fuzz(numbers, args.seed, args.keep), 1):
        counts[case.group, outcome.kind] += 1
        slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.megabytes)
        if outcome.kind in BAD or outcome.kind.endswith("reported") or args.only:
            print(f"{case.number} {case.seed} {case.arguments or case.options} {outcome}", file=sys.stderr, flush=True)
        stops = args.minutes and time.perf_counter() - began > 60 * args.minutes
        if args.json and (done % _SAVE == 0 or done == len(numbers) or stops):
            args.json.write_text(summary() + "\n")
        if stops:
            break
    print(summary())
    return int(any(counts[group, kind] for group in GROUPS for kind in BAD))


if __name__ == "__main__":
    sys.exit(main())
