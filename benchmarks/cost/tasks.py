"""What the maps of the other tasks cost, in both runtimes: segmentation, key points, anomalies, embeddings, prompts.

    python -m benchmarks.cost.tasks [MODEL...] [--seconds 6] [--json FILE] [--markdown FILE]

MODEL is the path of a plain `.onnx` or `.xml`, or the id of a fixture of the model zoo; without one, a fixture of each
task. An ONNX file is measured in onnxruntime and, converted, in OpenVINO. Float32, batch 1, one thread; the processor's
time of plain, inserted and plain model in turn, so that a busy machine matters little. A ratio is the median over pairs
of neighbouring runs, with its quartiles; `limit` is what was promised. Models in the sizes of published ones are
written by `python -m benchmarks.lib.published`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.lib.runners import open_runner, random_feeds
from benchmarks.lib.tables import Row, Setting, text_table, write_json, write_markdown
from benchmarks.lib.timing import alternate, paired_ratio
from benchmarks.lib.variants import resolve
from xai_insert.errors import XaiInsertError
from xai_insert.pipeline import insert_file

_FIXTURES = (
    "lraspp_mobilenet_v3_large.legacy",
    "hrnet_w18_small_pose.legacy",
    "padim_resnet18.legacy",
    "hf_dinov2_embedding.legacydyn",
    "hf_clip_text.legacydyn",
)
_LIMITS = {"semantic segmentation": 1.03, "keypoints": 1.03, "anomaly detection": 1.03}
_LIMIT = 1.12


def measure(source: Path, folder: Path, seconds: float) -> Row:
    """The row of one model in the runtime of its format."""
    inserted = folder / f"inserted{source.suffix}"
    report = insert_file(source, inserted)
    runners = [open_runner(path, threads=1) for path in (source, inserted, source)]
    for runner in runners:
        runner.feed(random_feeds(runner.inputs, 1))
    times = alternate(runners, seconds, clock=time.process_time)
    ratio, limit = paired_ratio(times[:, 1], times[:, 0]), _LIMITS.get(report.task, _LIMIT)
    return {
        "task": report.task,
        "method": report.method,
        "runtime": "onnxruntime" if source.suffix == ".onnx" else "openvino",
        "plain ms": f"{np.median(times[:, 0]) * 1e3:.1f}",
        "inserted/plain": str(ratio),
        "plain/plain": str(paired_ratio(times[:, 2], times[:, 0])),
        "limit": f"{limit:.2f}",
        "note": "" if ratio.median <= limit else "above the limit",
    }


def forms(source: Path, folder: Path) -> Iterator[Path]:
    """A model, and what OpenVINO makes of it if it is ONNX."""
    yield source
    if source.suffix == ".onnx":
        import openvino as ov  # noqa: PLC0415 - not needed for what is no ONNX

        converted = folder / "converted.xml"
        ov.save_model(ov.convert_model(source), converted, compress_to_fp16=False)
        yield converted


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface; returns 1 if a model could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=_FIXTURES, metavar="MODEL", help="a plain .xml or .onnx, or an id")
    parser.add_argument("--seconds", type=float, default=6.0, help="time per model and runtime (default: 6)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    args = parser.parse_args(argv)
    setting = Setting.here("benchmarks.cost.tasks", argv)
    rows, failed = list[Row](), False
    for model in args.models:
        name = Path(model).stem if Path(model).suffix in (".onnx", ".xml") else model
        print(f"{name} ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="xai-insert-") as scratch:
            try:
                for source in forms(resolve(model, Path(scratch)), Path(scratch)):
                    rows.append({"model": name, **measure(source, Path(scratch), args.seconds)})
            except (XaiInsertError, RuntimeError, ValueError) as err:
                failed = True
                rows.append({"model": name, "note": f"FAILED: {err}"})
        if args.json:
            write_json(args.json, setting, rows)
        if args.markdown:
            write_markdown(args.markdown, "Cost of the maps of other tasks", setting, rows)
    print(text_table(rows), setting.text(), sep="\n\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
