"""Files that are no model of ours: what each is, and how to make one of it."""

from __future__ import annotations

from pathlib import Path

from xai_insert.errors import ModelFileError

CONVERTIBLE = frozenset({".tflite", ".pb", ".pbtxt", ".pdmodel"})
"""What OpenVINO's own readers convert to IR on the way."""

_SAVED = "saved_model.pb"
_TORCH = "a PyTorch file holds code or weights alone: export it, torch.onnx.export(model, image, 'model.onnx')"
_KERAS = "a Keras file: export it, keras.saving.load_model(file).export('model.onnx', format='onnx'), or use tf2onnx"
_EXPORT = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".safetensors"), _TORCH),
    ".pt2": "a PyTorch exported program: torch.onnx.export(torch.export.load(file), file='model.onnx')",
    **dict.fromkeys((".h5", ".keras", ".hdf5"), _KERAS),
    **dict.fromkeys(
        (".engine", ".plan", ".trt"),
        "a TensorRT engine, compiled for one GPU, cannot be read back: give the ONNX file that it was built from",
    ),
    **dict.fromkeys(
        (".mlmodel", ".mlpackage"),
        "a Core ML model cannot be read back: give the model that it was converted from, exported to ONNX",
    ),
    ".bin": "weights alone: give the .xml beside them, or export the model to ONNX",
    ".blob": "a compiled OpenVINO model cannot be read back: give the IR or ONNX file that it was compiled from",
    ".json": "Paddle's newer format, which OpenVINO does not read: save it with FLAGS_enable_pir_api=0 as .pdmodel",
    ".pdiparams": "Paddle's weights alone: give the .pdmodel beside them",
    ".ort": "an ORT-format model cannot be read back: give the ONNX file that it was converted from",
    ".zip": "an archive: unpack it, and give the .xml (beside its .bin) or .onnx file",
    ".caffemodel": "a Caffe model, which no OpenVINO since 2023 reads: convert it to ONNX",
    ".params": "an MXNet model, which no OpenVINO since 2023 reads: export it to ONNX",
}
_STARTS = {
    b"version https://git-lfs": "a Git LFS pointer in place of the model: fetch the file, git lfs pull",
    b"PK\x03\x04": "a zip archive (or PyTorch file), whatever its name: unpack it, or export the model to ONNX",
    b"\x89HDF": _KERAS,
    b"<!DOCTYPE html": "a web page in place of the model: was the download a redirect?",
    b"<html": "a web page in place of the model: was the download a redirect?",
}


def saved_model(path: Path) -> Path | None:
    """The folder of a TensorFlow saved model, of which `path` is the folder or the graph; None if it is neither."""
    folder = path.parent if path.name == _SAVED else path
    return folder if (folder / _SAVED).is_file() else None


def require_model(path: Path) -> None:
    """Refuse a file that is known to be of another kind, saying what to do.

    Raises:
        ModelFileError: one line that says how to export.
    """
    with path.open("rb") as file:
        start = file.read(64)
    for head, what in _STARTS.items():
        if start.startswith(head):
            raise ModelFileError(what)
    if path.suffix.lower() in _EXPORT:
        raise ModelFileError(_EXPORT[path.suffix.lower()])
