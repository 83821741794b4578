"""Every method of derivatives beside PyTorch's own: architectures x exporters x batches. Needs torch and timm.

    python -m benchmarks.exactness.autograd [NAME ...] [--exporters legacydyn ptirdyn dynamodyn kept] [--json rows.json]

Networks have seeded random weights. The layer that the tool explains is found among the inputs and outputs of PyTorch's
modules by its values, so no name is compared. The oracle is PyTorch in float64: `off` is how far the tool's map is from
its map, `own` how far PyTorch's float32 map is, `added` how far from the exact derivative times the features that the
runtime's own plain model gives: what the inserted part adds to their rounding. The exporter `kept` folds nothing into
weights, and its files are also computed in float64: `wide` is how far that is, what the graph says, whatever a runtime
rounds. Where pytorch-grad-cam is installed, it is asked as well, about layers that are the output of a module
`[B, C, h, w]`; its maps are taken before it scales them.
"""

# ruff: noqa: PLC0415 - pytorch-grad-cam may be missing

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from model_zoo_fixtures.export import shims  # noqa: F401 - must come before torchvision and timm

import numpy as np  # isort: skip
import openvino as ov  # isort: skip
import timm  # isort: skip
import torch  # isort: skip
import torchvision  # isort: skip

from benchmarks.exactness import wide
from benchmarks.lib.tables import Row, markdown_table
from xai_insert import Options, insert_file
from xai_insert.formats.backend import load

Found = dict[str, Any]
METHODS = ("hirescam", "grad-cam", "layercam", "input-x-gradient")
BATCHES = (1, 3)
_KEPT = "kept"  # batch norms stay: exporters fold them into the weights before them, and round those
_CLOSE, _ALIKE = 1e-5, 0.9999
TIMM = (
    "resnet18",
    "resnet10t",
    "resnet26d",
    "resnext26ts",
    "seresnet18",
    "ecaresnet26t",
    "densenet121",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "efficientnet_lite0",
    "efficientnet_b0",
    "mnasnet_small",
    "fbnetc_100",
    "ghostnet_050",
    "lcnet_050",
    "regnetx_002",
    "regnety_002",
    "dla46_c",
    "hardcorenas_a",
    "tinynet_e",
    "rexnetr_200",
    "vovnet39a",
    "repvgg_a0",
    "hgnetv2_b0",
    "convnext_atto",
    "convnextv2_atto",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "poolformer_s12",
    "pvt_v2_b0",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_s3_tiny_224",
    "coat_lite_tiny",
    "xcit_nano_12_p16_224",
    "levit_128s",
    "efficientformer_l1",
    "mixer_s16_224",
    "gmixer_12_224",
    "selecsls42",
    "res2net50_14w_8s",
)
TORCHVISION = ("alexnet", "vgg11", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet", "mobilenet_v3_small")


def built(name: str) -> tuple[torch.nn.Module, int]:
    """The network, in evaluation mode, and the side of its image."""
    torch.manual_seed(0)
    if name in TORCHVISION:
        extra = {"init_weights": False} if name == "googlenet" else {}
        model, side = getattr(torchvision.models, name)(weights=None, num_classes=20, **extra), 224
    else:
        model = timm.create_model(name, num_classes=20)
        side = model.pretrained_cfg["input_size"][-1]
    for module in model.modules():  # as if it had been trained: statistics that are not those of the start
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, torch.nn.Linear) and not module.weight.any():  # a head that begins with zeros
            torch.nn.init.trunc_normal_(module.weight, std=0.02)
    return model.eval(), side


