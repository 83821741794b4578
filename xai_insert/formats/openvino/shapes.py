"""Shapes and element types as OpenVINO's readers infer them, for other formats whose own inference sees less."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import openvino as ov

from xai_insert.formats import batches
from xai_insert.formats.guard import RAISED
from xai_insert.formats.openvino.view import dtype_name, static_shape
from xai_insert.graph.shape import with_open
from xai_insert.graph.view import Shape

logger = logging.getLogger(__name__)

_TYPES = frozenset({"float32", "float64", "int64", "int32", "uint8", "int8"})
"""Element types that both libraries call alike."""


def read_shapes(source: str | bytes, input_shapes: Mapping[str, Shape]) -> tuple[dict[str, Shape], dict[str, str]]:
    """Sizes, and NumPy names of element types, by tensor name; empty if OpenVINO cannot read the model.

    Args:
        source: path or content of a model file.
        input_shapes: sizes of inputs that are to be taken instead of the stored ones.
    """
    try:
        model = ov.Core().read_model(source)
        if input_shapes:
            model.reshape({name: with_open(sizes) for name, sizes in input_shapes.items()})
    except RAISED as err:
        logger.debug("OpenVINO cannot read the model for its shapes: %s", err)
        return {}, {}
    return _sizes(model), _types(model)


def _types(model: ov.Model) -> dict[str, str]:
    """NumPy names of element types, by tensor name."""
    outputs = [output for node in model.get_ordered_ops() for output in node.outputs()]
    kinds = [(output, dtype_name(output.get_element_type())) for output in outputs]
    return {name: kind for output, kind in kinds if kind in _TYPES for name in output.get_names()}


def name_open_sizes(model: ov.Model) -> None:
    """Give each open size of the inputs a symbol, by which inference sees through a reshape that keeps it.

    Exporters write a reshape to batch, tokens, -1 and width: without a symbol nothing tells that -1 is the heads.
    """
    if not model.is_dynamic():
        return
    for parameter in model.get_parameters():
        sizes = parameter.get_partial_shape()
        if sizes.rank.is_dynamic:
            continue
        for axis, size in enumerate(sizes):
            if size.is_dynamic and not size.has_symbol():
                size.set_symbol(ov.Symbol())
                sizes[axis] = size
        parameter.set_partial_shape(sizes)
    model.validate_nodes_and_infer_types()


def _sizes(model: ov.Model) -> dict[str, Shape]:
    if not model.is_dynamic():
        return _shapes(model)
    try:
        smaller, larger = (_with_batch(model, batch) for batch in batches.TRIED)
    except RuntimeError as err:  # the batch is no size of its own, or the model takes one only
        logger.debug("sizes with a free batch: %s", err)
        name_open_sizes(model)
        return _shapes(model)
    return {name: batches.common(shape, larger.get(name)) for name, shape in smaller.items()}


def _with_batch(model: ov.Model, batch: int) -> dict[str, Shape]:
    """Sizes for one batch, where the batch is all that the inputs leave open."""
    shapes = [list(port.get_partial_shape()) for port in model.inputs]
    if any(size.is_dynamic for shape in shapes for size in shape[1:]):
        raise RuntimeError("sizes other than the batch are open")
    twin = model.clone()
    twin.reshape({index: [batch if size.is_dynamic else size for size in shape] for index, shape in enumerate(shapes)})
    return _shapes(twin)


def _shapes(model: ov.Model) -> dict[str, Shape]:
    return {
        name: shape
        for node in model.get_ordered_ops()
        for output in node.outputs()
        if (shape := static_shape(output.get_partial_shape())) is not None
        for name in output.get_names()
    }
