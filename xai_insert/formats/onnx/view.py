"""Read-only view of an `onnx_ir.Model`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from xai_insert.errors import UnsupportedTaskError
from xai_insert.formats.guard import taking_apart
from xai_insert.formats.onnx.fields import integer
from xai_insert.formats.onnx.names import name_of
from xai_insert.formats.onnx.reader import read
from xai_insert.formats.onnx.shapes import ML_DOMAIN, Inferred
from xai_insert.formats.onnx.single import bodies, holds_graph, operands, reference
from xai_insert.formats.onnx.vocabulary import FUSED_ELEMENTWISE, INTEGER, OPS, WITHOUT_KERNEL
from xai_insert.graph.items import present
from xai_insert.graph.operators import Operator, Regroup, Softmax, Unknown
from xai_insert.graph.rounding import is_half
from xai_insert.graph.strided import counts_rows, is_identity_gather
from xai_insert.graph.traits import DRAWS
from xai_insert.graph.view import Graph, Node, Op, Shape, Value, constant_of, kept_if_few, volume

_ONNX_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class IntegerWeight:
    """The weight of an integer product: what `elements - zero_point` is.

    Attributes:
        elements: integers.
        zero_point: one, or one for each output channel; None is zero.
        channel_axis: the axis of the output channels.
    """

    elements: ir.Value
    zero_point: ir.Value | None
    channel_axis: int

    def zero_point_sizes(self, rank: int) -> list[int]:
        """Sizes with which the zero point broadcasts against the elements."""
        return [-1 if axis == self.channel_axis else 1 for axis in range(rank)]


def build_view(
    model: ir.Model,
    inferred: Inferred,
    hidden: Collection[ir.Node] = (),
    fused: Mapping[ir.Value, ir.Value] | None = None,
) -> Graph:
    """View of `model`.

    Constant subgraphs (dequantised weights, folded shapes) appear as constants. Floats of any width are float32, and
    integer products are products of floats, as in the branch, see `Surgeon`.

    Args:
        model: the model; its values must have unique names, as the format demands.
        inferred: sizes and element types, better informed than those stored in the model.
        hidden: nodes that are written out beside, and stay out of the view.
        fused: their results, by what stands for them in the view, and goes by the names that the model gives them.

    Raises:
        UnsupportedTaskError: layers are written for one kind of processor, whose layout of channels is not followed.
    """
    graph = model.graph
    _require_known_layout(graph)
    fused = fused or {}
    known_as = {new: old for new, old in fused.items() if not new.is_graph_output()}
    values: dict[ir.Value, Value] = {}

    def view_of(native: ir.Value) -> Value:
        if native not in values:
            values[native] = _value(native, inferred, known_as.get(native, native).name or "")
        return values[native]

    nodes: list[Node] = []
    living = _living(graph)
    for native in (native for native in graph if native in living and native not in hidden):
        inputs = tuple(None if operand is None else view_of(operand) for operand in native.inputs)
        outputs = tuple(view_of(output) for output in native.outputs)
        if not _fold(native, inputs, outputs):
            captured = tuple(map(view_of, _captured(native)))
            name = _written_as(native, fused).name or outputs[0].name
            nodes.append(_node(name, native, inputs, captured, outputs))
    inputs_ = [view_of(value) for value in graph.inputs if value.name not in graph.initializers]
    names = [name_of(value) for value in graph.outputs]
    return Graph(inputs_, [view_of(_named_scores(value)) for value in graph.outputs], names, nodes, _hint(nodes))


def _node(
    name: str,
    native: ir.Node,
    inputs: tuple[Value | None, ...],
    captured: tuple[Value, ...],
    outputs: tuple[Value, ...],
) -> Node:
    """An operation between the values that it reads, those that its subgraphs capture among them, and gives."""
    if native.op_type in INTEGER:
        inputs = _float_operands(native, inputs)
    kind = read(native, (*inputs, *captured), outputs)
    op = _op(native, inputs, kind)
    if op is Op.RESHAPE and not isinstance(kind, Regroup):
        kind = Regroup()
    node = Node(name, op, native.op_type, (*inputs, *captured), outputs, native, kind)
    node.link()
    return node


def _value(native: ir.Value, inferred: Inferred, shown_as: str) -> Value:
    shape = inferred.shapes.get(name_of(native), _shape(native))
    value = Value(shown_as, shape, _dtype(inferred.type_of(native)), native, index=native.index() or 0)
    if native.const_value is not None and native.producer() is None and not native.is_graph_input():
        value.load = _reader(native.const_value)
        value.shape = _tensor_shape(native.const_value)
    return value


def _require_known_layout(graph: ir.Graph) -> None:
    if any(native.domain == "com.microsoft.nchwc" for native in graph):
        raise UnsupportedTaskError(
            "onnxruntime has written its layers for one kind of processor (the NCHWc layout of ORT_ENABLE_ALL): give "
            "the model that it read, or let it write at ORT_ENABLE_EXTENDED"
        )


def _written_as(native: ir.Node, fused: Mapping[ir.Value, ir.Value]) -> ir.Node:
    """The fused node whose first result a node gives in the view; else the node itself."""
    whole = fused.get(native.outputs[0])
    maker = None if whole is None or whole.index() != 0 else whole.producer()
    return native if maker is None else maker


def _named_scores(output: ir.Value) -> ir.Value:
    """The scores that an output gives by the names of their classes; else itself."""
    node = output.producer()
    if node is None or (node.domain, node.op_type) != (ML_DOMAIN, "ZipMap") or node.inputs[0] is None:
        return output
    return node.inputs[0]


def _hint(nodes: list[Node]) -> str:
    foreign = next(filter(_is_foreign, nodes), None)
    if foreign is not None:
        return (
            f"{foreign.type} {foreign.name!r} is no operator of ONNX, the exporter has left it as it was: replace it "
            "before the export, or export to OpenVINO"
        )
    packed = next((node.type for node in nodes if node.type in WITHOUT_KERNEL), None)
    if packed is not None:
        return f"onnxruntime runs {packed} on GPUs alone: give the model from which its optimizer has made that"
    fused = next((node.type for node in nodes if node.type.startswith("QLinear") or node.type == "QGemm"), None)
    if fused is None:
        return ""
    return (
        f"the model is quantised in the QOperator format ({fused}), whose layers compute and round at once: quantise "
        "with QuantFormat.QDQ, which onnxruntime runs with the same integer kernels"
    )


def _is_foreign(node: Node) -> bool:
    """Whether a node stands among ONNX's own operators, of which none has its name."""
    if type(node.kind) is not Unknown or node.native.domain:
        return False
    from onnx import defs  # noqa: PLC0415 - see `maps`; few models have such a node

    return not defs.has(node.native.op_type)


