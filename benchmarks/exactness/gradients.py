"""LayerCAM inside the graph beside PyTorch's own derivative, and its cost beside the plain model. Needs torch and timm.

    python -m benchmarks.exactness.gradients resnet50 layer3 layer2

Each layer is a module of the timm model; it is asked for by its number from the end, the first one named as -2.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from model_zoo_fixtures.export import shims  # noqa: F401 - must come before timm

import numpy as np  # isort: skip
import openvino as ov  # isort: skip
import timm  # isort: skip
import torch  # isort: skip

from benchmarks.lib.runners import open_runner
from benchmarks.lib.timing import alternate, paired_ratio
from xai_insert import Options, insert_file

_SIDE = 224


def layercam(model: Any, layer: Any, image: Any) -> np.ndarray:
    """The definition by automatic differentiation, for the best class."""
    kept: dict[str, Any] = {}

    def keep(module: Any, inputs: Any, output: Any) -> None:
        del module, inputs
        output.retain_grad()
        kept["feature"] = output

    hook = layer.register_forward_hook(keep)
    scores = model(image.clone().requires_grad_())
    scores[0, scores[0].argmax()].backward()
    hook.remove()
    feature = kept["feature"]
    return (feature.grad.clamp(min=0) * feature).sum(1).clamp(min=0).detach().numpy()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("layers", nargs="+")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(given.name).eval()
    image = torch.randn(1, 3, _SIDE, _SIDE)
    with tempfile.TemporaryDirectory() as name:
        plain = Path(name, "plain.onnx")
        torch.onnx.export(model, (image,), plain, dynamo=False, opset_version=17)
        same = Path(name, "same.xml")
        ov.save_model(ov.convert_model(plain), same, compress_to_fp16=False)
        for number, layer in enumerate(given.layers, start=2):
            wanted = layercam(model, model.get_submodule(layer), image)
            for suffix, beside in (("onnx", plain), ("xml", same)):
                path = Path(name, f"layercam.{suffix}")
                options = Options(method="layercam", target_layer=f"-{number}", output_dtype="f32")
                report = insert_file(plain, path, options)
                runners = [open_runner(item) for item in (beside, path)]
                for runner in runners:
                    runner.feed([image.numpy()])
                runners[1]()
                found = next(item for item in runners[1].outputs() if item.shape == (1, *wanted.shape))
                off = np.abs(found[0] - wanted).max() / wanted.max()
                times = alternate(runners, 5.0)
                ratio = paired_ratio(times[:, 1], times[:, 0])
                print(f"{given.name} {layer} {suffix}: off {off:.1e}, moved {report.output_difference}, cost {ratio}")


if __name__ == "__main__":
    main()
