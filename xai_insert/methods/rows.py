"""Running the head of a classifier on many pooled vectors at once, whatever batch its export has baked in.

After the grid is gone, axis 0 is the batch in every operation. The head is therefore copied node by node with a
longer axis 0 (one row per image and position); only reshapes name the batch, and each is written anew from the shape
of its result. A convolution on a 1x1 grid is a linear layer, and as one matrix product it runs much faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xai_insert.errors import CannotFreeBatchError
from xai_insert.graph.ops import Surgeon, V
from xai_insert.graph.view import Node, Op, Shape, Value, fixed, volume


def run_rows(surgeon: Surgeon[V], nodes: Sequence[Node], rows: Mapping[Value, V], result: Value) -> V:
    """Copy `nodes` with `rows` in place of the values that they replace.

    Args:
        surgeon: the model being edited.
        nodes: the head, in topological order.
        rows: for each pooled value `[B, ...]` its rows `[R, ...]`.
        result: the value to compute, `[B, ...]` in the model.

    Returns:
        `result` for every row, `[R, ...]`.

    Raises:
        CannotFreeBatchError: an operation mixes the batch axis with others.
    """
    made: dict[Value, V] = dict(rows)
    folded: set[Value] = set()  # values whose axis 0 is not the batch alone: only a further reshape may read them
    batch = (next(iter(rows)).shape or (None,))[0]
    for node in nodes:
        if all(output in made for output in node.outputs):
            continue
        if node.op is Op.SHAPE:
            outputs: Sequence[V] = [surgeon.handle(node.output)]
        elif node.op is Op.RESHAPE or (node.op is Op.EXPAND and _is_same_shape(node)):
            outputs = [_reshaped(surgeon, node, made, folded, batch)]
        elif any(value in folded for value in node.inputs):
            raise CannotFreeBatchError(f"{node.type} {node.name!r} reads no [batch, ...]")
        else:
            outputs = _run_node(surgeon, node, made)
        made.update(zip(node.outputs, outputs, strict=True))
    if result in folded:
        raise CannotFreeBatchError(f"{result.describe()} is no [batch, ...]")
    return made[result]


def _reshaped(surgeon: Surgeon[V], node: Node, made: Mapping[Value, V], folded: set[Value], batch: int | None) -> V:
    source, shape = node.inputs[0], node.output.shape
    if source is None or source not in made or shape is None:
        raise CannotFreeBatchError(f"{node.type} {node.name!r} gives no [batch, ...]")
    if not shape or shape[0] != batch:
        folded.add(node.output)
        return made[source]
    sizes = _completed(shape[1:], None if source in folded or source.shape is None else volume(source.shape[1:]))
    if sizes is None:
        raise CannotFreeBatchError(f"{node.type} {node.name!r} gives {node.output.describe()}, of unknown size")
    return surgeon.ops.reshape(made[source], [-1, *sizes])


def _completed(sizes: Shape, elements: int | None) -> list[int] | None:
    """Sizes per row, the one that may be unknown worked out from the number of elements."""
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return known
    if len(known) + 1 < len(sizes) or elements is None:
        return None
    rest = elements // (volume(known) or 1)
    return [rest if size is None else size for size in sizes]


def _run_node(surgeon: Surgeon[V], node: Node, made: Mapping[Value, V]) -> Sequence[V]:
    if node.op is Op.CONV and _is_linear(node):
        return [_linear(surgeon, node, made)]
    return surgeon.copy(node, [v if v is None else made.get(v, surgeon.handle(v)) for v in node.inputs])


def _is_same_shape(node: Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].shape == node.output.shape


def _require_free(node: Node, made: Mapping[Value, V]) -> None:
    reads_batch = any(v is not None and not v.is_constant and v not in made for v in node.inputs)
    moves_batch = (
        (node.op is Op.TRANSPOSE and (node.attrs["perm"] or (1,))[0] != 0)
        or (node.op in (Op.REDUCE, Op.LAYER_NORM) and 0 in (node.attrs["axes"] or (0,)))
        or (node.op in (Op.SOFTMAX, Op.CONCAT, Op.GATHER, Op.SPLIT) and node.attrs["axis"] == 0)
        or node.op is Op.EXPAND
        or node.output.shape is None
    )
    if reads_batch or moves_batch:
        raise CannotFreeBatchError(f"{node.type} {node.name!r} depends on the batch")


def _is_linear(node: Node) -> bool:
    weight, source = node.operand(1), node.operand(0)
    if weight is None or source is None or weight.shape is None or source.shape is None or not weight.is_constant:
        return False
    ungrouped = len(weight.shape) == len(source.shape) and weight.shape[1] == source.shape[1]
    return ungrouped and volume(weight.shape[2:]) == 1 and volume(source.shape[2:]) == 1 and not any(node.attrs["pads"])


def _linear(surgeon: Surgeon[V], node: Node, made: Mapping[Value, V]) -> V:
    op = surgeon.ops
    source, weight, bias = node.read(0), node.read(1), node.operand(2)
    out_channels, in_channels, *window = fixed(weight.sizes)
    rows = op.reshape(made[source], [-1, in_channels])
    scores = op.matmul(rows, op.reshape(surgeon.handle(weight), [out_channels, in_channels]), transpose_b=True)
    if bias is not None:
        scores = op.add(scores, surgeon.handle(bias))
    return op.reshape(scores, [-1, out_channels, *window])