def exported(model: torch.nn.Module, side: int, exporter: str, folder: Path) -> Path:
    """The file that an exporter makes."""
    image = torch.zeros(1, 3, side, side)
    if exporter == "ptirdyn":
        path = folder / "model.xml"
        ov.save_model(
            ov.convert_model(model, example_input=image, input=[-1, 3, side, side]), path, compress_to_fp16=False
        )
        return path
    path = folder / f"{exporter}.onnx"
    if exporter.startswith("dynamo"):
        free = ({0: torch.export.Dim("batch", min=1, max=64)},) if exporter.endswith("dyn") else None
        image = image.expand(2, -1, -1, -1) if free else image  # a batch of one would be taken for its only size
        torch.onnx.export(model, (image,), path, dynamo=True, external_data=False, dynamic_shapes=free)
    else:
        free = {"input": {0: "batch"}, "output": {0: "batch"}}
        names = {"input_names": ["input"], "output_names": ["output"]}
        mode = torch.onnx.TrainingMode.PRESERVE if exporter == _KEPT else torch.onnx.TrainingMode.EVAL
        torch.onnx.export(
            model, (image,), path, dynamo=False, opset_version=17, dynamic_axes=free, training=mode, **names
        )
    return path


@contextmanager
def batch_norms_written_out() -> Iterator[None]:
    """Batch norms as arithmetic, for a time.

    Of one image, where the derivative by a batch norm's result has its channels last, PyTorch 2.13 gives a wrong one by
    what it reads, in float64 too (XCiT, LeViT, EfficientFormer). Central differences say so.
    """
    own = torch.nn.functional.batch_norm

    def written_out(x: torch.Tensor, *parts: torch.Tensor, eps: float = 1e-5, **_: Any) -> torch.Tensor:
        parts, eps = parts[:4], parts[6] if len(parts) > 6 else eps
        mean, variance, weight, bias = (part.reshape(-1, *[1] * (x.ndim - 2)) for part in parts)
        return (x - mean) / torch.sqrt(variance + eps) * weight + bias

    torch.nn.functional.batch_norm = written_out
    try:
        yield
    finally:
        torch.nn.functional.batch_norm = own


