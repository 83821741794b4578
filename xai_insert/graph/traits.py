"""What operations have in common, where a search asks for it: each family once, by its name."""

from __future__ import annotations

from xai_insert.graph.view import Op

UNCHANGED = frozenset({Op.IDENTITY, Op.CAST, Op.QUANTIZE})
"""The same elements, but for their type or their last bits."""
ARITHMETIC = frozenset({Op.ADD, Op.SUB, Op.MUL, Op.DIV})
ARRANGES = frozenset({Op.RESHAPE, Op.TRANSPOSE})
"""The same elements in another shape or order."""
SQUASHES = frozenset({Op.SIGMOID, Op.SOFTMAX})
"""What makes scores of logits."""
RANKS = frozenset({Op.ARGMAX, Op.TOPK})
WITHOUT_DATA = frozenset({Op.SHAPE, Op.NONZERO, Op.COMPARE, Op.ARGMAX})
"""Their result holds sizes, places or answers, and none of the operand's elements."""
FIRST_IS_DATA = frozenset(
    {Op.GATHER, Op.TAKE, Op.EXPAND, Op.SLICE, Op.SPLIT, Op.REDUCE, Op.RESIZE, Op.POOL, Op.CLIP, Op.SOFTMAX, Op.TOPK}
    | UNCHANGED
    | ARRANGES
)
"""Their first operand is what they work on; the others say how."""
MIXES_PLACES = frozenset(
    {Op.TOPK, Op.NMS, Op.NONZERO, Op.ARGMAX, Op.COMPARE, Op.ROI_ALIGN, Op.POOL, Op.ATTENTION, Op.RESIZE}
)
"""They choose among locations, or make one of several."""
