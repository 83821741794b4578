"""Shapes as OpenVINO's readers infer them, for other formats whose own inference sees less."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import openvino as ov

from xai_insert.formats.guard import RAISED
from xai_insert.formats.openvino.view import static_shape
from xai_insert.graph.view import Shape

logger = logging.getLogger(__name__)


def read_shapes(source: str | bytes, input_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Sizes by tensor name; empty if OpenVINO cannot read the model.

    Args:
        source: path or content of a model file.
        input_shapes: sizes of inputs that are to be taken instead of the stored ones.
    """
    try:
        model = ov.Core().read_model(source)
        if input_shapes:
            model.reshape({name: [-1 if d is None else d for d in sizes] for name, sizes in input_shapes.items()})
    except RAISED as err:
        logger.debug("OpenVINO cannot read the model for its shapes: %s", err)
        return {}
    return {
        name: shape
        for node in model.get_ordered_ops()
        for output in node.outputs()
        if (shape := static_shape(output.get_partial_shape())) is not None
        for name in output.get_names()
    }