def _shape(value: ir.Value) -> Shape | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def _dtype(kind: ir.DataType | None) -> str:
    return "unknown" if kind is None else _DTYPES.get(kind.name, kind.name.lower())


_DTYPES = dict.fromkeys(("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"), "float32") | {"BOOL": "bool"}


def _float_operands(native: ir.Node, inputs: tuple[Value | None, ...]) -> tuple[Value | None, ...]:
    """Operands of an integer product as those of a product of floats: without zero points, the weight folded."""
    source, weight, zero = inputs[0], inputs[1], inputs[3] if len(inputs) > 3 else None
    if weight is None or not weight.is_constant or not (zero is None or zero.is_constant):
        return inputs[:2]
    axis = len(weight.sizes) - 1 if native.op_type == "MatMulInteger" else 0
    whole = IntegerWeight(weight.native, None if zero is None else zero.native, axis)

    def load() -> npt.NDArray[Any]:
        elements = weight.elements().astype(np.float32)
        if zero is None:
            return elements
        return elements - zero.elements().astype(np.float32).reshape(whole.zero_point_sizes(elements.ndim))

    return source, Value(weight.name, weight.shape, "float32", whole, load=load)


def _reader(tensor: ir.TensorProtocol) -> Callable[[], npt.NDArray[Any]]:
    def read() -> npt.NDArray[Any]:
        with taking_apart(f"the constant {tensor.name!r}"):
            elements: npt.NDArray[Any] = tensor.numpy()
            return elements.astype(np.float32) if is_half(elements.dtype.name) else elements

    return read


