"""Export one architecture with several exporters and strip the results."""

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from model_zoo_fixtures.archives import kilobytes
from model_zoo_fixtures.export import shims  # noqa: F401 - must come before torchvision and timm
from model_zoo_fixtures.export.architectures import Architecture
from model_zoo_fixtures.export.expected import expect
from model_zoo_fixtures.export.exporters import EXPORTERS, quiet
from model_zoo_fixtures.export.init import random_images, reinitialise
from model_zoo_fixtures.export.strip import OverflowingError, check_alive, keep, run, strip

import torch  # isort: skip - after the shims

_LARGEST_FIXTURE = 100
_GAINS = (1.0, 0.85, 0.7)
_LICENCES = {
    "timm": "Apache-2.0",
    "torchvision": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "vit-pytorch": "MIT",
}


def export_all(arch: Architecture, exporters: list[str], full_weights: Path | None) -> Iterator[dict[str, Any]]:
    """Export an architecture and give one result for each exporter.

    Args:
        arch: What to export.
        exporters: Names of exporters.
        full_weights: Where to keep the exports with weights, or None.

    Yields:
        A table with ``exporter`` and either ``failure`` or what the manifest needs.
    """
    quiet()
    torch.set_num_threads(1)
    model, size = _build(arch)
    images = random_images(2, size, seed=1)
    facts = {
        "task": "classification",
        "package": f"{arch.source} {version(arch.source)}",
        "licence": _LICENCES[arch.source],
        "size": list(size),
        "expected": expect(model, images[:1], arch.feature_module) | arch.expected,
    }
    with torch.no_grad():
        answer = model(images[:1])
    answer = (answer if isinstance(answer, torch.Tensor) else answer[0]).numpy()
    with TemporaryDirectory() as scratch:
        folder = full_weights or Path(scratch)
        for exporter in exporters:
            result: dict[str, Any] = {"exporter": exporter}
            try:
                path, note = _export(arch, model, exporter, images[:1], folder)
                difference = float(np.abs(run(path, images[:1].numpy())[0].reshape(answer.shape) - answer).max())
                if difference > 1e-2 * float(np.abs(answer).max()):
                    raise ValueError(f"the export's logits differ from the model's by {difference:.2g}")
                size_in_kb = _make_fixture(path, f"{arch.id}.{exporter}", images.numpy())
                result |= facts | {"kilobytes": size_in_kb, "note": note}
            except Exception as error:
                result["failure"] = _reason(error)
            yield result


def _build(arch: Architecture) -> tuple[torch.nn.Module, tuple[int, int]]:
    model = arch.build()
    configuration = getattr(model, "pretrained_cfg", {})
    size = arch.size or tuple(configuration.get("input_size", (3, 224, 224))[1:])
    reinitialise(model, arch.id, size)
    return model, size


def _export(
    arch: Architecture, model: torch.nn.Module, exporter: str, images: torch.Tensor, folder: Path
) -> tuple[Path, str]:
    stem = folder / f"{arch.id}.{exporter}"
    try:
        with torch.no_grad():
            return EXPORTERS[exporter](model, images, stem), ""
    except Exception:
        if arch.source != "timm" or exporter not in ("legacy", "onnxir", "dynamo"):
            raise
        import timm.layers

        timm.layers.set_fused_attn(False)
        try:
            with torch.no_grad():
                return EXPORTERS[exporter](_build(replace(arch))[0], images, stem), "unfused attention"
        finally:
            timm.layers.set_fused_attn(True)


def _make_fixture(path: Path, fixture_id: str, images: np.ndarray) -> int:
    """Strip an export, with smaller stand-ins if the first are too large for the network, and give the size in KB."""
    for gain in _GAINS:
        skeleton = strip(path, fixture_id, gain)
        size_in_kb = kilobytes(skeleton)
        if size_in_kb > _LARGEST_FIXTURE:
            raise ValueError(f"the fixture would take {size_in_kb} KB, for constants that cannot be left out")
        try:
            check_alive(skeleton, images)
            keep(skeleton, fixture_id)
            return size_in_kb
        except OverflowingError:
            if gain == _GAINS[-1]:
                raise
    raise AssertionError("unreachable")


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:140]
