"""What operations have in common, where a search asks for it: each family once, by its name."""

from __future__ import annotations

from xai_insert.graph.view import POINTWISE, Op

SAME = frozenset({Op.IDENTITY, Op.CAST})
"""The same elements, but for their type."""
UNCHANGED = SAME | {Op.QUANTIZE}
"""Likewise, but for their last bits too."""
ARITHMETIC = frozenset({Op.ADD, Op.SUB, Op.MUL, Op.DIV})
ARRANGES = frozenset({Op.RESHAPE, Op.TRANSPOSE})
"""The same elements in another shape or order."""
CUTS_OUT = frozenset({Op.SLICE, Op.SPLIT, Op.GATHER})
"""Some of the elements along one axis."""
PRODUCTS = frozenset({Op.CONV, Op.MATMUL})
SQUASHES = frozenset({Op.SIGMOID, Op.SOFTMAX})
"""What makes scores of logits."""
RANKS = frozenset({Op.ARGMAX, Op.TOPK})
JUDGES = SQUASHES | RANKS
"""What is done to scores of classes, and to little else."""
ONE_FUNCTION = (POINTWISE - {Op.SELECT, Op.COMPARE}) | {Op.QUANTIZE}
"""Element by element, by one function everywhere."""
ROOTS = frozenset({Op.CLIP, Op.ADD, Op.POW, Op.ELEMENTWISE})
"""What makes a length of a sum of squares: the root, and what keeps it from being nothing."""
ALONG_ONE_AXIS = CUTS_OUT | {Op.SOFTMAX, Op.CONCAT}
"""Their attribute `axis` names it."""
WITHOUT_DATA = frozenset({Op.SHAPE, Op.NONZERO, Op.COMPARE, Op.ARGMAX})
"""Their result holds sizes, places or answers, and none of the operand's elements."""
FIRST_IS_DATA = frozenset(
    {Op.GATHER, Op.TAKE, Op.EXPAND, Op.SLICE, Op.SPLIT, Op.REDUCE, Op.RESIZE, Op.POOL, Op.SOFTMAX, Op.TOPK}
    | UNCHANGED
    | ARRANGES
)
"""Their first operand is what they work on; the others say how."""
MIXES_PLACES = frozenset(
    {Op.TOPK, Op.NMS, Op.NONZERO, Op.ARGMAX, Op.COMPARE, Op.ROI_ALIGN, Op.POOL, Op.ATTENTION, Op.RESIZE}
)
"""They choose among locations, or make one of several."""
BENDS = frozenset({Op.CLIP, Op.SELECT, Op.COMPARE, Op.ELEMENTWISE, Op.SIGMOID, Op.POW, Op.POOL})
"""What may be a straight line as far as some values go, and no further."""
SCALES_SCORES = UNCHANGED | ARITHMETIC | ARRANGES | PRODUCTS | {Op.CLIP, Op.EXPAND, Op.SELECT, Op.RESIZE, Op.TAKE}
"""What exporters write between the product of query and key and the softmax: factors, masks, tables of positions."""
MIXES_HEADS = SCALES_SCORES | {Op.ELEMENTWISE, Op.LAYER_NORM}
"""What stands between the softmax and the product with the values."""
LISTS_LOCATIONS = UNCHANGED | ARRANGES | SQUASHES | {Op.CONCAT, Op.SLICE, Op.SPLIT, Op.CLIP, Op.ADD, Op.MUL}
"""What makes one list of what convolutions say at each location."""
CHOOSES_ROWS = SAME | {Op.GATHER, Op.SLICE, Op.CONCAT, Op.RESHAPE}
"""What drops rows of a list, or joins columns to it."""
KEEPS_PLACES = (
    (POINTWISE | UNCHANGED)
    | {Op.RESHAPE, Op.SOFTMAX, Op.LAYER_NORM, Op.BATCH_NORM, Op.CONV, Op.POOL}
    | {
        Op.REDUCE,
        Op.EXPAND,
    }
)
"""What leaves elements in their order, or makes them of their neighbours, if it gives as many as it reads."""
WITH_BODIES = frozenset({"Loop", "If", "Scan", "TensorIterator"})
"""Types whose operation is a graph of its own, by their names in either format."""
DRAWS = frozenset(
    {"RandomUniform", "RandomNormal", "RandomUniformLike", "RandomNormalLike", "Multinomial", "Bernoulli"}
)
"""Types that give other numbers at each run, by their names in either format."""
