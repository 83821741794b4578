"""Records of operators that leave each element where it is, see `xai_insert.graph.operators`; and the base of all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operator:
    """The base of all records."""


@dataclass(frozen=True, slots=True)
class Unknown(Operator):
    """An operator of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Pointwise(Operator):
    """Element by element, of operands that broadcast as NumPy's do.

    Attributes:
        function: what is computed, by ONNX's name for it in lower case.
        parameters: its attributes, in ONNX's order.
    """

    function: str = ""
    parameters: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class InPlace(Operator):
    """Mixes elements of its first operand (norms, softmax) but leaves each where it is."""


@dataclass(frozen=True, slots=True)
class Softmax(InPlace):
    """Softmax over axes, or its logarithm."""

    axes: tuple[int, ...] = (-1,)
    is_log: bool = False


@dataclass(frozen=True, slots=True)
class Norm(InPlace):
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias`; scale and bias are the second and third operand, if any.

    Attributes:
        axes: those of mean and variance; None where they are not known.
        epsilon: what is added.
        is_centred: whether the mean is subtracted; without, the variance is the mean square.
        is_scaled: whether it is divided at all.
        epsilon_outside: whether epsilon is added behind the root.
        groups: groups into which axis 1 is divided before; 0 for none.
        by_channel: whether scale and bias hold one element for each of axis 1.
    """

    axes: tuple[int, ...] | None = None
    epsilon: float = 0.0
    is_centred: bool = True
    is_scaled: bool = True
    epsilon_outside: bool = False
    groups: int = 0
    by_channel: bool = False


@dataclass(frozen=True, slots=True)
class BatchNorm(InPlace):
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias`, of stored scale, bias, mean, variance by channel."""

    epsilon: float = 0.0


@dataclass(frozen=True, slots=True)
class UnitNorm(InPlace):
    """`x` over its Euclidean length along axes.

    Attributes:
        axes: None where they are not known.
        epsilon: least square of the length, or what is added to it.
        is_added: whether it is added.
    """

    axes: tuple[int, ...] | None = None
    epsilon: float = 0.0
    is_added: bool = False


@dataclass(frozen=True, slots=True)
class LocalNorm(InPlace):
    """`x / (bias + alpha / size * (sum of squares)) ** beta`, summed over `size` neighbours along axis 1.

    Of an even number of neighbours, one more comes behind.
    """

    size: int
    alpha: float
    beta: float
    bias: float


@dataclass(frozen=True, slots=True)
class Shuffled(InPlace):
    """The elements along an axis, `groups` rows of them, column by column."""

    axis: int
    groups: int


@dataclass(frozen=True, slots=True)
class Rounded(InPlace):
    """Quantisation to fewer bits, or back."""
