"""Every fixture inserted into by two revisions: which files changed, and for what reason.

    python -m benchmarks.exactness.same_files --against 95189fb [--only resnet] [--every 10] [--json FILE]

Files are compared without the `xai_insert.*` metadata, which name the version. Of those that differ, both maps are made
of one random image and compared, byte by byte. Predictions are not compared here: that is the insertion's own check.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parents[2]
Told = Mapping[str, Any]


def serve() -> None:
    """Insert into each file that a line of standard input names, beside it, and tell what in a line of JSON."""
    from xai_insert import Options, insert_file  # noqa: PLC0415 - of the revision that the process is for

    for line in sys.stdin:
        path, goal = map(Path, json.loads(line))
        try:
            report = insert_file(path, goal, Options(check=False))
        except Exception as err:  # an old revision may fail in ways that this one does not
            told: dict[str, Any] = {"refused": f"{type(err).__name__}: {err}"}
        else:
            told = {"method": report.method, "form": str(report.form), **read(goal)}
            told["target"] = (report.target or {}).get("name")
        print(json.dumps(told), flush=True)


def read(path: Path) -> dict[str, Any]:
    """What a file holds beside the entries of the tool: its digest, and how many operations of each kind."""
    if path.suffix == ".onnx":
        import onnx  # noqa: PLC0415 - not needed for IR

        model = onnx.load(path)
        kept = [(item.key, item.value) for item in model.metadata_props if not item.key.startswith("xai_insert")]
        del model.metadata_props[:]
        content = model.SerializeToString(deterministic=True) + repr(sorted(kept)).encode()
        kinds = Counter(node.op_type for node in model.graph.node)
    else:
        tree = ET.parse(path)
        for entries in tree.iter("rt_info"):
            for entry in entries.findall("xai_insert"):
                entries.remove(entry)
        content = ET.tostring(tree.getroot()) + path.with_suffix(".bin").read_bytes()
        kinds = Counter(str(layer.get("type")) for layer in tree.iter("layer"))
    return {"digest": hashlib.sha256(content).hexdigest(), "kinds": kinds}


def reason(before: Told, after: Told) -> str:
    """In which way two files differ, in the coarsest word that fits."""
    if "refused" in before or "refused" in after:
        if "refused" in before and "refused" in after:
            return "refused by both"
        return f"refused before, now {after['method']}" if "refused" in before else "refused now"
    if before["digest"] == after["digest"]:
        return "identical"
    for what in ("method", "form", "target"):
        if before[what] != after[what]:
            return f"another {what}" + ("" if what == "target" else f": {before[what]} before, now {after[what]}")
    old, new = Counter(before["kinds"]), Counter(after["kinds"])
    if old == new:
        return "the same operations, other names, order or constants"
    gone, come = (", ".join(f"{n} {kind}" for kind, n in sorted(side.items())) for side in (old - new, new - old))
    return f"other operations: {gone or 'none'} gone, {come or 'none'} come"


@contextmanager
def inserting(root: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that inserts with the package at `root`."""
    command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        command, env=environment, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.terminate()


def asked(process: subprocess.Popen[str], path: Path, goal: Path) -> Told:
    """What a process tells of one file, into which it inserts."""
    given, got = process.stdin, process.stdout
    assert got is not None  # both are pipes
    print(json.dumps([str(path), str(goal)]), file=given, flush=True)
    told: Told = json.loads(got.readline())
    return told


def saliency(path: Path) -> np.ndarray:
    """The map of one random image."""
    from model_zoo_fixtures.testbed.oracle import image_for, load, run  # noqa: PLC0415 - see `main`

    model = load(path)
    return np.asarray(run(model, image_for(model))["saliency_map"], np.int64)


def compared(old: Path, new: Path, before: Told, after: Told) -> str:
    """The reason for which files differ, and how far their maps do."""
    why = reason(before, after)
    if why == "identical" or "refused" in before or "refused" in after:
        return why
    one, other = saliency(old), saliency(new)
    if one.shape != other.shape:
        return f"{why}; another size of the map"
    apart = int(np.abs(one - other).max(initial=0))
    return f"{why}; the same map" if not apart else f"{why}; maps at most {apart} of 255 apart"


def main() -> None:
    """Run from the command line."""
    from model_zoo_fixtures import fixtures, materialise  # noqa: PLC0415 - no old revision has all of it

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REV", required=True, help="the revision to compare with")
    parser.add_argument("--only", metavar="TEXT", default="", help="fixtures whose name holds it")
    parser.add_argument("--every", metavar="N", type=int, default=1, help="one fixture of so many")
    parser.add_argument("--json", metavar="FILE", type=Path, help="what was found of each fixture")
    args = parser.parse_args()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--detach", str(old), args.against], check=True, capture_output=True)
        try:
            with inserting(old) as before, inserting(HERE) as after:
                for fixture in [fixture for fixture in fixtures() if args.only in fixture.id][:: args.every]:
                    with tempfile.TemporaryDirectory() as own:
                        path = materialise(fixture, Path(own))
                        goals = [path.with_name(f"{name}{path.suffix}") for name in ("old", "new")]
                        told = [asked(item, path, goal) for item, goal in zip((before, after), goals, strict=True)]
                        found[fixture.id] = compared(*goals, *told)
                    print(f"{fixture.id}: {found[fixture.id]}", flush=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True, capture_output=True)
    groups = defaultdict(list)
    for name, why in found.items():
        groups[why].append(name)
    for why, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        print(f"{len(names)} {why}" + ("" if why == "identical" else f": {', '.join(names)}"))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else main()