class Passed:
    """Every tensor that modules of a network read or give in one run with derivatives."""

    def __init__(self, model: torch.nn.Module, image: torch.Tensor) -> None:
        self.tensors: list[tuple[torch.nn.Module | None, torch.Tensor]] = []
        hooks = [module.register_forward_hook(self._keep) for module in model.modules()]
        self.image = image.clone().requires_grad_()
        self.scores = model(self.image)
        for hook in hooks:
            hook.remove()
        self.best = self.scores.argmax(dim=1)
        self.tensors.append((None, self.image))

    def _keep(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        items = [(None, item) for item in inputs] + [(module, output)]
        self.tensors += [
            (owner, item) for owner, item in items if isinstance(item, torch.Tensor) and item.requires_grad
        ]

    def alike(self, feature: np.ndarray) -> tuple[torch.nn.Module | None, torch.Tensor, list[int]] | None:
        """The tensor that holds a feature, of those the last, and the order of axes that makes it the feature."""
        orders = {4: [[0, 1, 2, 3], [0, 2, 3, 1], [0, 3, 1, 2]], 3: [[0, 1, 2], [0, 2, 1]]}.get(feature.ndim, [])
        found = None
        for owner, tensor in self.tensors:
            for order in orders:
                if tensor.ndim != feature.ndim or tuple(tensor.shape[axis] for axis in order) != feature.shape:
                    continue
                values = tensor.detach().permute(order).numpy()
                if np.abs(values - feature).max() < 1e-4 * np.abs(feature).max():
                    found = (owner or (found[0] if found and found[1] is tensor else None), tensor, order)
        return found

    def gradient(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of the best class's score, image by image."""
        score = self.scores.gather(1, self.best[:, None]).sum()
        return torch.autograd.grad(score, tensor, retain_graph=True)[0]

    def map(
        self, place: int, order: list[int], method: str, target: dict[str, Any], feature: np.ndarray | None = None
    ) -> np.ndarray:
        """The definition, at the tensor of that number; of another feature map with its derivative, if one is given."""
        tensor = self.tensors[place][1]
        own, gradient = (item.detach().permute(order).numpy() for item in (tensor, self.gradient(tensor)))
        return formula(method, own if feature is None else feature, gradient, target)


def formula(method: str, feature: np.ndarray, gradient: np.ndarray, target: dict[str, Any]) -> np.ndarray:
    """`[B, h, w]` as the papers have it, in float64."""
    feature, gradient = (item.astype(np.float64) for item in (feature, gradient))
    axes = tuple(target["grid_axes"])
    if len(axes) == 1:
        count = int(np.prod(target["grid"]))
        first = feature.shape[axes[0]] - count  # class tokens come before
        feature, gradient = (item.take(range(first, first + count), axis=axes[0]) for item in (feature, gradient))
    channels = next(axis for axis in range(1, feature.ndim) if axis not in axes)
    if method == "grad-cam":
        gradient = gradient.mean(axis=axes, keepdims=True)
    if method == "layercam":
        gradient = np.maximum(gradient, 0)
    total = (gradient * feature).sum(axis=channels)
    total = total.reshape(len(total), *target["grid"])
    return np.maximum(total, 0) if method in ("grad-cam", "layercam") else total


def other_tool(method: str, model: torch.nn.Module, layer: torch.nn.Module, passed: Passed) -> np.ndarray | None:
    """What pytorch-grad-cam makes of a layer, before it scales."""
    names = {"grad-cam": "GradCAM", "hirescam": "HiResCAM", "layercam": "LayerCAM"}
    if method not in names or importlib.util.find_spec("pytorch_grad_cam") is None:
        return None
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(int(number)) for number in passed.best]
    image = passed.image.detach()
    with getattr(pytorch_grad_cam, names[method])(model=model, target_layers=[layer]) as cam:
        cam(input_tensor=image, targets=targets)
        kept = cam.activations_and_grads
        activations, gradients = kept.activations[0].numpy(), kept.gradients[0].numpy()
        found = cam.get_cam_image(image, layer, targets, activations, gradients, False)
    return found if method == "hirescam" else np.maximum(found, 0)


def rows(name: str, exporter: str, folder: Path) -> Iterator[Found]:
    """What is found for one export."""
    model, side = built(name)
    double = copy.deepcopy(model).double()  # before a run, in which some keep what cannot be copied
    path = exported(model, side, exporter, folder)
    news = {}
    for method in METHODS:
        new = folder / f"new-{method}{path.suffix}"
        target = insert_file(path, new, Options(method=method, output_dtype="f32", check=False)).target
        news[method] = (new, target)
    loaded = load(path, {})
    graph, runner = loaded.view(), loaded.runner()
    values = {value.name: value for node in graph.nodes for value in node.outputs}
    for batch in BATCHES if exporter.endswith("dyn") else (1,):
        image = np.random.default_rng(batch).standard_normal((batch, 3, side, side)).astype(np.float32)
        with batch_norms_written_out():
            passed = Passed(model, torch.from_numpy(image))
            exact = Passed(double, torch.from_numpy(image).double())
        fed = {runner.inputs[0][0]: image}
        for method, (new, target) in news.items():
            inserted = load(new, {})
            outputs = dict(zip(inserted.view().output_names, inserted.runner().run(fed), strict=True))
            value = values.get(target["name"])  # none: the image itself
            feature = image if value is None else loaded.between([], [value.native]).run(fed)[0]
            found = passed.alike(feature)
            row = {"name": name, "exporter": exporter, "batch": batch, "method": method, "grid": list(target["grid"])}
            if found is None:
                yield row | {"off": None}
                continue
            owner, tensor, order = found
            place = next(number for number, (_, item) in enumerate(passed.tensors) if item is tensor)
            own, wanted = (run.map(place, order, method, target) for run in (passed, exact))
            got = outputs["saliency_map"][:, 0]
            scale = max(np.abs(wanted).max(), np.finfo(np.float32).tiny)
            row["off"], row["own"] = (float(np.abs(item - wanted).max() / scale) for item in (got, own))
            inserted_part = got - exact.map(place, order, method, target, feature)
            row["added"] = float(np.abs(inserted_part).max() / scale)
            row["correlation"] = float(np.corrcoef(got.ravel(), wanted.ravel())[0, 1])
            row["same class"] = bool((outputs["saliency_classes"][:, 0] == exact.best.numpy()).all())
            if exporter == _KEPT:
                try:
                    row["wide"] = float(np.abs(wide.outputs(new, image)["saliency_map"][:, 0] - wanted).max() / scale)
                except Exception as err:  # an operator that the evaluator has not
                    row["not wide"] = f"{type(err).__name__}: {err}"[:200]
            if owner is not None and order == [0, 1, 2, 3] and tuple(target["grid_axes"]) == (2, 3):
                other = other_tool(method, model, owner, passed)
                row["other tool"] = None if other is None else float(np.abs(got - other).max() / scale)
            yield row


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*TIMM, *TORCHVISION])
    parser.add_argument("--exporters", nargs="+", default=["legacydyn", "ptirdyn"])
    parser.add_argument("--json", type=Path, help="write the rows; exports that are in it already are not run again")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    kept: list[Found] = json.loads(given.json.read_text()) if given.json and given.json.exists() else []
    known = exports(kept)
    for name, exporter in product(given.names, given.exporters):
        if (name, exporter) in known:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                mine = list(rows(name, exporter, Path(folder)))
            except Exception as err:  # an exporter's failure is that of one row
                mine = [{"name": name, "exporter": exporter, "error": f"{type(err).__name__}: {err}"[:200]}]
        kept += mine
        off = [row["off"] for row in mine if row.get("off") is not None]
        others = [row["other tool"] for row in mine if row.get("other tool") is not None]
        least = min((row["correlation"] for row in mine if "correlation" in row), default=None)
        error = next((row["error"] for row in mine if "error" in row), "")
        print(name, exporter, f"{len(off)} of {len(mine)} off {max(off, default=-1):.1e}", f"correlation {least}",
              f"pytorch-grad-cam {len(others)}: {max(others, default=-1):.1e}", error, flush=True)  # fmt: skip
        if given.json:
            given.json.write_text(json.dumps(kept))
    done = [row for row in kept if row.get("off") is not None]
    tables = {method: summary([row for row in done if row["method"] == method]) for method in METHODS}
    print(markdown_table([{"method": method, **row} for method, row in tables.items()]))
    missing = [row for row in kept if row.get("off") is None]
    left = [f"{row['name']} {row['exporter']}: {row.get('error', 'its layer is not found')}" for row in missing]
    print("not compared:", *(left or ["none"]), sep="\n")


