"""Take the weights out of an ONNX model, and put stand-ins in."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx import numpy_helper

from model_zoo_fixtures.archives import Skeleton
from model_zoo_fixtures.recipes import Recipe, cook, make_recipe

_PAYLOADS = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data")


def strip_onnx(source: Path, seed: int) -> Skeleton:
    """Take the weights out of a model.

    Tensors with a recipe keep name, dims and dtype and lose their data. The exporter's notes on nodes (metadata and doc
    strings, which hold stack traces) go too.

    Args:
        source: An ONNX file with weights, inside or beside it.
        seed: Seed of the stand-ins.

    Returns:
        The model without weights.
    """
    model = onnx.load(source)
    recipes: list[Recipe | None] = []
    for tensor in _tensors_of(model):
        is_text = tensor.data_type == onnx.TensorProto.STRING
        recipes.append(None if is_text else make_recipe(numpy_helper.to_array(tensor)))
        if recipes[-1] is not None:
            for payload in _PAYLOADS:
                tensor.ClearField(payload)
    _drop_notes(model.graph)
    for function in model.functions:
        _drop_notes(function)
    del model.metadata_props[:]
    return Skeleton("onnx", model.SerializeToString(), seed, tuple(recipes))


def fill_onnx(skeleton: Skeleton, folder: Path) -> Path:
    """Write a model with stand-ins for its weights.

    Args:
        skeleton: What ``strip_onnx`` gave.
        folder: An existing folder.

    Returns:
        Path of the written ``model.onnx``.
    """
    model = onnx.ModelProto.FromString(skeleton.graph)
    for index, (tensor, recipe) in enumerate(zip(_tensors_of(model), skeleton.recipes, strict=True)):
        if recipe is not None:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.raw_data = cook(recipe, tuple(tensor.dims), dtype, skeleton.seed, index).tobytes()
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _tensors_in_graph(model.graph)
    for function in model.functions:
        yield from _tensors_in_nodes(function.node)


def _tensors_in_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _tensors_in_nodes(graph.node)


def _tensors_in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.TENSORS:
                yield from attribute.tensors
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors_in_graph(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for graph in attribute.graphs:
                    yield from _tensors_in_graph(graph)


def _drop_notes(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    items = list(graph.node) + list(graph.value_info)
    if isinstance(graph, onnx.GraphProto):
        items += list(graph.initializer) + list(graph.input) + list(graph.output)
    for item in items:
        del item.metadata_props[:]
        item.ClearField("doc_string")
    del graph.metadata_props[:]
    graph.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _drop_notes(attribute.g)
