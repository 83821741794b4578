"""Sizes and element types of every value of an ONNX model.

By ONNX's own inference and, where that fails, by onnxruntime's, which computes what depends on no input: real exports
carry computed reshapes and pads through which ONNX's inference cannot see (a fifth of a Swin's values). By OpenVINO's
reader where a size is open even so, as behind a selection of boxes; it is imported for those models only.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from xai_insert.formats import batches
from xai_insert.formats.onnx.kinds import float_kinds
from xai_insert.formats.onnx.maps import to_proto
from xai_insert.formats.onnx.names import name_of
from xai_insert.formats.onnx.single import operand
from xai_insert.formats.onnx.stale import at_odd_sizes, contradict
from xai_insert.formats.onnx.stored import exchanged
from xai_insert.formats.onnx.vocabulary import KEEPS_SIZES
from xai_insert.formats.onnx.widening import holds_bfloat16, widen_bfloat16
from xai_insert.graph.view import Shape

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

Described = tuple[dict[str, Shape], dict[str, ir.DataType]]
"""Sizes and element types of values by their names."""

_LARGE = 1 << 16
"""Bytes of a weight that is not handed to another library."""
_IMAGE_RANK = 4
_OUTSIDE = "xai_insert.weight"
"""Where such a weight is said to lie."""
ML_DOMAIN = "ai.onnx.ml"
"""Classical learners and what names classes: they come behind the scores, and have shapes that nobody asks for."""


@dataclass(frozen=True)
class Inferred:
    """What inference tells of the values of a model, by their names.

    Attributes:
        shapes: their sizes.
        types: their element types.
        is_stale: whether the model declares sizes that they have not.
    """

    shapes: Mapping[str, Shape]
    types: Mapping[str, ir.DataType]
    is_stale: bool = False

    def type_of(self, value: ir.Value) -> ir.DataType | None:
        """Element type of a value of the model."""
        return value.dtype or self.types.get(name_of(value))


def infer(model: ir.Model, input_shapes: Mapping[str, Shape], *, by_runtimes: bool = True) -> Inferred:
    """Sizes and element types; `model` is unchanged.

    Args:
        model: the model to study.
        input_shapes: sizes of graph inputs that are to be taken instead of the stored ones.
        by_runtimes: whether to ask onnxruntime and OpenVINO for what ONNX's inference does not tell.
    """
    light = _without_weights(model)
    shapes, types, is_stale = _told(model, light)
    if by_runtimes and _is_incomplete(model, shapes):
        shapes, kinds = _by_runtimes(model, light, shapes, input_shapes)
        types = {**kinds, **types}
    return Inferred(shapes, types, is_stale)


def _told(model: ir.Model, light: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, ir.DataType], bool]:
    """Sizes and element types by ONNX's own inference, and where that tells nothing as the model declares them.

    A model that was given other sizes may still declare the old ones: where one contradicts what is inferred, none is
    believed but those of the inputs.
    """
    shapes, types = _stored(model)
    found, kinds = _inferred(light)
    declares = bool(light.graph.value_info)
    is_stale = declares and (contradict(found, shapes) or _contradict_elsewhere(light, shapes))
    if is_stale:
        shapes = _of_inputs(model, shapes)
    elif declares and not shapes.keys() <= found.keys():
        found, kinds = _inferred(light, declared=True)
    names = {value.name for value in _values(model)}
    shapes.update((name, _joined(shape, shapes.get(name))) for name, shape in found.items() if name in names)
    types.update((name, kind) for name, kind in kinds.items() if name in names)
    return shapes, types, is_stale


def _of_inputs(model: ir.Model, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    given = {name_of(value) for value in model.graph.inputs}
    return {name: shape for name, shape in shapes.items() if name in given}


def _contradict_elsewhere(light: onnx.ModelProto, declared: Mapping[str, Shape]) -> bool:
    """Whether sizes that are declared are those of one size of the inputs, which leave others open."""
    twin = at_odd_sizes(light)
    return twin is not None and contradict(_inferred(twin)[0], declared)


def _values(model: ir.Model) -> list[ir.Value]:
    return [v for node in model.graph.all_nodes() for v in node.outputs] + list(model.graph.inputs)


def _stored(model: ir.Model) -> Described:
    """Sizes and element types that the model itself holds."""
    values = [value for value in _values(model) if value.name]
    shapes = {name_of(value): _sizes(value.shape) for value in values if value.shape is not None}
    return shapes, {name_of(value): value.dtype for value in values if value.dtype is not None}


def _by_runtimes(
    model: ir.Model, light: onnx.ModelProto, shapes: dict[str, Shape], input_shapes: Mapping[str, Shape]
) -> Described:
    """Sizes and element types as onnxruntime tells them, and OpenVINO what is left open."""
    known, kinds, at_one_batch = _of_runtime(_runnable(model, light), shapes)
    shapes, kinds = {**shapes, **known}, _as_given(model, kinds)
    if _is_incomplete(model, {**shapes, **at_one_batch}):
        known, more = _read_shapes(light.SerializeToString(), input_shapes)
        _fill_in_transposes(model, known)
        shapes.update((name, _joined(shape, shapes.get(name))) for name, shape in known.items())
        kinds = {**more, **kinds}
    return shapes, kinds


def _runnable(model: ir.Model, light: onnx.ModelProto) -> onnx.ModelProto:
    """A message that onnxruntime's CPU reads: with float32 in place of bfloat16."""
    return _without_weights(widen_bfloat16(model)) if holds_bfloat16(model) else light


