"""Deciding what to insert, before anything is edited."""

from __future__ import annotations

from dataclasses import dataclass

from xai_insert.graph.cuts import region
from xai_insert.graph.view import Graph, Node, Op, Shape, fixed, volume
from xai_insert.locate.classifier import Classifier, locate_classifier
from xai_insert.locate.transformer import Readout
from xai_insert.options import Options


@dataclass(frozen=True)
class Plan:
    """A decision.

    Attributes:
        found: what was located in the model.
        method: the saliency method, never `auto`.
        form: `closed form`, `masked runs` or, for the Activation Map, `channel mean`.
        reason: why this form.
        map_shape: shape of `saliency_map`; None where it follows the input.
        mflops: extra work per image in millions of floating-point operations; None if a size is unknown.
    """

    found: Classifier
    method: str
    form: str
    reason: str
    map_shape: Shape
    mflops: float | None


def make_plan(graph: Graph, options: Options) -> Plan:
    """Locate the model's parts and choose method and form.

    Raises:
        XaiInsertError: one of its children, see `locate_classifier`.
    """
    found = locate_classifier(graph, options)
    target = found.target
    batch, classes = target.shape[0], found.logits.classes
    if options.method == "activation-map":
        flops = volume([2 if size is None else size for size in target.shape[1:]])
        shape: Shape = (batch, *target.grid)
        return Plan(found, "activation-map", "channel mean", "one map for all classes", shape, _mega(flops))
    shape = (batch, classes, *target.grid)
    if found.obstacle is not None:
        return masked_plan(graph, found, shape)
    if found.readout is not None:
        flops = _token_flops(graph, found, found.readout)
        return Plan(found, "vit-recipro-cam", "closed form", "class token", shape, _mega(flops))
    head = region(graph, [end.result for end in found.ends], [found.logits.value])
    per_row = sum(_flops(node, 1) for node in head)
    weighted = sum(_flops(end.result.producer, 1) for end in found.ends if end.result.producer is not None)
    cells = target.positions
    flops = None if cells is None else cells * per_row + weighted + 2 * (volume(target.shape[1:]) or 0)
    return Plan(found, "recipro-cam", "closed form", found.collapse, shape, _mega(flops))


def masked_plan(graph: Graph, found: Classifier, shape: Shape, obstacle: str | None = None) -> Plan:
    """The plan that runs the rest of the model once per position."""
    target = found.target
    rest = region(graph, [target.value], [found.logits.value])
    batch = target.shape[0] or 1
    flops = None if target.positions is None else target.positions * sum(_flops(node, batch) for node in rest)
    reason = obstacle or found.obstacle or ""
    method = "recipro-cam" if found.readout is None else "vit-recipro-cam"
    return Plan(found, method, "masked runs", reason, shape, _mega(flops))


def _token_flops(graph: Graph, found: Classifier, readout: Readout) -> int:
    """The rest of the block for one row per patch, and scores and sums of the masked attentions."""
    results = [attention.result for attention in readout.attentions]
    patches, tokens = found.target.positions or 0, readout.tokens
    rest = sum(_flops(node, 1) for node in region(graph, results, [found.logits.value]))
    batch = found.target.shape[0] or 1
    shares = sum(patches * tokens * (volume(fixed(item.value.sizes[1:])) or 0) // tokens for item in readout.attentions)
    return patches * readout.rows * rest // tokens // batch + 4 * readout.rows * shares


def _mega(flops: int | None) -> float | None:
    return None if flops is None else round(flops / 1e6, 3)


def _flops(node: Node, batch: int) -> int:
    """Multiplications and additions of a linear layer or convolution, per image; other operations count nothing."""
    out = volume([size or 1 for size in node.output.shape or ()]) or 0
    weight = node.operand(1)
    if node.op is Op.CONV and weight is not None and weight.shape is not None:
        per_output = (volume(weight.shape) or 0) // max(_out_channels(node), 1)
        return 2 * out * per_output // batch
    source = node.operand(0)
    if node.op is Op.MATMUL and source is not None and source.shape is not None:
        inner = source.shape[-2 if node.attrs["transpose_a"] else -1] or 0
        return 2 * out * inner // batch
    return 0


def _out_channels(node: Node) -> int:
    shape = node.output.shape or ()
    return (shape[1] or 0) if len(shape) > 1 else 0
