"""Generated models with a known place: how many maps are right, how many models refused, how many maps wrong.

    python -m benchmarks.exactness.places [--task detectors] [--first 0] [--count 3000] [--format onnx] [--details]
    python -m benchmarks.exactness.places --zoo [--only ID-OR-TASK ...] [--details]

Each is drawn from a grammar that makes numbers coincide (tokens and channels, classes and boxes); the builder knows
what is right (model_zoo_fixtures/testbed/nets). Counts stand for each kind of part; wrong ones are named by seed.
`--zoo` counts instead by what the place of each fixture of the model zoo is proved; exit code 1 if that is `blocks` for
less than nine in ten.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import openvino as ov

from model_zoo_fixtures import Fixture, fixtures, materialise
from model_zoo_fixtures.testbed.nets import classifiers, detector_oracle, detectors, oracle
from xai_insert import Options
from xai_insert.check_place import places_of
from xai_insert.errors import MisplacedMapError, XaiInsertError
from xai_insert.formats.backend import load
from xai_insert.locate.inputs import image_inputs
from xai_insert.tasks.choose import make_plan


def converted(model: onnx.ModelProto) -> ov.Model:
    """What OpenVINO's ONNX reader makes of it."""
    return ov.Core().read_model(model.SerializeToString())


FORMATS: dict[str, Callable[[Any], Any]] = {"onnx": lambda model: model, "openvino": converted}
Verdict = oracle.Verdict | detector_oracle.Verdict
TASKS: dict[str, tuple[Callable[[int], Any], Callable[..., Verdict]]] = {
    "classifiers": (classifiers.generate, oracle.judge),
    "detectors": (detectors.generate, detector_oracle.judge),
}
ENOUGH = 0.9
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


def proof_of(fixture: Fixture, folder: Path) -> str:
    """How the place of one fixture is proved: `blocks`, `axes`, `misplaced`, or why it has no map."""
    loaded = load(materialise(fixture, folder), {})
    graph = loaded.view()
    try:
        try:
            plan = make_plan(loaded, graph, Options())
        except XaiInsertError:  # undecoded heads, whose widths fit several readings
            plan = make_plan(loaded, graph, Options(num_classes=fixture.expected.get("classes")))
        placed = plan.found.placed()
        return places_of(placed, loaded, image_inputs(graph)[0]) if placed else "not asked"
    except MisplacedMapError:
        return "misplaced"
    except XaiInsertError as err:
        return f"refused: {type(err).__name__}"


def count_zoo(only: list[str], *, details: bool) -> int:
    """Count proofs by task; 1 if too few places are proved by blocks."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for fixture in fixtures():
        if only and not {fixture.id, fixture.arch, fixture.task, fixture.exporter}.intersection(only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            proof = proof_of(fixture, Path(folder))
        counts[fixture.task][proof] += 1
        if details and proof != "blocks":
            print(f"{fixture.id}: {proof}", flush=True)
    for task, proofs in counts.items():
        print(f"{task}: " + ", ".join(f"{count} {proof}" for proof, count in proofs.most_common()))
    total = sum(counts.values(), Counter[str]())
    mapped = sum(count for proof, count in total.items() if not proof.startswith("refused"))
    print(f"{total['blocks']} of {mapped} by blocks ({total['blocks'] / max(mapped, 1):.1%})")
    return int(total["blocks"] < ENOUGH * mapped)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="classifiers", help="what the models are")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=3000, help="how many")
    parser.add_argument("--format", action="append", choices=list(FORMATS), help="which; both if none is given")
    parser.add_argument("--details", action="store_true", help="a line for everything that is not right")
    parser.add_argument("--zoo", action="store_true", help="count the proofs of place over the model zoo instead")
    parser.add_argument("--only", nargs="+", default=[], help="ids, architectures, tasks or exporters of the zoo")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    if arguments.zoo:
        return count_zoo(arguments.only, details=arguments.details)
    generate, judge = TASKS[arguments.task]
    for name in arguments.format or FORMATS:
        began = time.time()
        seeds = range(arguments.first, arguments.first + arguments.count)
        verdicts = [judge(generate(seed), FORMATS[name]) for seed in seeds]
        report(name, verdicts, time.time() - began, details=arguments.details)
    return 0


if __name__ == "__main__":
    sys.exit(main())
