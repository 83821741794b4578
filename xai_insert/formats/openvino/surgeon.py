"""Editing an `ov.Model`: twins of nodes with other inputs, loops over masks, new outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import openvino as ov
import openvino.opset13 as opset
from openvino.op import loop as ov_loop

from xai_insert.errors import CannotFreeBatchError
from xai_insert.formats.guard import RAISED
from xai_insert.formats.openvino.merging import zero_of
from xai_insert.formats.openvino.ops import OpenVINOOps
from xai_insert.formats.openvino.vocabulary import UNFOLDS
from xai_insert.graph.names import Names
from xai_insert.graph.rounding import folded_range
from xai_insert.graph.shape import with_open
from xai_insert.graph.traits import ARITHMETIC
from xai_insert.graph.view import Node, Op, Shape, Value, constant_of, volume

_SMALL = 1 << 16
_DECOMPRESSION = UNFOLDS | {"FakeQuantize"}
_OTHER_FLOATS = (ov.Type.f16, ov.Type.bf16, ov.Type.f64)


class _Body:
    """The body of a loop while it is written.

    Attributes:
        parameters: what it reads of the model.
        written: what it reads that was written before it, with the parameter.
    """

    def __init__(self, originals: Sequence[int], pristine: ov.Model) -> None:
        self.parameters: dict[Value, ov.op.Parameter] = {}
        self.written: list[tuple[ov.Output, ov.op.Parameter]] = []
        self._twins = dict(zip(originals, pristine.clone().get_ordered_ops(), strict=True))

    def stored(self, output: ov.Output) -> ov.Output:
        """A stored constant of the model; its memory is shared."""
        return self._twins[output.get_node().get_instance_id()].output(output.get_index())


class OpenVINOSurgeon:
    """Edits `model` in place.

    A twin comes from `model.clone()`, which shares the memory of the weights; its large weights are then exchanged for
    the originals, so that a runtime repacks them once.
    """

    def __init__(self, model: ov.Model, *, keep_float32: bool = False) -> None:
        self._model = model
        self._keep_float32 = keep_float32
        self._names = Names(node.get_friendly_name() for node in model.get_ordered_ops())
        self._originals = [node.get_instance_id() for node in model.get_ordered_ops()]
        self._pristine = model.clone()
        self._twins: dict[int, ov.Node] = {}
        self.ops = OpenVINOOps(self._names.unique)
        self._runtime_zero: ov.Output | None = None
        self._widened: dict[tuple[int, int], ov.Output] = {}
        self._body: _Body | None = None

    def handle(self, value: Value) -> ov.Output:
        if self._body is not None:
            return self._inside(self._body, value)
        output: ov.Output = value.native
        if output.get_element_type() not in _OTHER_FLOATS:
            return output
        key = (output.get_node().get_instance_id(), output.get_index())
        if key not in self._widened:
            self._widened[key] = self.ops.cast(output, "float32")
        return self._widened[key]

    def stored(self, node: Node, index: int) -> ov.Output:
        value = node.read(index)
        if not _is_kept_apart(value):
            return self.handle(value)
        if (volume(value.sizes) or 0) <= _SMALL:
            return self.ops.constant(np.array(value.elements(), np.float32))
        own = self._twin(node.native).input_value(index)
        return self.ops.cast(own, "float32") if own.get_element_type() in _OTHER_FLOATS else own

    def rounds(self, node: Node) -> bool:
        return node.op is Op.QUANTIZE or any(v.native.get_element_type() == ov.Type.bf16 for v in node.outputs)

    def copy(self, node: Node, inputs: Sequence[ov.Output | None]) -> Sequence[ov.Output]:
        source = inputs[0] if inputs else None
        if source is not None and (same := self._unrounded(node, source)) is not None:
            return [same]
        twin = self._twin(node.native)
        for index, original in enumerate(node.inputs):
            self._connect(twin, node, inputs, index, original)
        try:
            self._own(twin, node.name)
        except RAISED as err:
            raise CannotFreeBatchError(f"{node.type} {node.name!r} does not take operands of other sizes") from err
        return [twin.output(port) for port in range(twin.get_output_size())]

    def _connect(
        self, twin: ov.Node, node: Node, inputs: Sequence[ov.Output | None], index: int, original: Value | None
    ) -> None:
        """Let the copy of a node read an operand, in float32.

        A bias with two readers keeps OpenVINO from fusing it into the linear layer, the model's own one too; so does a
        layer scale. Quantised weights with two readers keep it from making the model's own layer one of integers.
        """
        operand, own = inputs[index], twin.input_value(index)
        if original is not None and self._keeps_own(operand, original):
            is_fused = self._keep_float32 and _is_fused(node)
            given = self._own_constant(node, inputs, index, own, is_fused=is_fused)
        else:
            given = self._unmarked(node, operand, original)
        if given is not None:
            twin.set_argument(index, given)
        if twin.input_value(index).get_element_type() in _OTHER_FLOATS:
            twin.set_argument(index, self.ops.cast(twin.input_value(index), "float32"))

    def _unmarked(self, node: Node, operand: ov.Output | None, original: Value | None) -> ov.Output | None:
        """An operand; a scaled difference with zero, for it passes for a dequantisation, which loses its mark."""
        if self._keep_float32 and node.op is Op.MUL and original is not None and original.made_by(Op.SUB):
            return self.ops.add(operand, self._zero())
        return operand

    def _own_constant(
        self, node: Node, inputs: Sequence[ov.Output | None], index: int, own: ov.Output, *, is_fused: bool
    ) -> ov.Output | None:
        """What a twin reads in place of its constant, so that OpenVINO does not merge it; None for that itself."""
        original = node.read(index)
        if _holds_normal_floats(original.native.get_node()):
            # OpenVINO folds their codes in float16, where a linear layer that it knows to have them does not.
            return self.ops.constant(original.elements().astype(np.float32))
        if is_fused:
            return self.ops.add(own, self._zero())
        if (sums := self._sums_beside(node, inputs, index)) is not None:
            return self.ops.add(own, zero_of(self.ops, sums))
        if self._keep_float32 and node.op is Op.MATMUL and not _is_stored(original):
            return self._folded(own)
        return None

    def _keeps_own(self, operand: ov.Output | None, original: Value) -> bool:
        """Whether a twin is to read a constant that was copied with it."""
        if self._body is not None:
            return _is_stored(original)
        return operand is original.native and _is_kept_apart(original)

    def _folded(self, weight: ov.Output) -> ov.Output:
        """Decompressed weights in a form that OpenVINO folds to float32 when it compiles.

        A layer that it knows to have compressed weights rounds what it reads to 8 bits by default.
        """
        return self.ops.maximum(weight, self.ops.constant(np.array(np.finfo(np.float32).min)))

    def _unrounded(self, node: Node, source: ov.Output) -> ov.Output | None:
        """What a node gives that only rounds: its operand, but for range and scale; None for other nodes."""
        if node.op is Op.CAST and source.get_element_type() == ov.Type.f32:
            is_quantised = node.read(0).made_by(Op.QUANTIZE)  # to the integers that it gives
            return source if is_quantised or node.output.dtype == "float32" else None
        if node.type == "FakeConvert":  # to eight bits and back, of a range that is symmetric about zero
            return source
        if node.type != "FakeQuantize":
            return None
        bounds = [bound for index in range(1, 5) if (bound := constant_of(node.operand(index))) is not None]
        return self._scaled(node, source, *bounds) if len(bounds) == 4 else None

    def _scaled(self, node: Node, source: ov.Output, *bounds: np.ndarray) -> ov.Output:
        """What a FakeQuantize gives without its rounding."""
        low, high, low_out, high_out = (np.asarray(bound, np.float64) for bound in bounds)
        limits = folded_range(node, low, high)
        value = source if limits is None else self.ops.clip(source, *limits)
        scale = (high_out - low_out) / (high - low)
        shift = low_out - low * scale
        step = float(np.max(np.abs(high_out - low_out))) / 256
        if np.all(np.abs(scale - 1) < 1 / 256) and np.all(np.abs(shift) < step):
            return value
        factor, offset = (self.ops.constant(part.astype(np.float32)) for part in (scale, shift))
        return self.ops.add(self.ops.mul(value, factor), offset)

    def _zero(self) -> ov.Output:
        """Zero, but known only while the model runs: a bias or scale with it is not fused into its linear layer.

        Fusing would drop the mark that keeps the layer in float32, see `xai_insert.formats.openvino.precision`.
        """
        if self._runtime_zero is None:
            image = self.ops.cast(self._model.get_parameters()[0].output(0), "float32")
            self._runtime_zero = zero_of(self.ops, image)
        return self._runtime_zero

    def _sums_beside(self, node: Node, inputs: Sequence[ov.Output | None], index: int) -> ov.Output | None:
        """What a reduction gives that meets a constant, operand `index`, see `merging`; None elsewhere."""
        constant = node.read(index)
        if node.op not in ARITHMETIC or (volume(constant.sizes) or 0) < 2:
            return None
        pairs = zip(node.inputs, inputs, strict=True)
        return next((made for value, made in pairs if value is not None and value.made_by(Op.REDUCE)), None)

    def _twin(self, node: ov.Node) -> ov.Node:
        """A copy of `node` that nothing uses yet."""
        key = node.get_instance_id()
        if key not in self._twins:
            self._twins = dict(zip(self._originals, self._pristine.clone().get_ordered_ops(), strict=True))
        return self._twins.pop(key)

    def _own(self, twin: ov.Node, name: str) -> None:
        twin.validate_and_infer_types()
        twin.set_friendly_name(self._names.unique(name))
        for output in twin.outputs():
            output.set_names(set())

    def repeat(self, runs: int | ov.Output, body: Callable[[ov.Output], ov.Output], width: int) -> ov.Output:
        del width
        run = opset.parameter([], ov.Type.i64)
        twins, keeps = self._twins, self._keep_float32
        self._body = inner = _Body(self._originals, self._pristine)
        self._twins, self._keep_float32 = {}, False  # what is marked is the loop
        try:
            stacked = opset.unsqueeze(body(run.output(0)), np.array([0], np.int64))
        finally:
            self._body, self._twins, self._keep_float32 = None, twins, keeps
        yes = opset.constant(np.array(True))
        read = list(inner.parameters.items())
        entries = [run, *inner.parameters.values(), *(parameter for _, parameter in inner.written)]
        model = ov.Model([opset.result(yes), opset.result(stacked)], entries, "positions")
        count = self.ops.constant(np.array(runs, np.int64)) if isinstance(runs, int) else self.ops.reshape(runs, [])
        loop = ov_loop(count, self.ops.constant(np.array(True)))
        loop.set_function(model)
        loop.set_special_body_ports([0, 0])
        for value, parameter in read:
            loop.set_invariant_input(parameter, self._apart(self.handle(value)))
        for written, parameter in inner.written:
            loop.set_invariant_input(parameter, written)
        scores = loop.get_concatenated_slices(model.get_results()[1].output(0), 0, 1, 1, -1, 0)
        loop.validate_and_infer_types()
        loop.set_friendly_name(self._names.unique("positions"))
        return scores

    def within(self, value: ov.Output) -> ov.Output:
        if self._body is None:
            return value
        parameter = opset.parameter(value.get_partial_shape(), value.get_element_type())
        self._body.written.append((value, parameter))
        return parameter.output(0)

    def _inside(self, body: _Body, value: Value) -> ov.Output:
        """A value of the model, in the body of a loop."""
        if _is_stored(value):
            stored = body.stored(value.native)
            return self.ops.cast(stored, "float32") if stored.get_element_type() in _OTHER_FLOATS else stored
        if value.is_constant:
            return opset.constant(np.array(value.elements())).output(0)
        if value not in body.parameters:
            self._body = None
            outer = self.handle(value)
            self._body = body
            body.parameters[value] = opset.parameter(outer.get_partial_shape(), outer.get_element_type())
        return body.parameters[value].output(0)

    def _apart(self, value: ov.Output) -> ov.Output:
        """`value`, read in a way that leaves the precision of what is before it alone, see `Ops.isolated`."""
        sizes = [-1 if size.is_dynamic else size.get_length() for size in value.get_partial_shape()]
        op = self.ops
        if not sizes or not value.get_element_type().is_real():
            return value
        if len(sizes) == 4 and sizes[1] > 0 and -1 in sizes[2:]:
            return op.isolated(value, sizes[1], is_map=True)
        if sizes[-1] < 1 or sizes.count(-1) > 1:
            return value
        if -1 not in sizes:
            sizes[0] = -1  # the batch may be changed yet
        return op.reshape(op.isolated(op.reshape(value, [-1, sizes[-1]]), sizes[-1]), sizes)

    def pinned(self, value: ov.Output, shape: Shape, image: Value, axes: Sequence[int]) -> ov.Output:
        sizes = [-1, *with_open(shape[1:])]
        if sizes.count(-1) > 1:
            return value
        op = self.ops
        target = op.constant(np.array(sizes, np.int64))
        for axis in axes:
            if (side := image.sizes[axis]) is not None:
                # A reshape that no other size of the image takes, not even while the model is loaded.
                ones = op.reshape(op.constant(np.ones(side, np.int64)), [op.size(image.native, axis)])
                target = op.mul(target, op.reduce(ones, "min", [0]))
        return op.shaped(value, target)

    def add_input(self, name: str, dtype: str, shape: Shape) -> ov.Output:
        sizes = ov.PartialShape(with_open(shape))
        parameter = opset.parameter(sizes, np.dtype(dtype), name=self._names.unique(f"{name}/input"))
        parameter.output(0).set_names({name})
        self._model.add_parameters([parameter])
        return parameter.output(0)

    def prune(self) -> None:
        pass  # what leads to no result is not part of an `ov.Model`

    def add_output(self, value: ov.Output, name: str, dtype: str, shape: Shape) -> None:
        del dtype, shape  # OpenVINO infers them
        result = opset.result(value)
        result.set_friendly_name(self._names.unique(f"{name}/result"))
        value.set_names({name})
        self._model.add_results([result])
        self._model.validate_nodes_and_infer_types()


def _is_stored(value: Value) -> bool:
    """Whether a value is a stored constant, possibly decompressed, and not one folded from the shapes of others."""
    node = value.native.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return value.is_constant and node.get_type_name() == "Constant"


def _is_kept_apart(value: Value) -> bool:
    """Whether a constant is a bias or scale, too small to be a weight, or a weight that is stored quantised."""
    if not _is_stored(value):
        return value.is_constant and _is_decompressed(value.native.get_node())
    return (volume(value.sizes) or 0) <= _SMALL


def _holds_normal_floats(node: ov.Node) -> bool:
    """Whether a node decompresses weights of NF4."""
    if node.get_type_name() == "Constant":
        return bool(node.get_element_type() == ov.Type.nf4)
    return node.get_type_name() in _DECOMPRESSION and _holds_normal_floats(node.input_value(0).get_node())


def _is_decompressed(node: ov.Node) -> bool:
    """Whether a node is computed from stored constants by operations that decompress weights."""
    if node.get_type_name() == "Constant":
        return True
    return node.get_type_name() in _DECOMPRESSION and all(_is_decompressed(p.get_node()) for p in node.input_values())


def _is_fused(node: Node) -> bool:
    """Whether OpenVINO makes a node part of the linear layer before it."""
    return node.op in (Op.ADD, Op.MUL) and any(value.made_by(Op.MATMUL) for value in node.operands)