def _tensor_shape(tensor: ir.TensorProtocol) -> Shape:
    return tuple(size for size in tensor.shape if isinstance(size, int))


def _living(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that lead to an output; what a file holds beside them, OpenVINO does not read either."""
    found = set[ir.Node]()
    left = [value.producer() for value in graph.outputs]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [value.producer() for value in (*operands(node), *_captured(node))]
    return found


def _captured(native: ir.Node) -> list[ir.Value]:
    """Values of the outer graph that the node's subgraphs (If, Loop, Scan) read; they are operands as well."""
    return list(dict.fromkeys(value for body in bodies(native) for value in _read_from_outside(body)))


def _read_from_outside(body: ir.Graph) -> list[ir.Value]:
    """What a subgraph, with those inside it, reads and does not make."""
    nodes = list(ir.traversal.RecursiveGraphIterator(body))
    graphs = [body, *(part for node in nodes for part in bodies(node))]
    inner = {value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())}
    inner.update(value for node in nodes for value in node.outputs)
    read = [*(value for node in nodes for value in operands(node)), *body.outputs]
    return [value for value in read if value not in inner]


def _fold(native: ir.Node, inputs: tuple[Value | None, ...], outputs: tuple[Value, ...]) -> bool:
    """Turn the outputs of a node into constants where its operands are; whether that was done."""
    if (native.domain, native.op_type) == ("com.microsoft", "DequantizeLinear") and _can_be_run(native, inputs):
        outputs[0].load = lambda: _dequantised(native, inputs)
        outputs[0].shape = None if inputs[0] is None else inputs[0].shape
        return True
    if native.domain not in _ONNX_DOMAINS:
        return False
    if native.op_type == "Constant":
        return _fold_constant(native, outputs[0])
    if native.op_type == "Shape" and inputs[0] is not None and inputs[0].shape is not None:
        return _fold_shape(native, inputs[0].shape, outputs[0])
    if native.op_type == "Gather" and (sizes := _taken_sizes(inputs)) is not None:
        outputs[0].load, outputs[0].shape = (lambda: sizes), sizes.shape
        return True
    return _can_be_run(native, inputs) and _fold_results(native, inputs, outputs)


def _fold_constant(native: ir.Node, output: Value) -> bool:
    """Let an output be what a node holds."""
    attribute = next(iter(native.attributes.values()))
    tensor = attribute.value if attribute.type == ir.AttributeType.TENSOR else ir.tensor(attribute.value)
    output.load, output.shape = _reader(tensor), _tensor_shape(tensor)
    return True


def _fold_results(native: ir.Node, inputs: tuple[Value | None, ...], outputs: tuple[Value, ...]) -> bool:
    """Let the outputs be what a run of the node gives."""
    for index, output in enumerate(outputs):
        output.load = _evaluator(native, inputs, index)
        if output.shape is None or None in output.shape:
            output.shape = tuple(output.elements().shape)
    return True


def _dequantised(native: ir.Node, inputs: tuple[Value | None, ...]) -> npt.NDArray[Any]:
    """What onnxruntime's own DequantizeLinear gives of stored integers, which may have 4 or 16 bits."""
    numbers, *others = (value.elements().astype(np.float32) for value in inputs if value is not None)
    axis, block = integer(native, "axis", 1), integer(native, "block_size", 0)
    if block:
        others = [np.repeat(part, block, axis).take(range(numbers.shape[axis]), axis) for part in others]
    elif others[0].size > 1:
        sizes = [-1 if place == axis % numbers.ndim else 1 for place in range(numbers.ndim)]
        others = [part.reshape(sizes) for part in others]
    scale, zero = others[0], others[1] if len(others) > 1 else np.float32(0)
    return (numbers - zero) * scale