def _as_given(model: ir.Model, kinds: dict[str, ir.DataType]) -> dict[str, ir.DataType]:
    """Element types of the model itself, from those of what `_runnable` gives."""
    if not holds_bfloat16(model):
        return kinds
    own = {v.name: kind for node, kind in float_kinds(model.graph).items() for v in node.outputs}
    return {name: own.get(name, kind) if kind is ir.DataType.FLOAT else kind for name, kind in kinds.items()}


def _joined(inferred: Shape, declared: Shape | None) -> Shape:
    """What is inferred, and where that tells nothing what is declared."""
    if declared is None or len(inferred) != len(declared):
        return inferred
    return tuple(said if size is None else size for size, said in zip(inferred, declared, strict=True))


def _inferred(model: onnx.ModelProto, *, declared: bool = False) -> Described:
    """What ONNX's own inference tells, going by what is declared of values or not; empty where it fails.

    Of its result only the descriptions of values are read: to make all of it a model again takes longer than inference.
    """
    import onnx  # noqa: PLC0415 - see `maps`

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    if not declared:
        del twin.graph.value_info[:]
    _describe_learners(twin.graph)
    for node in twin.graph.node:
        if node.op_type == "ZipMap":  # inference gives it a type that onnx-ir has not, and knows none of another name
            node.op_type = "ZipMapUntyped"
    for value in twin.graph.output:  # what is declared would win over what is computed
        value.type.tensor_type.ClearField("shape")
    try:
        found = onnx.shape_inference.infer_shapes(twin, data_prop=True)
    except Exception as err:
        logger.debug("ONNX cannot infer shapes: %s", err)
        return {}, {}
    graphs = _graphs(found.graph)
    return _described(value for graph in graphs for value in (*graph.value_info, *graph.input, *graph.output))


