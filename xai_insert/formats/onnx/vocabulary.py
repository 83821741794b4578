"""ONNX operation types in the view's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from xai_insert.graph.view import Op

# Every operator of one operand, or of several that broadcast, that treats each element alone; what `OPS` names apart
# from these has a name of its own in the view. LpNormalization, LRN, CumSum and their like are not among them: they
# mix the elements of an axis.
_ELEMENTWISE = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu "
    "Log Mish Neg PRelu Reciprocal Relu Round Selu Shrink Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh "
    "ThresholdedRelu And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor IsInf IsNaN Mean Mod Not Or Sum Xor"
)
FUSED_ELEMENTWISE = frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu"})
"""Those of onnxruntime's own domain."""
OPS: Mapping[str, Op] = {
    "Add": Op.ADD,
    "Sub": Op.SUB,
    "Mul": Op.MUL,
    "Div": Op.DIV,
    "Pow": Op.POW,
    "Clip": Op.CLIP,
    "Max": Op.CLIP,
    "Min": Op.CLIP,
    "Conv": Op.CONV,
    "MatMul": Op.MATMUL,
    "Gemm": Op.MATMUL,
    "BatchNormalization": Op.BATCH_NORM,
    "LayerNormalization": Op.LAYER_NORM,
    "SimplifiedLayerNormalization": Op.LAYER_NORM,
    "RMSNormalization": Op.LAYER_NORM,
    "AveragePool": Op.POOL,
    "MaxPool": Op.POOL,
    "GlobalAveragePool": Op.REDUCE,
    "GlobalMaxPool": Op.REDUCE,
    "GlobalLpPool": Op.REDUCE,
    "Softmax": Op.SOFTMAX,
    "LogSoftmax": Op.SOFTMAX,
    "Sigmoid": Op.SIGMOID,
    "TopK": Op.TOPK,
    "ArgMax": Op.ARGMAX,
    "Reshape": Op.RESHAPE,
    "Flatten": Op.RESHAPE,
    "Squeeze": Op.RESHAPE,
    "Unsqueeze": Op.RESHAPE,
    "Transpose": Op.TRANSPOSE,
    "Cast": Op.CAST,
    "CastLike": Op.CAST,
    "Gather": Op.GATHER,
    "Slice": Op.SLICE,
    "Split": Op.SPLIT,
    "Concat": Op.CONCAT,
    "Expand": Op.EXPAND,
    "Attention": Op.ATTENTION,
    "Shape": Op.SHAPE,
    "Size": Op.SHAPE,
    "Identity": Op.IDENTITY,
    "Dropout": Op.IDENTITY,
    "NonMaxSuppression": Op.NMS,
    "NonZero": Op.NONZERO,
    "RoiAlign": Op.ROI_ALIGN,
    "MaxRoiPool": Op.ROI_ALIGN,
    "Resize": Op.RESIZE,
    "Upsample": Op.RESIZE,
    "Where": Op.SELECT,
    "GatherND": Op.TAKE,
    "GatherElements": Op.TAKE,
    "Compress": Op.TAKE,
    "ScatterND": Op.SCATTER,
    "ScatterElements": Op.SCATTER,
    "Scatter": Op.SCATTER,
    "Greater": Op.COMPARE,
    "GreaterOrEqual": Op.COMPARE,
    "Less": Op.COMPARE,
    "LessOrEqual": Op.COMPARE,
    "Equal": Op.COMPARE,
    "QuantizeLinear": Op.QUANTIZE,
    "DequantizeLinear": Op.QUANTIZE,
    "DynamicQuantizeLinear": Op.QUANTIZE,
    "MatMulInteger": Op.MATMUL,
    "ConvInteger": Op.CONV,
    **dict.fromkeys(_ELEMENTWISE.split(), Op.ELEMENTWISE),
}
INTEGER = ("MatMulInteger", "ConvInteger")
WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"}
    | {"QGemm", "FusedConv", "FusedMatMul", "FusedGemm", "Attention"}
)
"""Layers that have learned weights."""
CARRIES_WEIGHTS = frozenset({"Cast", "DequantizeLinear", "Identity", "Mul", "QuantizeLinear", "Reshape", "Transpose"})
"""What stands between a weight as it is stored and its layer."""
WITHOUT_KERNEL = frozenset(
    {"PackedAttention", "PackedMultiHeadAttention", "RemovePadding", "RestorePadding", "GatedRelativePositionBias"}
    | {"BiasAdd", "BiasSplitGelu", "GroupNorm", "SkipGroupNorm", "NhwcConv", "QOrderedAttention", "QOrderedMatMul"}
)
"""Of `com.microsoft`, what has no implementation for CPUs."""
KEEPS_SIZES = frozenset({"Normalizer", "Scaler", "Imputer", "Binarizer"})
"""Of `ai.onnx.ml`, what gives as many numbers as it reads."""
