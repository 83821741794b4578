"""ODAM beside PyTorch's own derivatives: YOLOv8n, DETR and Conditional DETR. Needs torch and transformers.

    python -m benchmarks.exactness.odam [NAME ...]

The oracle is the definition in float64: of each reported box, the derivative of its class's raw score by the feature
map times that map, summed over channels and rectified. Of a DETR the map is what `v_proj` of the last decoder layer's
attention to the image gives; of YOLOv8n, whose code is not at hand, the file itself is run by PyTorch, operator by
operator, and the map is what the class branch of the box's level begins with. `own` is how far the same is off in
PyTorch's float32. Weights are random.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from model_zoo_fixtures.export import shims  # noqa: F401 - must come before transformers

import numpy as np  # isort: skip
import onnx  # isort: skip
import openvino as ov  # isort: skip
import torch  # isort: skip
from onnx import numpy_helper  # isort: skip
from torch.nn import functional  # isort: skip

from benchmarks.lib.reporting import reporting_yolo
from benchmarks.lib.tables import Row, markdown_table
from model_zoo_fixtures.export.detectors import hf_models
from xai_insert import Options, insert_file
from xai_insert.formats.backend import load

Array = np.ndarray
Values = dict[str, torch.Tensor]
_SIDE, _BOXES, _COCO, _CLASSES, _SIZE = 320, 20, 80, 20, (256, 320)


def _convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, **attributes: Any) -> torch.Tensor:
    pads = attributes["pads"][: len(attributes["pads"]) // 2]
    return functional.conv2d(x, weight, bias, attributes["strides"], pads, attributes["dilations"], attributes["group"])


def _pooled(x: torch.Tensor, **attributes: Any) -> torch.Tensor:
    kernel = attributes["kernel_shape"]
    return functional.max_pool2d(x, kernel, attributes["strides"], attributes["pads"][:2])


def _resized(x: torch.Tensor, *rest: torch.Tensor | None, **attributes: Any) -> torch.Tensor:
    assert attributes["mode"] == b"nearest"
    scales = next(item for item in rest if item is not None and item.numel() == x.ndim)
    sizes = [
        int(side) if side > 4 else round(side.item() * own) for side, own in zip(scales[2:], x.shape[2:], strict=True)
    ]
    return functional.interpolate(x, sizes, mode="nearest")


def _split(x: torch.Tensor, sizes: torch.Tensor, axis: int = 0) -> tuple[torch.Tensor, ...]:
    return x.split(sizes.tolist(), axis)


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Conv": _convolution,
    "Sigmoid": torch.sigmoid,
    "Mul": torch.mul,
    "Add": torch.add,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Split": _split,
    "MaxPool": _pooled,
    "Resize": _resized,
}


def _run(model: onnx.ModelProto, image: torch.Tensor, wanted: list[str]) -> Values:
    """The values of a graph as far as those that are wanted."""
    graph = model.graph
    values: Values = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    values = {name: value.to(image.dtype) if value.is_floating_point() else value for name, value in values.items()}
    values[graph.input[0].name] = image
    left = set(wanted)
    for node in graph.node:
        if not left:
            break
        if node.op_type == "Constant":
            value = torch.from_numpy(numpy_helper.to_array(node.attribute[0].t).copy())
            values[node.output[0]] = value.to(image.dtype) if value.is_floating_point() else value
            continue
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type not in _OPERATORS or any(name and name not in values for name in node.input):
            continue  # what follows the heads
        result = _OPERATORS[node.op_type](*(values.get(name) for name in node.input), **attributes)
        values.update(zip(node.output, result if isinstance(result, tuple) else (result,), strict=True))
        left -= {*node.output}
    assert not left, left
    return values


def _class_branches(model: onnx.ModelProto, classes: int) -> list[tuple[str, str]]:
    """Where the class branch of each level begins, and its raw scores, the finest level first."""
    made = {name: node for node in model.graph.node for name in node.output}
    stored = {item.name: item.dims for item in model.graph.initializer}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            readers[node.input[0]] = readers.get(node.input[0], 0) + 1
    found = []
    for node in model.graph.node:
        if node.op_type == "Conv" and stored.get(node.input[1], [0])[0] == classes:
            value = node.input[0]
            while readers.get(value, 0) < 2:  # the box branch reads the same
                before = made[value]
                value = next(name for name in before.input if name in made and made[name].op_type != "Sigmoid")
            found.append((value, node.output[0]))
    return found


def _of_yolo(model: onnx.ModelProto, image: Array, rows: Array, grid: tuple[int, int], dtype: torch.dtype) -> Array:
    """`[M, h, w]`."""
    branches = _class_branches(model, _COCO)
    values = _run(
        model, torch.from_numpy(image).to(dtype).requires_grad_(), [name for pair in branches for name in pair]
    )
    scores = [values[name] for _, name in branches]
    every = torch.cat([item[0].flatten(1) for item in scores], 1)
    places = every.sigmoid().amax(0).topk(len(rows)).indices
    maps = []
    levels = [level for level, item in enumerate(scores) for _ in range(item[0, 0].numel())]
    for row, place in zip(rows, places.tolist(), strict=True):
        feature, score = values[branches[levels[place]][0]], every[int(row[5]), place]
        (gradient,) = torch.autograd.grad(score, feature, retain_graph=True)
        map_ = (gradient * feature).sum(1, keepdim=True).clamp(min=0)
        maps.append(functional.interpolate(map_, grid, mode="bilinear")[0, 0].detach().numpy())
    return np.stack(maps)


def _of_queries(network: torch.nn.Module, image: Array, grid: tuple[int, int], dtype: torch.dtype) -> Array:
    """`[Q, h, w]`."""
    kept: list[torch.Tensor] = []
    layer = network.network.model.decoder.layers[-1].encoder_attn.v_proj
    hook = layer.register_forward_hook(lambda *parts: kept.append(parts[2]))
    scores = network.to(dtype)(torch.from_numpy(image).to(dtype))[0][0, :, :_CLASSES].amax(1)
    hook.remove()
    maps = [torch.autograd.grad(score, kept[0], retain_graph=True)[0][0] * kept[0][0] for score in scores]
    return torch.stack([item.sum(1).clamp(min=0).reshape(grid) for item in maps]).detach().numpy()


def _inserted(path: Path, options: Options, image: Array) -> tuple[Array, list[Array], float]:
    """The map of each box, all outputs, and how far the predictions moved."""
    new = path.with_stem("new")
    report = insert_file(path, new, options)
    loaded = load(new, {})
    runner = loaded.runner()
    outputs = runner.run({runner.inputs[0][0]: image})
    return outputs[loaded.view().output_names.index("saliency_map_per_box")][0], outputs, report.output_difference


def _row(name: str, kind: str, got: tuple[Array, list[Array], float], wanted: Array, own: Array) -> Row:
    maps = got[0]
    off, usual = (np.abs(item - wanted).max() / wanted.max() for item in (maps, own))
    return {
        "network": name,
        "format": kind,
        "boxes": str(len(maps)),
        "off": f"{off:.1e}",
        "own": f"{usual:.1e}",
        "1 - correlation": f"{1 - np.corrcoef(maps.ravel(), wanted.ravel())[0, 1]:.1e}",
        "predictions moved": f"{got[2]:.0e}",
    }


def yolov8n(folder: Path) -> list[Row]:
    """A row for each format."""
    path = folder / "yolov8n.onnx"
    reporting_yolo(path, _SIDE, _BOXES)
    ov.save_model(ov.convert_model(path), path.with_suffix(".xml"), compress_to_fp16=False)
    image = np.random.default_rng(1).random((1, 3, _SIDE, _SIDE)).astype(np.float32)
    found = []
    for file in (path, path.with_suffix(".xml")):
        got = _inserted(file, Options(method="odam", per_box=True, output_dtype="f32"), image)
        grid = got[0].shape[-2:]
        wanted, own = (
            _of_yolo(onnx.load(path), image, got[1][0][0], grid, kind) for kind in (torch.float64, torch.float32)
        )
        found.append(_row("yolov8n", file.suffix, got, wanted, own))
    return found


def queries(name: str, folder: Path) -> list[Row]:
    """A row for each exporter."""
    torch.manual_seed(0)
    network = hf_models.detr(name, _CLASSES, _SIZE).model.eval()
    image = np.random.default_rng(1).standard_normal((1, 3, *_SIZE)).astype(np.float32)
    options = Options(method="odam", per_box=True, output_dtype="f32", num_classes=_CLASSES)
    path = folder / "detr.onnx"
    torch.onnx.export(network, (torch.zeros(image.shape),), path, dynamo=False, opset_version=17)
    converted = ov.convert_model(network, example_input=torch.zeros(image.shape), input=[*image.shape])
    ov.save_model(converted, path.with_suffix(".xml"), compress_to_fp16=False)
    found = []
    for file in (path, path.with_suffix(".xml")):
        got = _inserted(file, options, image)
        grid = got[0].shape[-2:]
        own = _of_queries(network, image, grid, torch.float32)
        wanted = _of_queries(network, image, grid, torch.float64)
        network.float()
        found.append(_row(name, file.suffix, got, wanted, own))
    return found


CASES = {"yolov8n": yolov8n, **{name: partial(queries, name) for name in ("detr", "conditional_detr")}}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*CASES])
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    found: list[Row] = []
    for name in given.names:
        with tempfile.TemporaryDirectory() as folder:
            found += CASES[name](Path(folder))
    print(markdown_table(found))


if __name__ == "__main__":
    main()
