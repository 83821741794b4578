"""Names, which the format lets a model leave out."""

import onnx_ir as ir


def name_of(item: ir.Value | ir.Node | ir.TensorProtocol) -> str:
    """The name of a value, a node or a tensor; empty if it has none."""
    return item.name or ""
