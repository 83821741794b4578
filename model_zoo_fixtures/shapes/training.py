"""What the training scripts share: command line, data loading, augmentation, the optimisation loop, and export.

This module and the scripts need PyTorch; the data set, ``evaluate.py``, and the tests do not.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import torch
from torch import Tensor, nn

from model_zoo_fixtures.shapes.dataset import CLASS_NAMES, IMAGE_SIZE, classification_batch

FOLDER = Path(__file__).resolve().parent
OPSET = 17

Batch = tuple[Tensor, ...]


class Normalise(nn.Module):
    """Map pixel values 0..255 to -1..1, as the first layer, so that models take plain images."""

    def forward(self, image: Tensor) -> Tensor:
        """Apply ``image / 127.5 - 1`` to ``[N, 3, H, W]``."""
        return image / 127.5 - 1.0


def command_line(name: str, epochs: int, images: int) -> argparse.ArgumentParser:
    """The options of every training script, with its defaults."""
    parser = argparse.ArgumentParser(description=f"Train and export {name}.")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--images", type=int, default=images, help="number of training images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to")
    return parser


def begin(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options, seed PyTorch and set its threads."""
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    return options


def load_classification(start: int, count: int, size: int = IMAGE_SIZE, workers: int = 2) -> Batch:
    """Generate classification images in parallel.

    Args:
        start: First seed.
        count: Number of images, a multiple of 64.
        size: Image side in pixels.
        workers: Number of processes.

    Returns:
        Images, uint8 ``[N, 3, size, size]``, and labels, int64 ``[N]``.
    """
    chunks = [(range(first, first + 64), size) for first in range(start, start + count, 64)]
    with Pool(workers) as pool:
        parts = pool.starmap(classification_batch, chunks)
    images = torch.from_numpy(np.concatenate([part[0] for part in parts]))
    return images, torch.from_numpy(np.concatenate([part[1] for part in parts]))


def augment_colours(images: Tensor) -> Tensor:
    """Permute the colour channels, sometimes invert, and vary gain, one draw for the whole batch.

    Args:
        images: float32 ``[N, 3, H, W]``, 0..255.

    Returns:
        The same shape and range.
    """
    images = images[:, torch.randperm(3)]
    if torch.rand(()) < 0.5:
        images = 255.0 - images
    gain = 0.7 + 0.6 * torch.rand(len(images), 3, 1, 1)
    return ((images - 127.5) * gain + 127.5).clamp(0.0, 255.0)


def augment_dihedral(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Flip and transpose square grids ``[N, C, H, H]`` at random, all tensors alike.

    Every shape keeps its class under these eight symmetries.
    """
    for dims in ((2,), (3,)):
        if torch.rand(()) < 0.5:
            tensors = tuple(tensor.flip(dims) for tensor in tensors)
    return tuple(tensor.transpose(2, 3) for tensor in tensors) if torch.rand(()) < 0.5 else tensors


def batches(data: Batch, batch_size: int, shuffle: bool) -> Iterator[Batch]:
    """Yield ``data`` (tensors of equal length) in batches; a shuffled run drops the last, incomplete one."""
    count = len(data[0])
    order = torch.randperm(count) if shuffle else torch.arange(count)
    stop = count - count % batch_size if shuffle else count
    for start in range(0, stop, batch_size):
        chosen = order[start : start + batch_size]
        yield tuple(tensor[chosen] for tensor in data)


def optimise(
    model: nn.Module,
    data: Batch,
    loss_of: Callable[[nn.Module, Batch], Tensor],
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int = 64,
    weight_decay: float = 0.02,
    after_epoch: Callable[[], str] = lambda: "",
) -> None:
    """Train with AdamW, linear warm-up over the first tenth, then cosine decay to zero.

    Args:
        model: Trained in place and left in evaluation mode.
        data: Tensors of equal length.
        loss_of: Computes the loss of one batch, augmentation included.
        epochs: Passes over the data.
        learning_rate: Peak learning rate.
        batch_size: Examples per step.
        weight_decay: Applied to weight matrices and kernels only.
        after_epoch: Returns something to print after every epoch; called in evaluation mode.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate)
    total = epochs * (len(data[0]) // batch_size)

    def factor(step: int) -> float:
        warm_up = max(total // 10, 1)
        return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / total))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    begin = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        losses = []
        for batch in batches(data, batch_size, shuffle=True):
            loss = loss_of(model, batch)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        model.eval()
        seconds = time.perf_counter() - begin
        print(f"epoch {epoch + 1:2d}  {seconds:6.0f} s  loss {np.mean(losses):.4f}  {after_epoch()}", flush=True)


@torch.no_grad()
def accuracy(model: nn.Module, data: Batch) -> float:
    """Return the fraction (0..1) of images whose greatest logit is that of their label."""
    hits = [model(images.float()).argmax(1) == labels for images, labels in batches(data, 64, shuffle=False)]
    return float(torch.cat(hits).float().mean())


def export(
    model: nn.Module,
    stem: str,
    *,
    outputs: tuple[str, ...] = ("logits",),
    size: int = IMAGE_SIZE,
    model_type: str = "Classification",
    folder: Path = FOLDER,
    labels: Sequence[str] = CLASS_NAMES,
    single: Tensor | None = None,
) -> None:
    """Write ``<stem>.onnx`` and ``<stem>.xml``/``.bin`` with dynamic batch and descriptive metadata.

    Args:
        model: Maps float32 RGB ``[N, 3, size, size]`` (0..255) to one tensor or a tuple of tensors.
        stem: File name without extension.
        outputs: Output names, in order.
        size: Image side in pixels.
        model_type: Task name stored in the metadata.
        folder: Target folder.
        labels: Names of the classes by number.
        single: An image for a model that takes one at a time and gives lists of any length; the batch stays 1.
    """
    model.eval()
    # A batch of two, because tracing with one example invites exporters to specialise on it.
    example = torch.zeros(2, 3, size, size) if single is None else single
    free = (*(("image",) if single is None else ()), *outputs)
    onnx_path = folder / f"{stem}.onnx"
    torch.onnx.export(
        model,
        (example,),
        str(onnx_path),
        dynamo=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=list(outputs),
        dynamic_axes={name: {0: "batch" if single is None else "found"} for name in free},
    )
    proto = onnx.load(str(onnx_path))
    metadata = {
        "model_type": model_type,
        "labels": " ".join(labels),
        "colour_order": "RGB",
        "value_range": "0 255",
    }
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(onnx_path))

    converted = ov.convert_model(model, example_input=example, input=[-1 if single is None else 1, 3, size, size])
    converted.inputs[0].get_tensor().set_names({"image"})
    converted.get_parameters()[0].set_layout(ov.Layout("NCHW"))
    for port, name in zip(converted.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    info = {
        "model_type": model_type,
        "labels": " ".join(labels),
        # Readers of this section load images as BGR; the model wants RGB.
        "reverse_input_channels": "True",
        "resize_type": "standard",
    }
    for key, value in info.items():
        converted.set_rt_info(value, ["model_info", key])
    ov.save_model(converted, str(folder / f"{stem}.xml"), compress_to_fp16=False)
