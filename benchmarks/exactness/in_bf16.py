"""What bf16 leaves of a map of derivatives where PyTorch computes it, with its own derivatives. Needs torch.

    python -m benchmarks.exactness.in_bf16 [--photos FOLDER]

LayerCAM of the bundled CNN on 24 scenes and, with `--photos` (what `benchmarks.lib.real_models` has written), of
EfficientNet-Lite0, at the last map and one and two stages before it. PyTorch runs the ONNX file, operator by operator,
so that the weights are those of the tool's figures. Prints the correlation with the map in float32, lowest and mean: of
autocast to bfloat16; of a network in bfloat16 altogether; where autocast ends at the explained layer; where it begins
there; and of float32 whose weights alone are rounded to bfloat16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

from benchmarks.lib.tables import Row, markdown_table
from model_zoo_fixtures.shapes.dataset import HELD_OUT_SEED, classification_scene

Array = np.ndarray
Tensors = dict[str, torch.Tensor]
_SHAPES = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes" / "shapes_cnn.onnx"
_SCENES = 24


def _convolved(how: Mapping[str, Any], x: torch.Tensor, weight: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
    top, left, bottom, right = how.get("pads", [0, 0, 0, 0])
    if (top, left) == (bottom, right):
        return functional.conv2d(x, weight, *bias, stride=how["strides"], padding=(top, left), groups=how["group"])
    x = functional.pad(x, (left, right, top, bottom))
    return functional.conv2d(x, weight, *bias, stride=how["strides"], groups=how["group"])


OPERATORS: Mapping[str, Callable[..., torch.Tensor]] = {
    "Add": lambda how, a, b: a + b,
    "Sub": lambda how, a, b: a - b,
    "Div": lambda how, a, b: a / b,
    "Conv": _convolved,
    "Relu": lambda how, x: functional.relu(x),
    "Clip": lambda how, x, low, high: functional.hardtanh(x, float(low), float(high)),
    "GlobalAveragePool": lambda how, x: x.mean((2, 3), keepdim=True),
    "ReduceMean": lambda how, x, axes: x.mean((2, 3), keepdim=True),
    "Flatten": lambda how, x: x.flatten(1),
    "Reshape": lambda how, x, sizes: x.flatten(1),
    "Gemm": lambda how, x, weight, bias: functional.linear(x, weight, bias),
}


class Network:
    """A CNN of an ONNX file.

    Args:
        path: the file.
        kinds: what the weights are rounded to, the last of them what they are computed in.
    """

    def __init__(self, path: Path, *kinds: torch.dtype) -> None:
        graph = onnx.load(path).graph
        stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                stored[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.weights: Tensors = {name: torch.from_numpy(np.array(value)) for name, value in stored.items()}
        for kind in kinds:
            self.weights = {name: value.to(kind) for name, value in self.weights.items()}
        self.nodes = [node for node in graph.node if node.op_type != "Constant"]
        self.image, self.scores, self.head = graph.input[0].name, graph.output[0].name, self.nodes[-1].input[1]

    def layers(self, image: Array) -> list[str]:
        """The last map of each grid, the last grid first."""
        values = self.run(torch.from_numpy(image))
        last: dict[tuple[int, ...], str] = {}
        for name, value in values.items():
            if value.ndim == 4 and value.shape[2] > 1:
                last[tuple(value.shape[2:])] = name
        return list(last.values())[::-1]

    def run(self, image: torch.Tensor, layer: str = "", halves: Sequence[bool] = (False, False)) -> Tensors:
        """Every value; up to a layer and behind it by autocast to bfloat16 or not."""
        values: Tensors = {self.image: image}
        place = next((index for index, node in enumerate(self.nodes, 1) if layer in node.output), len(self.nodes))
        for is_half, nodes in zip(halves, (self.nodes[:place], self.nodes[place:]), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
                for node in nodes:
                    self._compute(node, values)
            if nodes and layer in nodes[-1].output:
                known = values[layer].detach()
                values[layer] = (known if halves[1] == is_half else known.float()).requires_grad_()
        return values

    def _compute(self, node: onnx.NodeProto, values: Tensors) -> None:
        how = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        operands = [values[name] if name in values else self.weights[name] for name in node.input]
        values[node.output[0]] = OPERATORS[node.op_type](how, *operands)

    def layercam(self, image: Array, layer: str, label: int | None, halves: Sequence[bool]) -> tuple[Array, int]:
        """The map of a class, or of the best one, and the class."""
        values = self.run(torch.from_numpy(image).to(self.weights[self.head].dtype), layer, halves)
        scores = values[self.scores]
        label = int(scores.argmax()) if label is None else label
        gradient = torch.autograd.grad(scores[0, label], values[layer])[0].float()
        found = (gradient.clamp(min=0) * values[layer].float()).sum(1).clamp(min=0)
        return found.detach().numpy().ravel().astype(np.float64), label


def cases(photos: Path | None) -> Iterator[tuple[str, Path, list[Array]]]:
    """Name, file and images."""
    yield "shapes_cnn", _SHAPES, [classification_scene(HELD_OUT_SEED + index).model_input() for index in range(_SCENES)]
    if photos is not None:
        files = sorted(photos.glob("*.npy"))
        yield "efficientnet_lite0", photos / "efficientnet_lite0.dynamo.onnx", [np.load(path) for path in files]


WAYS: Mapping[str, tuple[str, tuple[bool, bool]]] = {
    "autocast": ("float32", (True, True)),
    "bfloat16 altogether": ("bfloat16", (False, False)),
    "autocast up to the layer": ("float32", (True, False)),
    "autocast behind it": ("float32", (False, True)),
    "weights alone rounded": ("rounded", (False, False)),
}
"""By name: the network, and whether autocast is on up to the layer and behind it."""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    rows: list[Row] = []
    for name, path, images in cases(parser.parse_args().photos):
        kinds = {"float32": [], "bfloat16": [torch.bfloat16], "rounded": [torch.bfloat16, torch.float32]}
        networks = {kind: Network(path, *rounding) for kind, rounding in kinds.items()}
        for behind, layer in enumerate(networks["float32"].layers(images[0])[:3]):
            found: dict[str, list[float]] = {way: [] for way in WAYS}
            for image in images:
                exact, label = networks["float32"].layercam(image, layer, None, (False, False))
                for way, (network, halves) in WAYS.items():
                    rough, _ = networks[network].layercam(image, layer, label, halves)
                    found[way].append(float(np.corrcoef(exact, rough)[0, 1]))
            cells = {way: f"{min(items):.4f} ({np.mean(items):.4f})" for way, items in found.items()}
            rows.append({"network": name, "stages back": str(behind), "layer": layer, **cells})
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
