"""The exporters whose graphs the zoo holds, each as one function from a PyTorch module to a file."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Exporter = Callable[[torch.nn.Module, torch.Tensor, Path], Path]
LEGACY_OPSET = 17


def export_legacy(model: torch.nn.Module, images: torch.Tensor, stem: Path, dynamic: bool = False) -> Path:
    """Write ``<stem>.onnx`` with the TorchScript-based exporter; ``images`` is float32 ``[N, C, H, W]``."""
    path = stem.with_name(stem.name + ".onnx")
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator cannot be exported
    try:
        torch.onnx.export(
            model,
            (images,),
            str(path),
            dynamo=False,
            opset_version=LEGACY_OPSET,
            input_names=["image"],
            dynamic_axes={"image": {0: "batch"}} if dynamic else None,
        )
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return path


def export_legacy_dynamic(model: torch.nn.Module, images: torch.Tensor, stem: Path) -> Path:
    """Write ``<stem>.onnx`` with the TorchScript-based exporter and a free batch dimension."""
    return export_legacy(model, images, stem, dynamic=True)


def export_dynamo(model: torch.nn.Module, images: torch.Tensor, stem: Path) -> Path:
    """Write ``<stem>.onnx`` with the graph-capturing exporter at its default operator set."""
    path = stem.with_name(stem.name + ".onnx")
    torch.onnx.export(model, (images,), str(path), dynamo=True, external_data=False, verbose=False)
    return path


def export_ptir(model: torch.nn.Module, images: torch.Tensor, stem: Path, dynamic: bool = False) -> Path:
    """Write ``<stem>.xml`` and ``<stem>.bin`` through OpenVINO's PyTorch front end, float32 weights."""
    import openvino as ov

    shape = [-1 if dynamic else images.shape[0], *images.shape[1:]]
    return _save_ir(ov.convert_model(model, example_input=images, input=[shape]), stem)


def export_ptir_dynamic(model: torch.nn.Module, images: torch.Tensor, stem: Path) -> Path:
    """Write ``<stem>.xml`` and ``<stem>.bin`` through OpenVINO's PyTorch front end with a free batch dimension."""
    return export_ptir(model, images, stem, dynamic=True)


def export_onnxir(model: torch.nn.Module, images: torch.Tensor, stem: Path) -> Path:
    """Write ``<stem>.xml`` and ``<stem>.bin`` by way of the TorchScript-based ONNX file, which may be there already."""
    import openvino as ov

    onnx_path = stem.with_name(stem.name.rpartition(".")[0] + ".legacy.onnx")
    if not onnx_path.exists():
        export_legacy(model, images, onnx_path.with_suffix(""))
    return _save_ir(ov.convert_model(onnx_path), stem)


def _save_ir(ov_model: Any, stem: Path) -> Path:
    import openvino as ov

    path = stem.with_name(stem.name + ".xml")
    ov.save_model(ov_model, path, compress_to_fp16=False)
    return path


EXPORTERS: dict[str, Exporter] = {
    "legacy": export_legacy,
    "dynamo": export_dynamo,
    "ptir": export_ptir,
    "onnxir": export_onnxir,
    "legacydyn": export_legacy_dynamic,
    "ptirdyn": export_ptir_dynamic,
}


def quiet() -> None:
    """Silence the exporters' own warnings and logs."""
    warnings.filterwarnings("ignore")
    for name in ("torch", "torch.onnx", "onnxscript", "openvino"):
        logging.getLogger(name).setLevel(logging.ERROR)
