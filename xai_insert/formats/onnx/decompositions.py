"""Fused operators of an ONNX model, shown in smaller ones while the model is studied and never written back.

One rule per operator, keyed by its domain and type. A rule that does not cover a node leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import onnx_ir as ir

from xai_insert.formats.onnx import fused, quantised
from xai_insert.formats.onnx.decided import branch
from xai_insert.formats.onnx.einsum import einsum
from xai_insert.formats.onnx.kinds import float_kinds
from xai_insert.formats.onnx.names import name_of
from xai_insert.formats.onnx.surgeon import all_names
from xai_insert.formats.onnx.writer import Shared, Writer, Written
from xai_insert.graph.names import Names
from xai_insert.graph.view import Shape

_MS = "com.microsoft"
_Rule = Callable[[Writer], Written]
RULES: Mapping[tuple[str, str], _Rule] = {
    ("", "Einsum"): einsum,
    ("", "If"): branch,
    ("", "Reshape"): fused.product_of_rows,
    ("", "Attention"): fused.standard_attention,
    ("", "RotaryEmbedding"): fused.rotary,
    (_MS, "Attention"): fused.attention,
    (_MS, "MultiHeadAttention"): fused.multi_head_attention,
    (_MS, "QAttention"): quantised.attention,
    (_MS, "EmbedLayerNormalization"): fused.embedding,
    (_MS, "RotaryEmbedding"): fused.ms_rotary,
    (_MS, "SkipLayerNormalization"): fused.skip_layer_norm,
    (_MS, "SkipSimplifiedLayerNormalization"): fused.skip_rms_norm,
    (_MS, "SimplifiedLayerNormalization"): fused.rms_norm,
    (_MS, "Gelu"): fused.gelu,
    (_MS, "BiasGelu"): fused.gelu,
    (_MS, "FastGelu"): fused.fast_gelu,
    (_MS, "QuickGelu"): fused.quick_gelu,
    (_MS, "FusedMatMul"): fused.fused_matmul,
    (_MS, "TransposeMatMul"): fused.fused_matmul,
    (_MS, "FusedConv"): fused.fused_conv,
    (_MS, "FusedGemm"): fused.fused_gemm,
    (_MS, "MatMulNBits"): quantised.packed_matmul,
    (_MS, "MatMulBnb4"): quantised.normal_floats_matmul,
    (_MS, "MatMulIntegerToFloat"): quantised.matmul_to_float,
    (_MS, "DynamicQuantizeMatMul"): quantised.dynamic_matmul,
    ("", "QLinearConv"): quantised.conv,
    ("", "QLinearMatMul"): quantised.matmul,
    (_MS, "QGemm"): quantised.gemm,
    (_MS, "QLinearAdd"): quantised.binary("Add"),
    (_MS, "QLinearMul"): quantised.binary("Mul"),
    (_MS, "QLinearConcat"): quantised.concat,
    (_MS, "QLinearAveragePool"): quantised.unary("AveragePool"),
    (_MS, "QLinearGlobalAveragePool"): quantised.unary("GlobalAveragePool"),
    (_MS, "QLinearLeakyRelu"): quantised.unary("LeakyRelu"),
    (_MS, "QLinearSigmoid"): quantised.unary("Sigmoid"),
    (_MS, "QLinearSoftmax"): quantised.unary("Softmax"),
}

_ROUNDING = frozenset(kind for (_, kind) in RULES if kind.startswith("QLinear") or kind == "QGemm")


def _rules_for(graph: ir.Graph) -> tuple[Mapping[tuple[str, str], _Rule], _Rule | None]:
    """The rules for a graph, where integers are rounded those for what moves them too; and that for other reshapes."""
    kinds = {node.op_type for node in graph}
    rules, moving = dict(RULES), None
    if not kinds.isdisjoint(_ROUNDING):
        rules["", "DequantizeLinear"] = quantised.dequantised
        rules["", "Gather"] = rules["", "Slice"] = rules["", "Squeeze"] = quantised.moved
        moving = quantised.moved
    if "TopK" not in kinds:  # elsewhere rows serve as well
        del rules["", "Reshape"]
    return rules, moving


class Decomposed:
    """Smaller operators behind the fused ones of `model`, which nothing reads but for the time of `shown`.

    Attributes:
        nodes: what was added to the graph.
        hidden: the nodes that nothing reads for that time.
        fused: what a value that was added stands for.
    """

    def __init__(
        self, model: ir.Model, ranks: Callable[[], Mapping[str, int]], shapes: Callable[[], Mapping[str, Shape]]
    ) -> None:
        self.nodes: list[ir.Node] = []
        self.hidden: set[ir.Node] = set()
        self.fused: dict[ir.Value, ir.Value] = {}
        self._pairs: list[tuple[ir.Value, ir.Value]] = []
        self._ranks: Mapping[str, int] | None = None
        self._shapes: Mapping[str, Shape] | None = None
        shared = Shared()
        names: Names | None = None
        kinds: Mapping[ir.Node, ir.DataType] = {}

        def rank(value: ir.Value) -> int | None:
            if value.shape is not None:
                return value.shape.rank()
            if self._ranks is None:
                self._ranks = ranks()
            return self._ranks.get(name_of(value))

        def sizes(value: ir.Value) -> Shape | None:
            if self._shapes is None:
                self._shapes = shapes()
            return self._shapes.get(name_of(value))

        rules, moving = _rules_for(model.graph)
        for node in list(model.graph):
            rule = rules.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
            if node.op_type == "Reshape" and not fused.is_product_of_rows(node):
                rule = moving
            if rule is not None:
                if names is None:
                    names, kinds = Names(all_names(model)), float_kinds(model.graph)
                kind = kinds.get(node, ir.DataType.FLOAT)
                self._write_out(Writer(model.graph, node, names, rank, shared, sizes, kind), rule)
        self.nodes.extend(shared.nodes)

    def _write_out(self, writer: Writer, rule: Callable[[Writer], Written]) -> None:
        node, written = writer.node, rule(writer)
        read = [value.uses() or value.is_graph_output() for value in node.outputs]
        if written is None or any(new is None and used for new, used in zip(written, read, strict=True)):
            writer.undo()
            return
        self.nodes.extend(writer.added)
        writer.finish()
        self.hidden.add(node)
        for old, new, used in zip(node.outputs, written, read, strict=True):
            if new is not None and used:
                new.type, new.shape = old.type, old.shape
                self.fused[new] = old
                self._pairs.append((new, old))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let what reads a fused operator read the smaller ones instead."""
        moved = [(new, old, list(old.uses())) for new, old in self._pairs]
        outputs = [(new, old) for new, old in self._pairs if old.is_graph_output()]
        for new, _, uses in moved:
            for node, index in uses:
                node.replace_input_with(index, new)
        for new, old in outputs:
            _exchange_output(old, new)
        try:
            yield
        finally:
            for new, old in outputs:
                _exchange_output(new, old)
            for _, old, uses in moved:
                for node, index in uses:
                    node.replace_input_with(index, old)


def _exchange_output(old: ir.Value, new: ir.Value) -> None:
    """Let `new` be the graph's output, under the name that `old` is known by."""
    producer = old.producer()
    assert producer is not None
    assert producer.graph is not None
    outputs = producer.graph.outputs
    old.name, new.name = new.name, old.name
    for index, value in enumerate(list(outputs)):
        if value is old:
            outputs[index] = new
