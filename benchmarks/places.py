"""Generated models with a known place: how many maps are right, how many models refused, how many maps wrong.

    python -m benchmarks.places [--task detectors] [--first 0] [--count 3000] [--format onnx] [--details]

Each is drawn from a grammar that makes numbers coincide (tokens and channels, classes and boxes); the builder knows
what is right (tests/nets). Counts stand for each kind of part; wrong ones are named by seed.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import openvino as ov

from tests.nets import classifiers, detector_oracle, detectors, oracle


def converted(model: onnx.ModelProto) -> ov.Model:
    """What OpenVINO's ONNX reader makes of it."""
    return ov.Core().read_model(model.SerializeToString())


FORMATS: dict[str, Callable[[Any], Any]] = {"onnx": lambda model: model, "openvino": converted}
Verdict = oracle.Verdict | detector_oracle.Verdict
TASKS: dict[str, tuple[Callable[[int], Any], Callable[..., Verdict]]] = {
    "classifiers": (classifiers.generate, oracle.judge),
    "detectors": (detectors.generate, detector_oracle.judge),
}
JUDGEMENTS = ("right", "refused", "wrong", "unjudged")


def report(name: str, verdicts: Sequence[Verdict], seconds: float, *, details: bool) -> None:
    """Totals, a table by kind, and what is wrong."""
    total = Counter(verdict.judgement for verdict in verdicts)
    fine = sum(verdict.judgement == "refused" and verdict.sample.refusal_ok for verdict in verdicts)
    print(f"\n{name}: {len(verdicts)} models, {total['right']} right, {total['refused']} refused", end=" ")
    print(f"({fine} of them rightly), {total['wrong']} wrong,", end=" ")
    print(f"{total['unjudged']} unjudged (the runtime gives other predictions), {seconds:.0f} s\n")
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        for tag in verdict.sample.tags:
            kinds[tag][verdict.judgement] += 1
    print(f"{'kind':32}" + "".join(f"{word:>9}" for word in JUDGEMENTS))
    for tag in sorted(kinds):
        print(f"{tag:32}" + "".join(f"{kinds[tag][word]:>9}" for word in JUDGEMENTS))
    print("\nseeds of the wrong ones:", *(v.sample.seed for v in verdicts if v.judgement == "wrong"))
    if details:
        for verdict in verdicts:
            if verdict.judgement != "right":
                print(f"{verdict.sample.seed}: {verdict.judgement}: {verdict.reason}")
                print(f"    batch {verdict.sample.batch}, {', '.join(verdict.sample.tags)}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="classifiers", help="what the models are")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=3000, help="how many")
    parser.add_argument("--format", action="append", choices=list(FORMATS), help="which; both if none is given")
    parser.add_argument("--details", action="store_true", help="a line for everything that is not right")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    generate, judge = TASKS[arguments.task]
    for name in arguments.format or FORMATS:
        began = time.time()
        seeds = range(arguments.first, arguments.first + arguments.count)
        verdicts = [judge(generate(seed), FORMATS[name]) for seed in seeds]
        report(name, verdicts, time.time() - began, details=arguments.details)


if __name__ == "__main__":
    main()