def _described(values: Iterable[onnx.ValueInfoProto]) -> Described:
    """Sizes and element types as they are said of values."""
    shapes, types = dict[str, Shape](), dict[str, ir.DataType]()
    for value in values:
        kind = _element(value.type)
        if kind.elem_type:
            types[value.name] = ir.DataType(kind.elem_type)
        if kind.HasField("shape"):
            dims = kind.shape.dim
            shapes[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    return shapes, types


def _element(kind: onnx.TypeProto) -> onnx.TypeProto.Tensor:
    """The tensors that a value is, or is a sequence of."""
    while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
        kind = (kind.sequence_type if kind.HasField("sequence_type") else kind.optional_type).elem_type
    return kind.tensor_type


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and all inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """The message of a model with its large floats as inputs: no size depends on their content."""

    def light(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if tensor.nbytes >= _LARGE and tensor.dtype.is_floating_point():
            name = name_of(tensor)
            return ir.ExternalTensor(
                _OUTSIDE, 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
        return ir.Tensor(tensor.numpy(), name=tensor.name) if isinstance(tensor, ir.ExternalTensor) else tensor

    with exchanged(model, light):
        proto = to_proto(model)
    listed = {value.name for value in proto.graph.input}

    def input_for(tensor: onnx.TensorProto, name: str) -> None:
        if name not in listed:
            value = proto.graph.input.add(name=name)
            value.type.tensor_type.elem_type = tensor.data_type
            for size in tensor.dims:
                value.type.tensor_type.shape.dim.add(dim_value=size)

    for graph in [*_graphs(proto.graph)]:
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].external_data:
                input_for(graph.initializer[index], graph.initializer[index].name)
                del graph.initializer[index]
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].t.external_data:
                input_for(node.attribute[0].t, f"{node.output[0]}{_OUTSIDE}")
                node.op_type, node.input[:] = "Identity", [f"{node.output[0]}{_OUTSIDE}"]
                del node.attribute[:]
    return proto


def _describe_learners(graph: onnx.GraphProto) -> None:
    """Say what classical learners give, of which no inference tells anything: labels, scores `[N, classes]`."""
    known = {value.name for value in (*graph.value_info, *graph.output)}
    widths: dict[str, int] = {}
    for node in graph.node:
        if node.domain != ML_DOMAIN:
            continue
        width = _labels(node) if node.op_type.endswith("Classifier") and len(node.output) == 2 else 0
        if width:
            widths[node.output[1]] = width
        elif node.op_type in KEEPS_SIZES and node.input[0] in widths:
            widths[node.output[0]] = widths[node.input[0]]
        else:
            continue
        if node.output[-1] not in known:
            kind = graph.value_info.add(name=node.output[-1]).type.tensor_type
            kind.elem_type = ir.DataType.FLOAT
            kind.shape.dim.add()
            kind.shape.dim.add(dim_value=widths[node.output[-1]])


def _labels(node: onnx.NodeProto) -> int:
    """How many labels of classes a classical learner has."""
    stored = (a for a in node.attribute if a.name.startswith("classlabels_"))
    return next((len(a.ints or a.strings) for a in stored if a.ints or a.strings), 0)


def _of_runtime(
    light: onnx.ModelProto, otherwise: Mapping[str, Shape]
) -> tuple[dict[str, Shape], dict[str, ir.DataType], dict[str, Shape]]:
    """Sizes and element types as onnxruntime infers them; empty if it cannot read the model.

    Where the batch is all that is open, for two batches: what differs between them follows the batch.

    Args:
        light: the model.
        otherwise: the sizes that are known; taken, for one batch, where the runtime tells nothing.

    Returns:
        Sizes, types, and the sizes for one of the batches.
    """
    from xai_insert.formats.onnx.runtime import described  # noqa: PLC0415 - only for models that need it

    twin = _all_given(light)
    known = [described(content) for content in _of_batches(twin)]
    if known and all(shapes for shapes, _ in known):
        (smaller, types), (larger, _) = known
        return {name: batches.common(shape, larger.get(name)) for name, shape in smaller.items()}, types, smaller
    shapes, types = described(twin.SerializeToString())
    return {name: _joined(shape, otherwise.get(name)) for name, shape in shapes.items()}, types, {}


def _of_batches(model: onnx.ModelProto) -> Iterator[bytes]:
    """The model for each batch that is tried; nothing where more than the batch is open, or less."""
    free = [value.type.tensor_type.shape.dim for value in model.graph.input]
    free = [sizes for sizes in free if not all(size.HasField("dim_value") for size in sizes)]
    if not free or not all(size.HasField("dim_value") for sizes in free for size in sizes[1:]):
        return
    for batch in batches.TRIED:
        for sizes in free:
            sizes[0].dim_value = batch
        yield model.SerializeToString()
    for sizes in free:
        sizes[0].ClearField("dim_value")


def _all_given(light: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with every value as an output, since of outputs alone the runtime tells what it has inferred.

    Nothing is declared of them: it would win over what is computed.
    """
    import onnx  # noqa: PLC0415 - see `maps`

    twin = onnx.ModelProto()
    twin.CopyFrom(light)
    del twin.graph.value_info[:]
    _describe_learners(twin.graph)
    for value in twin.graph.output:
        value.type.tensor_type.ClearField("shape")
    given = {value.name for value in twin.graph.output}
    names = dict.fromkeys(name for node in twin.graph.node for name in node.output if name and name not in given)
    twin.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return twin


def ranks(model: ir.Model) -> Mapping[str, int]:
    """Number of axes of each value as onnxruntime infers them, whose own operators ONNX does not know."""
    message = _without_weights(widen_bfloat16(model) if holds_bfloat16(model) else model)
    return {name: len(shape) for name, shape in _of_runtime(message, {})[0].items()}


def _read_shapes(content: bytes, input_shapes: Mapping[str, Shape]) -> Described:
    """Sizes and element types by OpenVINO; empty if it cannot read the model or is not installed."""
    if importlib.util.find_spec("openvino") is None:
        return {}, {}
    from xai_insert.formats.openvino.shapes import read_shapes  # noqa: PLC0415 - only for models that need it

    shapes, kinds = read_shapes(content, input_shapes)
    return shapes, {name: ir.DataType.from_numpy(np.dtype(kind)) for name, kind in kinds.items()}


def _fill_in_transposes(model: ir.Model, shapes: dict[str, Shape]) -> None:
    """Sizes after the transposes that OpenVINO's reader merges with the product behind them."""
    for node in model.graph:
        first = operand(node, 0)
        source = None if first is None else shapes.get(name_of(first))
        if node.op_type == "Transpose" and source is not None and "perm" in node.attributes:
            shapes[name_of(node.outputs[0])] = tuple(source[axis] for axis in node.attributes["perm"].as_ints())


def _sizes(shape: ir.Shape) -> Shape:
    return tuple(dim if isinstance(dim, int) else None for dim in shape)


def _is_incomplete(model: ir.Model, shapes: Mapping[str, Shape]) -> bool:
    """Whether a value has no rank, or an unknown size although the inputs' only unknown size, if any, is the batch."""
    inputs = [shapes.get(name_of(value)) for value in model.graph.inputs]
    sizes_known, first = _are_sizes_known(inputs), int(any(shape is None or None in shape for shape in inputs))
    known = (shapes.get(name_of(value)) for value in _read(model.graph))
    return any(shape is None or (sizes_known and None in shape[first:]) for shape in known)


def _are_sizes_known(inputs: Sequence[Shape | None]) -> bool:
    """Whether nothing but the batch of images is open: beside these, which have four axes, a text is of any length."""
    images = [shape for shape in inputs if shape is None or len(shape) == _IMAGE_RANK] or inputs
    return all(shape is not None and None not in shape[1:] for shape in images)


def _read(graph: ir.Graph) -> Iterator[ir.Value]:
    """What nodes give that something reads, but for classical learners'."""
    for node in graph:
        if node.domain != ML_DOMAIN:
            yield from (value for value in node.outputs if value.uses() or value.is_graph_output())
