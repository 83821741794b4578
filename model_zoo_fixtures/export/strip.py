"""From an exported model to a fixture, and proof that the fixture is alive."""

import zlib
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_zoo_fixtures.archives import Skeleton, replace_in_archive
from model_zoo_fixtures.catalogue import GRAPHS
from model_zoo_fixtures.ir_graphs import fill_ir, strip_ir
from model_zoo_fixtures.onnx_graphs import fill_onnx, strip_onnx

Array = NDArray[Any]
_LARGEST_OUTPUT = 1e4


class DegenerateError(ValueError):
    """A model whose outputs are not finite, do not depend on the image or are huge."""


class OverflowingError(DegenerateError):
    """A model whose outputs are huge, so that smaller stand-ins may help."""


def strip(source: Path, fixture_id: str, gain: float = 1.0, salt: str = "") -> Skeleton:
    """Take the weights out of an exported model.

    Args:
        source: The ``.onnx`` or ``.xml`` file.
        fixture_id: ``<arch>.<exporter>``; the seed comes from it.
        gain: Factor on the size of stand-ins with elements of both signs.
        salt: What else the seed comes from.

    Returns:
        What is left.
    """
    is_ir = source.suffix == ".xml"
    seed = zlib.crc32((fixture_id + salt).encode())
    skeleton = strip_ir(source, seed) if is_ir else strip_onnx(source, seed)
    if gain == 1.0:
        return skeleton
    return replace(skeleton, recipes=tuple(recipe and recipe.scaled(gain) for recipe in skeleton.recipes))


def keep(skeleton: Skeleton, fixture_id: str) -> None:
    """Take a stripped model into the zoo, as the fixture ``<arch>.<exporter>``."""
    arch, _, exporter = fixture_id.rpartition(".")
    replace_in_archive(GRAPHS / f"{arch}.tar.xz", exporter, skeleton)


def fill(skeleton: Skeleton, folder: Path) -> Path:
    """Write a model with stand-ins for its weights; give its path."""
    return (fill_ir if skeleton.format == "ir" else fill_onnx)(skeleton, folder)


def check_alive(skeleton: Skeleton, images: Array) -> None:
    """Check that a model with stand-ins for its weights still answers to its input.

    Args:
        skeleton: A model without weights.
        images: Two different images, float32 ``[2, C, H, W]``.

    Raises:
        DegenerateError: It does not.
    """
    with TemporaryDirectory() as folder:
        model = fill(skeleton, Path(folder))
        first, second = (run(model, images[index : index + 1]) for index in range(2))
    for one, other in zip(first, second, strict=True):
        if one.dtype.kind != "f":
            continue
        if not np.isfinite(one).all():
            raise OverflowingError("stand-in outputs are not finite")
        if float(np.abs(one).max()) > _LARGEST_OUTPUT:
            raise OverflowingError(f"stand-in outputs are as large as {float(np.abs(one).max()):.2g}")
        if float(np.abs(one - other).max()) < 1e-5 * float(np.abs(one).max()):
            raise DegenerateError("stand-in outputs hardly depend on the image")


def run(model: Path, image: Array) -> list[Array]:
    """Run a model file in the runtime of its format, in float32.

    Args:
        model: ``.onnx`` or ``.xml``.
        image: float32 ``[1, C, H, W]``.

    Returns:
        Its outputs in order.
    """
    if model.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, {session.get_inputs()[0].name: image}))
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    results = ov.Core().compile_model(model, "CPU", settings)(image)
    return [np.array(results[index]) for index in range(len(results))]
