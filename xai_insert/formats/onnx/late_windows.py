"""Windows of pools that round up which would begin behind the image, in its padding.

ONNX's inference counts them, onnxruntime's kernels leave them out: what stands behind has other sizes than it is said.
"""

from __future__ import annotations

import onnx_ir as ir

from xai_insert.formats.onnx.fields import integer, ints
from xai_insert.formats.onnx.names import name_of
from xai_insert.formats.onnx.shapes import infer
from xai_insert.graph.view import Shape


def about_late_windows(model: ir.Model) -> str:
    """Why a model with such a pool does not run with what is added behind it; empty where there is none."""
    pools = [node for node in model.graph if integer(node, "ceil_mode", 0)]
    shapes = infer(model, {}, by_runtimes=False).shapes if pools else {}
    late = [
        node for node in pools if node.inputs[0] is not None and _is_late(node, shapes.get(name_of(node.inputs[0])))
    ]
    if not late:
        return ""
    return (
        f"the last window of the pool {late[0].name!r}, which rounds up (ceil_mode), begins in its padding; "
        "onnxruntime leaves it out and counts it all the same: export with ceil_mode=False or for another size"
    )


def _is_late(node: ir.Node, source: Shape | None) -> bool:
    kernel = ints(node, "kernel_shape") or ()
    sides, ones = (source or ())[2:], (1,) * len(kernel)
    pads = ints(node, "pads") or (0,) * 2 * len(kernel)
    strides, dilations = ints(node, "strides") or ones, ints(node, "dilations") or ones
    for size, cells, stride, step, begin, end in zip(
        sides, kernel, strides, dilations, pads, pads[len(kernel) :], strict=False
    ):
        reach = (cells - 1) * step + 1
        if size is not None and -(-(begin + size + end - reach) // stride) * stride >= begin + size:
            return True
    return False