def exports(found: list[Found]) -> set[tuple[str, str]]:
    """Network and exporter."""
    return {(row["name"], row["exporter"]) for row in found}


def summary(found: list[Found]) -> Row:
    """How many exports hold in all of their rows: by themselves, as PyTorch itself does, and in float64."""
    every = exports(found)
    far = exports([row for row in found if row["off"] > _CLOSE or row["correlation"] < _ALIKE])
    worse = exports([row for row in found if row["off"] > max(_CLOSE, 2 * row["own"])])
    other = [row["other tool"] for row in found if row.get("other tool") is not None]
    wide = [row["wide"] for row in found if "wide" in row]
    off, own = (np.array([row[key] for row in found]) for key in ("off", "own"))
    alike = np.array([row["correlation"] for row in found])
    return {
        "maps": str(len(found)),
        "median off": f"{np.median(off):.1e}",
        "largest off": f"{off.max():.1e}",
        "PyTorch float32, largest": f"{own.max():.1e}",
        "added by the branch, largest": f"{max(row['added'] for row in found):.1e}",
        f"exports within {_CLOSE:g} and {_ALIKE}": f"{len(every - far)} of {len(every)}",
        "exports as exact as PyTorch": f"{len(every - worse)} of {len(every)}",
        f"maps that correlate by {_ALIKE}": str((~(alike < _ALIKE)).sum()),
        "1 - least correlation": f"{1 - np.nanmin(alike):.1e}",
        "pytorch-grad-cam: maps, largest": f"{len(other)}: {max(other):.1e}" if other else "",
        "in float64: maps, largest": f"{len(wide)}: {max(wide):.1e}" if wide else "",
    }


if __name__ == "__main__":
    main()
