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
from functools import partial
from pathlib import Path

from model_zoo_fixtures.export import shims  # noqa: F401 - must come before timm

import numpy as np  # isort: skip
import openvino as ov  # isort: skip
import timm  # isort: skip
import torch  # isort: skip

from benchmarks.cost.memory import peak_memory
from benchmarks.lib.by_hand import LayerCamByHand
from benchmarks.lib.reporting import reporting_yolo
from benchmarks.lib.runners import Array, Runner, open_runner, random_feeds
from benchmarks.lib.tables import Row, Setting, text_table, write_json
from benchmarks.lib.timing import alternate, paired_ratio
from benchmarks.lib.variants import Variant
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
    return Case(
        partial(reporting_yolo, side=_YOLO_SIDE, count=_BOXES), Options(method="odam", per_box=True, output_dtype="f32")
    )


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
