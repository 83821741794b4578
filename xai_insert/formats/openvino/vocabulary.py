"""OpenVINO operation types in the view's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from xai_insert.graph.traits import ARITHMETIC
from xai_insert.graph.view import Op

# Every operation of one operand, or of several that broadcast, that treats each element alone; see also `OPS`.
# NormalizeL2, GRN, LRN, CumSum and their like are not among them: they mix the elements of an axis.
_ELEMENTWISE = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceiling Cos Cosh Elu Erf Exp Floor Gelu HSigmoid HSwish HardSigmoid Log Mish "
    "Negative PRelu Relu Round Selu Sign Sin Sinh SoftPlus SoftSign Sqrt Swish Tan Tanh BitwiseAnd BitwiseLeftShift "
    "BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor FloorMod IsFinite IsInf IsNaN LogicalAnd LogicalNot LogicalOr "
    "LogicalXor Mod SquaredDifference"
)
OPS: Mapping[str, Op] = {
    "Add": Op.ADD,
    "Subtract": Op.SUB,
    "Multiply": Op.MUL,
    "Divide": Op.DIV,
    "Power": Op.POW,
    "Clamp": Op.CLIP,
    "Maximum": Op.CLIP,
    "Minimum": Op.CLIP,
    "Convolution": Op.CONV,
    "GroupConvolution": Op.CONV,
    "MatMul": Op.MATMUL,
    "BatchNormInference": Op.BATCH_NORM,
    "MVN": Op.LAYER_NORM,
    "RMS": Op.LAYER_NORM,
    "AvgPool": Op.POOL,
    "MaxPool": Op.POOL,
    "ReduceMean": Op.REDUCE,
    "ReduceMax": Op.REDUCE,
    "ReduceMin": Op.REDUCE,
    "ReduceSum": Op.REDUCE,
    "ReduceProd": Op.REDUCE,
    "ReduceL1": Op.REDUCE,
    "ReduceL2": Op.REDUCE,
    "Softmax": Op.SOFTMAX,
    "LogSoftmax": Op.SOFTMAX,
    "Sigmoid": Op.SIGMOID,
    "TopK": Op.TOPK,
    "Identity": Op.IDENTITY,
    "Reshape": Op.RESHAPE,
    "Squeeze": Op.RESHAPE,
    "Unsqueeze": Op.RESHAPE,
    "Transpose": Op.TRANSPOSE,
    "Convert": Op.CAST,
    "ConvertLike": Op.CAST,
    "Gather": Op.GATHER,
    "Slice": Op.SLICE,
    "StridedSlice": Op.SLICE,
    "Split": Op.SPLIT,
    "VariadicSplit": Op.SPLIT,
    "Concat": Op.CONCAT,
    "Broadcast": Op.EXPAND,
    "ScaledDotProductAttention": Op.ATTENTION,
    "ShapeOf": Op.SHAPE,
    "NonMaxSuppression": Op.NMS,
    "NMSRotated": Op.NMS,
    "MulticlassNms": Op.NMS,
    "MatrixNms": Op.NMS,
    "DetectionOutput": Op.NMS,
    "NonZero": Op.NONZERO,
    "ROIAlign": Op.ROI_ALIGN,
    "ROIPooling": Op.ROI_ALIGN,
    "PSROIPooling": Op.ROI_ALIGN,
    "ExperimentalDetectronROIFeatureExtractor": Op.ROI_ALIGN,
    "Interpolate": Op.RESIZE,
    "Select": Op.SELECT,
    "GatherND": Op.TAKE,
    "GatherElements": Op.TAKE,
    "ScatterNDUpdate": Op.SCATTER,
    "ScatterElementsUpdate": Op.SCATTER,
    "ScatterUpdate": Op.SCATTER,
    "Greater": Op.COMPARE,
    "GreaterEqual": Op.COMPARE,
    "Less": Op.COMPARE,
    "LessEqual": Op.COMPARE,
    "Equal": Op.COMPARE,
    "NotEqual": Op.COMPARE,
    "FakeQuantize": Op.QUANTIZE,
    "FakeConvert": Op.QUANTIZE,
    **dict.fromkeys(_ELEMENTWISE.split(), Op.ELEMENTWISE),
}
ARITHMETIC_TYPES = frozenset(kind for kind, op in OPS.items() if op in ARITHMETIC)
WEIGHTED = frozenset(
    {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
)
"""Layers that have learned weights."""
UNFOLDS = frozenset({"Convert", "Subtract", "Multiply", "Reshape"})
"""What stands between a weight as it is stored, of integers or of half precision, and its layer."""
LIGHT = frozenset(
    {"Convert", "LogSoftmax", "Reshape", "Sigmoid", "Softmax", "Squeeze", "TopK", "Transpose", "Unsqueeze"}
)
"""What ends models behind their last linear layer; none of it is computed in bf16 there."""