def _can_be_run(native: ir.Node, inputs: tuple[Value | None, ...]) -> bool:
    """Whether a node gives the same whenever it is run, from constants alone."""
    given = present(inputs)
    if not given or not all(value.is_constant for value in given):
        return False
    if len(native.outputs) != 1 and native.op_type != "DynamicQuantizeLinear":  # as of weights that stand in nodes
        return False
    return native.op_type not in DRAWS and not holds_graph(native)


def _fold_shape(native: ir.Node, shape: Shape, output: Value) -> bool:
    start, end = (native.attributes[k].as_int() if k in native.attributes else None for k in ("start", "end"))
    part = shape[start:end]
    if None in part:
        return False
    output.load, output.shape = (lambda: np.array(part, np.int64)), (len(part),)
    return True


def _taken_sizes(inputs: tuple[Value | None, ...]) -> npt.NDArray[np.int64] | None:
    """What a node takes of a shape whose batch alone may be open, if these sizes are known."""
    whole, places = inputs
    shape = None if whole is None else whole.producer
    indices = constant_of(places)
    if shape is None or shape.type != "Shape" or shape.native.attributes or indices is None:
        return None
    sizes = shape.read(0).shape or ()
    taken = [sizes[index] if -len(sizes) <= index < len(sizes) else None for index in indices.reshape(-1).tolist()]
    return None if None in taken else np.array(taken, np.int64).reshape(indices.shape)


def _evaluator(native: ir.Node, inputs: tuple[Value | None, ...], index: int) -> Callable[[], npt.NDArray[Any]]:
    def evaluate() -> npt.NDArray[Any]:
        with taking_apart(f"the node {native.name!r}"):
            runner = reference(native)
        pairs = zip(native.inputs, inputs, strict=True)
        feeds = {name_of(name): value.elements() for name, value in pairs if name is not None and value is not None}
        with taking_apart(f"the constant {native.outputs[index].name!r}"):
            results: Any = runner.run(None, feeds)
            folded = np.asarray(results[index])
        return folded.astype(np.float32) if is_half(folded.dtype.name) else folded

    return kept_if_few(evaluate)


def _op(native: ir.Node, inputs: tuple[Value | None, ...], kind: Operator) -> Op:
    if native.domain not in _ONNX_DOMAINS:
        return _contributed_op(native)
    if native.op_type.startswith("Reduce"):
        return Op.REDUCE
    if native.op_type == "Gather" and (is_identity_gather(*inputs[:2]) or _reads_rows(native, inputs)):
        return Op.RESHAPE
    is_joint = isinstance(kind, Softmax) and len(kind.axes) != 1  # old ones take their axis and all that follow for one
    return Op.OTHER if is_joint else OPS.get(native.op_type, Op.OTHER)


def _contributed_op(native: ir.Node) -> Op:
    """Of an operation of another domain: those of Microsoft's that the standard has too, or that are elementwise."""
    if native.domain != "com.microsoft":
        return Op.OTHER
    if native.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return Op.QUANTIZE
    return Op.ELEMENTWISE if native.op_type in FUSED_ELEMENTWISE else Op.OTHER


def _reads_rows(native: ir.Node, inputs: tuple[Value | None, ...]) -> bool:
    """Whether a Gather gives a flattened value its shape again, the first size open, but by a name that both have."""
    data, places = inputs[:2]
    flat = None if data is None or data.rank != 1 else data.made_by(Op.RESHAPE)
    if flat is None or places is None:
        return False
    source, result = flat.read(0), native.outputs[0]
    before, width = source.native.shape, volume((source.shape or (None,))[1:])
    is_same = before is not None and before == result.shape and all(isinstance(n, int) or n.value for n in before)
    return is_same and width is not None and counts_rows(places, width)
