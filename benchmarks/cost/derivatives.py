"""What a map of derivatives costs beside the plain model, and beside a graph made by hand. Needs torch and timm.

    python -m benchmarks.cost.derivatives [CASE ...] [--seconds 20] [--processor] [--memory] [--json FILE]

Plain model, inserted model and, for a ResNet, the same network with its backward pass written on paper
(`benchmarks.lib.by_hand`), exported by PyTorch, run in turn in both runtimes: float32, one image, the same settings for
all. `--processor` counts the processor's time on one thread, for a machine that has other work to do; otherwise it is
the time on the wall with all threads. `off` is the largest difference from PyTorch's own derivative (of a ResNet), as a
share of the largest value. Networks have random weights; YOLOv8n is that of the zoo.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_zoo_fixtures.export import shims  # noqa: F401 - must come before timm

import numpy as np  # isort: skip
import onnx  # isort: skip
import onnxruntime as ort  # isort: skip
import openvino as ov  # isort: skip
import timm  # isort: skip
import torch  # isort: skip
from onnx import helper, numpy_helper  # isort: skip

from benchmarks.cost.memory import peak_memory
from benchmarks.lib.by_hand import LayerCamByHand
from benchmarks.lib.runners import Array, Runner, open_runner, random_feeds
from benchmarks.lib.tables import Row, Setting, text_table, write_json
from benchmarks.lib.timing import alternate, paired_ratio
from benchmarks.lib.variants import Variant
from model_zoo_fixtures import fixtures, materialise
from xai_insert import Options, insert_file

_SIDE, _YOLO_SIDE, _BOXES = 224, 640, 20


@dataclass(frozen=True)
class Case:
    """A network and its map.

    Attributes:
        plain: writes the plain ONNX file.
        options: of the insertion.
        by_hand: writes the network with the map made by hand, if there is one.
        exact: the map of an image by PyTorch, if it is compared.
    """

    plain: Callable[[Path], None]
    options: Options
    by_hand: Callable[[Path], None] | None = None
    exact: Callable[[Array], Array] | None = None


def _network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name).eval()


def _exported(network: torch.nn.Module, path: Path) -> None:
    with torch.no_grad():
        torch.onnx.export(network, (torch.zeros(1, 3, _SIDE, _SIDE),), path, dynamo=False, opset_version=17)


def layercam(name: str, behind: int) -> Case:
    """LayerCAM of a ResNet of timm, `behind` stages before the last map."""
    network = _network(name)

    def exact(image: Array) -> Array:
        kept: list[torch.Tensor] = []
        hook = getattr(network, f"layer{4 - behind}").register_forward_hook(lambda *parts: kept.append(parts[2]))
        scores = network(torch.from_numpy(image))
        hook.remove()
        gradient = torch.autograd.grad(scores.max(), kept[0])[0]
        return (gradient.clamp(min=0) * kept[0]).sum(1).clamp(min=0).detach().numpy()

    options = Options(method="layercam", target_layer=f"-{behind + 1}", output_dtype="f32")
    by_hand = LayerCamByHand(network, behind).eval()
    return Case(lambda path: _exported(network, path), options, lambda path: _exported(by_hand, path), exact)


def legrad() -> Case:
    """LeGrad of a ViT-B/16 over its last four blocks."""
    network = _network("vit_base_patch16_224")
    return Case(lambda path: _exported(network, path), Options(method="legrad", output_dtype="f32"))


def odam() -> Case:
    """ODAM of the boxes that YOLOv8n says first, as many as are asked for."""
    return Case(_reporting_yolo, Options(method="odam", per_box=True, output_dtype="f32"))


def _reporting_yolo(path: Path) -> None:
    """YOLOv8n at a fixed size, with the boxes of the highest scores as its one output `[1, M, 6]`."""
    with tempfile.TemporaryDirectory() as folder:
        found = fixtures(id="yolov8n_dyn.legacydyn")[0]
        model = onnx.load(materialise(found, Path(folder)))
        sizes = model.graph.input[0].type.tensor_type.shape.dim
        for size, number in zip(sizes, (1, 3, _YOLO_SIDE, _YOLO_SIDE), strict=True):
            size.dim_value = number
        fixed = Path(folder, "fixed.onnx")
        options = ort.SessionOptions()  # folds what follows from the sizes
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(fixed)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(fixed)
    _report_best(model)
    onnx.save(model, path)


def _report_best(model: onnx.ModelProto) -> None:
    graph = model.graph
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value - 4

    def const(*numbers: float, kind: type = np.int64) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(numbers, kind), f"best_c{len(graph.initializer)}"))
        return str(graph.initializer[-1].name)

    def node(kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> list[str]:
        names = [f"best_{len(graph.node)}_{index}" for index in range(outputs)]
        graph.node.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    rows = node("Transpose", graph.output[0].name, perm=[0, 2, 1])[0]
    middle, size, scores = node("Split", rows, const(2, 2, classes), outputs=3, axis=2)
    half = node("Mul", size, const(0.5, kind=np.float32))[0]
    boxes = node("Concat", node("Sub", middle, half)[0], node("Add", middle, half)[0], axis=2)[0]
    highest = node("ReduceMax", scores, axes=[2], keepdims=0)[0]
    places = node("Unsqueeze", node("TopK", highest, const(_BOXES), outputs=2, axis=1)[1], const(2))[0]
    found = [
        node("GatherElements", item, node("Expand", places, const(1, 1, width))[0], axis=1)[0]
        for item, width in ((boxes, 4), (scores, classes))
    ]
    score = node("ReduceMax", found[1], axes=[2], keepdims=1)[0]
    label = node("Cast", node("ArgMax", found[1], axis=2, keepdims=1)[0], to=onnx.TensorProto.FLOAT)[0]
    graph.node.append(helper.make_node("Concat", [found[0], score, label], ["rows"], axis=2))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, [1, _BOXES, 6]))


CASES: dict[str, Callable[[], Case]] = {
    "resnet50-14x14": lambda: layercam("resnet50", 1),
    "resnet50-28x28": lambda: layercam("resnet50", 2),
    "vit-legrad": legrad,
    "yolov8n-odam": odam,
}


def measure(name: str, folder: Path, given: argparse.Namespace) -> list[Row]:
    """A row for each runtime."""
    case = CASES[name]()
    plain = folder / "plain.onnx"
    case.plain(plain)
    sources = {"inserted": plain}
    if case.by_hand is not None:
        case.by_hand(folder / "by hand.onnx")
        sources["by hand"] = folder / "by hand.onnx"
    rows = []
    for suffix, runtime in ((".onnx", "onnxruntime"), (".xml", "openvino")):
        files = {"plain": _as_format(plain, suffix)}
        files |= {way: _as_format(path, suffix) for way, path in sources.items()}
        files["inserted"] = folder / f"inserted{suffix}"
        insert_file(files["plain"], files["inserted"], case.options)
        rows.append({"case": name, "runtime": runtime, **_figures(files, case, given)})
    return rows


def _as_format(path: Path, suffix: str) -> Path:
    made = path.with_suffix(suffix)
    if not made.exists():
        ov.save_model(ov.convert_model(path), made, compress_to_fp16=False)
    return made


def _figures(files: dict[str, Path], case: Case, given: argparse.Namespace) -> Row:
    threads = 1 if given.processor else None
    runners: dict[str, Runner] = {way: open_runner(path, threads=threads) for way, path in files.items()}
    feeds = random_feeds(runners["plain"].inputs, 1)
    for runner in runners.values():
        runner.feed(feeds)
        runner()
    first, inserted = (runners[way].outputs() for way in ("plain", "inserted"))
    row = {"moved": str(max(np.abs(a - b).max() for a, b in zip(first, inserted, strict=False)))}
    if case.exact is not None:
        wanted = case.exact(feeds[0])
        row["off"] = f"{np.abs(_map_of(inserted, wanted) - wanted).max() / wanted.max():.1e}"
        if "by hand" in runners:
            by_hand = _map_of(runners["by hand"].outputs(), wanted)
            row["off by hand"] = f"{np.abs(by_hand - wanted).max() / wanted.max():.1e}"
    clock = time.process_time if given.processor else time.perf_counter
    times = alternate(list(runners.values()), given.seconds, clock=clock)
    row["plain ms"] = f"{1e3 * np.median(times[:, 0]):.1f}"
    for index, way in enumerate(list(runners)[1:], 1):
        row[f"{way}/plain"] = str(paired_ratio(times[:, index], times[:, 0]))
    row["rounds"] = str(len(times))
    if given.memory:
        row |= {f"{way} MB": f"{peak_memory(Variant(path), 'f32', 1) / 1e6:.0f}" for way, path in files.items()}
    return row


def _map_of(outputs: Sequence[Array], wanted: Array) -> Array:
    return next(item for item in outputs if item.size == wanted.size).reshape(wanted.shape)


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time per comparison (default: 20)")
    parser.add_argument("--processor", action="store_true", help="the processor's time, on one thread")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, in processes of their own")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args(argv)
    setting = Setting.here("benchmarks.cost.derivatives", argv)
    rows: list[Row] = []
    for name in given.cases:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="xai-insert-") as folder:
            rows += measure(name, Path(folder), given)
        if given.json:
            write_json(given.json, setting, rows)
    print(text_table(rows), setting.text(), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
