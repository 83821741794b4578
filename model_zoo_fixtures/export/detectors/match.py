"""Find the tensors of an exported detector that hold what its PyTorch model computed, by their values."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_TOLERANCE = 3e-3
_LARGEST_PREFIX = 5
_ONNX_HEADS = ("Conv", "MatMul", "Gemm", "Add", "Concat", "LayerNormalization", "Relu", "Sum")
_IR_HEADS = ("Convolution", "MatMul", "Add", "Multiply", "Concat", "Relu", "Swish")


@dataclass(frozen=True)
class Found:
    """Where raw scores are.

    Attributes:
        names: One tensor for each level, or one for all of them where scores are kept by token; an ONNX value name,
            or the name of an IR layer.
        row: Width of the row of channels that one anchor takes.
        offset: Place of the first class in that row.
    """

    names: list[str]
    row: int
    offset: int


Run = tuple[dict[str, Array], list[Array]]


def read_tensors(model: Path, images: Array, sizes: set[int] | None) -> list[Run]:
    """Run a model on single images and give the outputs of its linear layers, in graph order, and its own.

    Args:
        model: ``.onnx`` or ``.xml``.
        images: float32, one input after the other along the first axis.
        sizes: Numbers of elements that matter; all if None.

    Returns:
        For each image: arrays by name, of the value (ONNX) or of the layer (IR); and the model's outputs in order.
    """
    return (_read_onnx if model.suffix == ".onnx" else _read_ir)(model, images, sizes)


def _read_onnx(path: Path, images: Array, sizes: set[int] | None) -> list[Run]:
    import onnx
    import onnxruntime

    model = onnx.load(path)
    given = [value.name for value in model.graph.output]
    names = [node.output[0] for node in model.graph.node if node.op_type in _ONNX_HEADS]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in given)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name
    runs = []
    for image in images:
        results = session.run([*given, *names], {entry: image[None]})
        tensors = dict(zip(names, results[len(given) :], strict=True))
        chosen = {name: array for name, array in tensors.items() if sizes is None or array.size in sizes}
        runs.append((chosen, results[: len(given)]))
    return runs


def _read_ir(path: Path, images: Array, sizes: set[int] | None) -> list[Run]:
    import openvino as ov
    from openvino import opset13 as ops

    core = ov.Core()
    model = core.read_model(path)
    model.reshape([1, *images.shape[1:]])
    everything = Counter(node.get_friendly_name() for node in model.get_ordered_ops())
    chosen = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() in _IR_HEADS
        and node.get_output_partial_shape(0).is_static
        and (sizes is None or int(np.prod(list(node.get_output_shape(0)))) in sizes)
        and node.get_output_element_type(0) == ov.Type.f32
        and everything[node.get_friendly_name()] == 1
    ]
    names = [node.get_friendly_name() for node in chosen]
    count = len(model.outputs)
    model.add_results([ops.result(node.output(0)) for node in chosen])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(model, "CPU", settings)
    runs = []
    for image in images:
        results = [np.array(value) for value in compiled(image[None]).values()]
        runs.append((dict(zip(names, results[count:], strict=True)), results[:count]))
    return runs


def find_scores(tensors: dict[str, Array], levels: list[Array], anchors: list[int], classes: int) -> Found | None:
    """Find the tensors that hold the raw scores of all levels.

    Args:
        tensors: What ``read_tensors`` gave.
        levels: Raw scores ``[1, A * K, h, w]`` of the same image.
        anchors: Anchors for each level.
        classes: Number of classes ``K``.

    Returns:
        Where they are, or None.
    """
    found = [_find_map(tensors, level, count, classes) for level, count in zip(levels, anchors, strict=True)]
    rows = {place[1:] for place in found if place is not None}
    if len(rows) == 1 and None not in found:
        row, offset = rows.pop()
        return Found([place[0] for place in found if place is not None], row, offset)
    tokens = np.concatenate([_by_token(level).reshape(-1) for level in levels])
    for name, array in tensors.items():
        if array.ndim >= 2 and array.shape[-1] == classes and _is_close(array.reshape(-1), tokens):
            return Found([name], classes, 0)
    return None


def _by_token(level: Array) -> Array:
    return level.reshape(*level.shape[:2], -1).transpose(0, 2, 1)


def _find_map(tensors: dict[str, Array], level: Array, anchors: int, classes: int) -> tuple[str, int, int] | None:
    wanted = level.reshape(anchors, classes, *level.shape[2:])
    for name, array in tensors.items():
        if array.ndim != 4 or array.shape[0] != 1 or array.shape[2:] != level.shape[2:] or array.shape[1] % anchors:
            continue
        row = array.shape[1] // anchors
        for offset in range(row - classes + 1):
            if _is_close(array.reshape(anchors, row, *level.shape[2:])[:, offset : offset + classes], wanted):
                return name, row, offset
    return None


def find_maps(tensors: dict[str, Array], maps: list[Array]) -> Found | None:
    """Find the tensors that hold feature maps ``[1, C, h, w]``, one for each or one with the tokens of all.

    Args:
        tensors: What ``read_tensors`` gave.
        maps: Feature maps of the same image.

    Returns:
        Where they are; ``row`` is their number of channels, ``offset`` the number of tokens before the first.
    """
    names = [
        next((name for name, array in tensors.items() if _is_close(array.reshape(-1), wanted.reshape(-1))), None)
        for wanted in maps
    ]
    channels = maps[0].shape[1]
    if None not in names:
        return Found([name for name in names if name is not None], channels, 0)
    tokens = np.concatenate([_by_token(wanted)[0] for wanted in maps])
    for name, array in tensors.items():
        rows = array.reshape(-1, array.shape[-1])
        if array.shape[-1] == channels:
            for offset in range(min(_LARGEST_PREFIX, len(rows) - len(tokens)) + 1):
                if _is_close(rows[offset : offset + len(tokens)], tokens):
                    return Found([name], channels, offset)
    return None


def _is_close(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    largest = float(np.abs(other).max())
    return float(np.abs(one - other).max()) <= _TOLERANCE * largest
