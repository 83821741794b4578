"""How the cost of a map grows: with the size of the model, classes, grid, batch and boxes.

    python -m benchmarks.cost.growth [--axis classes grid ...] [--seconds 1] [--json FILE] [--markdown FILE]

Small networks of random weights as ONNX, of which one number grows. Multiplications and bytes are counted on the plain
and the inserted graph (`benchmarks.lib.work`); processor times are medians over runs in turn, in onnxruntime. The
exponent is that of the part that grows, from the last three sizes: of the plain model, and of what was added. Returns 1
if that of the added multiplications, or bytes, is the larger one, and larger than 2 where the plain model's tends to
that, as attention over many tokens does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.lib.runners import open_runner, random_feeds
from benchmarks.lib.tables import Row, Setting, text_table, write_json, write_markdown
from benchmarks.lib.timing import alternate
from benchmarks.lib.work import Work, work_of
from model_zoo_fixtures.testbed.models import Builder
from xai_insert import Options
from xai_insert.pipeline import insert_file

_PATCH, _HEADS, _DEPTH = 8, 4, 16
_SLACK = 0.05


def convolutions(batch: int = 1, grid: int = 7, classes: int = 100, width: int = 64) -> onnx.ModelProto:
    """Patches, two convolutions, a pool over the grid and a linear layer."""
    b = Builder(batch=batch, size=(_PATCH * grid, _PATCH * grid))
    x = b.node("Relu", b.node("Conv", "image", b.weight(width, 3, _PATCH, _PATCH), strides=[_PATCH] * 2))
    for _ in range(2):
        x = b.node("Relu", b.node("Conv", x, b.weight(width, width, 3, 3, scale=width**-0.5 / 3), pads=[1] * 4))
    pooled = b.node("Flatten", b.node("GlobalAveragePool", x))
    return b.model(b.linear(pooled, width, classes))


def transformer(batch: int = 1, grid: int = 7, classes: int = 100, width: int = 64) -> onnx.ModelProto:
    """Patches and a class token in two blocks of attention, of which the class token is read."""
    b, cells = Builder(batch=batch, size=(_PATCH * grid, _PATCH * grid)), grid * grid

    def linear(x: str, inner: int, outer: int) -> str:
        return b.node("Add", b.node("MatMul", x, b.weight(inner, outer, scale=inner**-0.5)), b.weight(outer))

    def norm(x: str) -> str:
        return b.node("LayerNormalization", x, b.weight(width, scale=1), b.weight(width), axis=-1)

    def heads(x: str, *perm: int) -> str:
        parts = b.const(np.array([batch, cells + 1, _HEADS, width // _HEADS]))
        return b.node("Transpose", b.node("Reshape", linear(x, width, width), parts), perm=perm)

    def block(x: str) -> str:
        inner = norm(x)
        query = b.node("Mul", heads(inner, 0, 2, 1, 3), b.const(np.array((_HEADS / width) ** 0.5, np.float32)))
        shares = b.node("Softmax", b.node("MatMul", query, heads(inner, 0, 2, 3, 1)), axis=-1)
        mixed = b.node("Transpose", b.node("MatMul", shares, heads(inner, 0, 2, 1, 3)), perm=[0, 2, 1, 3])
        mixed = b.node("Reshape", mixed, b.const(np.array([batch, cells + 1, width])))
        x = b.node("Add", x, linear(mixed, width, width))
        return b.node("Add", x, linear(b.node("Relu", linear(norm(x), width, 4 * width)), 4 * width, width))

    x = b.node("Conv", "image", b.weight(width, 3, _PATCH, _PATCH), strides=[_PATCH] * 2)
    x = b.node("Transpose", b.node("Reshape", x, b.const(np.array([batch, width, cells]))), perm=[0, 2, 1])
    x = b.node("Concat", b.weight(batch, 1, width), x, axis=1)
    x = norm(block(block(x)))
    return b.model(b.linear(b.node("Gather", x, b.const(np.array(0)), axis=1), width, classes))


def queries(boxes: int = 10, classes: int = 10, grid: int = 32) -> onnx.ModelProto:
    """One mask for each of the boxes, and scores of their classes, the last of which is none."""
    b = Builder(batch=1, size=(_PATCH * grid, _PATCH * grid))
    pixels = b.node("Conv", "image", b.weight(_DEPTH, 3, _PATCH, _PATCH), strides=[_PATCH] * 2)
    bright = b.node("ReduceMean", pixels, axes=[2, 3], keepdims=0)
    state = b.node("Add", b.weight(1, boxes, _DEPTH), b.node("Reshape", bright, b.const(np.array([1, 1, _DEPTH]))))
    logits = b.node("MatMul", state, b.weight(_DEPTH, classes + 1))
    flat = b.node("Reshape", pixels, b.const(np.array([1, _DEPTH, grid * grid])))
    masks = b.node("Reshape", b.node("MatMul", state, flat), b.const(np.array([1, boxes, grid, grid])))
    return b.model(state, logits, masks)


@dataclass(frozen=True)
class Axis:
    """What grows.

    Attributes:
        network: makes the model of a number.
        numbers: those that are tried.
        size: what the exponent is of; a grid of side g has g * g cells.
        limit: the exponent that the plain model's own tends to, where its last sizes are still below: that of attention
            over many tokens is 2.
    """

    network: Callable[[int], onnx.ModelProto]
    numbers: Sequence[int]
    size: Callable[[int], int] = lambda number: number
    limit: float = 0.0


_CLASSES, _GRIDS, _BATCHES = (10, 100, 1000, 10_000, 21_843), (7, 14, 28, 56, 64), (1, 4, 16, 64)
AXES = {
    "model size, convolutions": Axis(lambda n: convolutions(width=n), (32, 64, 128, 256, 512)),
    "model size, transformer": Axis(lambda n: transformer(width=n), (32, 64, 128, 256, 512)),
    "classes, convolutions": Axis(lambda n: convolutions(classes=n), _CLASSES),
    "classes, transformer": Axis(lambda n: transformer(classes=n), _CLASSES),
    "grid, convolutions": Axis(lambda n: convolutions(grid=n), _GRIDS, lambda n: n * n),
    "grid, transformer": Axis(lambda n: transformer(grid=n), (7, 14, 28, 40), lambda n: n * n, limit=2.0),
    "batch, convolutions": Axis(lambda n: convolutions(batch=n), _BATCHES),
    "batch, transformer": Axis(lambda n: transformer(batch=n), _BATCHES),
    "boxes": Axis(lambda n: queries(boxes=n), (3, 10, 30, 100, 300)),
}


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """E of a + b * size**e through the last three points; 0 where nothing grows."""
    (s1, s2, s3), (v1, v2, v3) = (np.array(row[-3:], float) for row in (sizes, values))
    if v3 <= v2 or v2 <= v1:
        return 0.0
    low, high = 0.01, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        is_more = (s3**middle - s2**middle) / (s2**middle - s1**middle) > (v3 - v2) / (v2 - v1)
        low, high = (low, middle) if is_more else (middle, high)
    return low


def measure(axis: Axis, folder: Path, seconds: float) -> tuple[list[Row], Row]:
    """A row for each number, and the exponents."""
    rows, plains, addeds, times = list[Row](), list[Work](), list[Work](), list[np.ndarray]()
    for number in axis.numbers:
        plain, inserted = folder / "plain.onnx", folder / "inserted.onnx"
        onnx.save(axis.network(number), plain)
        insert_file(plain, inserted, Options())
        runners = [open_runner(path) for path in (plain, inserted)]
        for runner in runners:
            runner.feed(random_feeds(runner.inputs, 1))
        plains.append(work_of(plain))
        addeds.append(work_of(inserted) - plains[-1])
        times.append(np.median(alternate(runners, seconds, clock=time.process_time), axis=0) * 1e3)
        rows.append(
            {
                "size": str(number),
                "plain MFLOP": f"{plains[-1].flops / 1e6:.2f}",
                "+MFLOP": f"{addeds[-1].flops / 1e6:.2f}",
                "plain MB": f"{plains[-1].bytes / 1e6:.2f}",
                "+MB": f"{addeds[-1].bytes / 1e6:.2f}",
                "plain ms": f"{times[-1][0]:.2f}",
                "inserted ms": f"{times[-1][1]:.2f}",
                "ratio": f"{times[-1][1] / times[-1][0]:.2f}",
            }
        )
    sizes = [axis.size(number) for number in axis.numbers]
    columns = {
        "plain MFLOP": [work.flops for work in plains],
        "+MFLOP": [work.flops for work in addeds],
        "plain MB": [work.bytes for work in plains],
        "+MB": [work.bytes for work in addeds],
    }
    return rows, {
        "size": "exponent",
        **{name: f"{exponent(sizes, values):.2f}" for name, values in columns.items()},
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", nargs="*", choices=sorted({name.split(",")[0] for name in AXES}))
    parser.add_argument("--seconds", type=float, default=1.0, help="time per point (default: 1)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    args = parser.parse_args(argv)
    setting, found, faster = Setting.here("benchmarks.cost.growth", argv), list[Row](), list[str]()
    with tempfile.TemporaryDirectory(prefix="xai-insert-") as scratch:
        for name, axis in AXES.items():
            if args.axis and name.split(",")[0] not in args.axis:
                continue
            print(f"{name} ...", file=sys.stderr)
            rows, exponents = measure(axis, Path(scratch), args.seconds)
            found += [{"growing": name, **row} for row in (*rows, exponents)]
            pairs = (("plain MFLOP", "+MFLOP"), ("plain MB", "+MB"))
            most = {plain: max(float(exponents[plain]), axis.limit) + _SLACK for plain, _ in pairs}
            if any(float(exponents[added]) > most[plain] for plain, added in pairs):
                faster.append(name)
    if args.json:
        write_json(args.json, setting, found)
    if args.markdown:
        write_markdown(args.markdown, "Growth", setting, found)
    print(
        text_table(found),
        f"grows faster than the plain model: {', '.join(faster) or 'nothing'}",
        setting.text(),
        sep="\n\n",
    )
    return int(bool(faster))


if __name__ == "__main__":
    sys.exit(main())
