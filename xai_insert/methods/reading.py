"""What is made of a model's vector where it holds no scores of classes: its products with other vectors.

With h(f m_p) the vector that the model gives when its features are masked but for place p, and r another vector, the
map is `S[p] = <h(f m_p), r>`: how much place p alone makes the image like r. The methods of classifiers give h for
every place, and the products are taken here, so that closed forms and masked runs serve them as they stand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from xai_insert.graph.items import present
from xai_insert.graph.ops import Size, Surgeon, V
from xai_insert.graph.view import POINTWISE, Node, Value
from xai_insert.methods.shaping import operands_again, product_of, scalar

REFERENCE = "reference"
CLIP_SCALE = 100.0
"""By which CLIP multiplies a cosine; its scores are then those of a softmax."""
_CLIP_SIDES = 3
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Reading(ABC):
    """How vectors become maps.

    Attributes:
        count: how many maps; None if it is told while the model runs.
        width: elements of a vector.
    """

    name: ClassVar[str]
    count: int | None
    width: int

    follows: ClassVar[bool] = True
    """Whether the grid may have any size."""

    is_of_many: ClassVar[bool] = False
    """Whether there may be several maps, of which the best can be chosen."""

    @property
    def has_scores(self) -> bool:
        """Whether the model has an output of the scores `[B, M]`."""
        return False

    @abstractmethod
    def against(self, surgeon: Surgeon[V], vector: V) -> V:
        """What vectors are compared with, as `products` takes it; `vector` is the model's own, `[B, D]`."""

    @abstractmethod
    def products(self, surgeon: Surgeon[V], vectors: V, against: V, sides: Sequence[Size]) -> V:
        """Maps `[B, M, h, w]` of vectors `[B, D, h, w]`; `sides` are h and w, behind t of clips."""

    def checked(self, vector: V, scores: V) -> V:
        """Which of both is compared with the definition, see `expected`."""
        del vector
        return scores

    def expected(self, masked: Array, whole: Array) -> Array:
        """Scores `[B, M]` under a mask.

        Args:
            masked: what `checked` names, under the mask.
            whole: the same without one.
        """
        del whole
        return masked

    def scores(self, surgeon: Surgeon[V], vector: V, against: V) -> V:
        """Scores `[B, M]` of the model's own vector."""
        column = surgeon.ops.reshape(vector, [-1, self.width, 1, 1])
        products = self.products(surgeon, column, against, (1, 1))
        return surgeon.ops.reshape(products, [-1, self.count or 1])


@dataclass(frozen=True)
class ToReference(Reading):
    """Products with one vector for each image."""

    def products(self, surgeon: Surgeon[V], vectors: V, against: V, sides: Sequence[Size]) -> V:
        everywhere = surgeon.ops.reshape(against, [-1, self.width, *[1] * len(sides)])
        return surgeon.ops.reduce(surgeon.ops.mul(vectors, everywhere), "sum", (1,))


@dataclass(frozen=True)
class ToItself(ToReference):
    """The vector of the image itself, all of it."""

    name = "self"

    def against(self, surgeon: Surgeon[V], vector: V) -> V:
        return surgeon.ops.isolated(surgeon.ops.reshape(vector, [-1, self.width]), self.width)

    def checked(self, vector: V, scores: V) -> V:
        del scores  # under a mask, the vector that it is compared with would be masked as well
        return vector

    def expected(self, masked: Array, whole: Array) -> Array:
        width = (-1, self.width)
        return np.asarray((masked.reshape(width) * whole.reshape(width)).sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class ToInput(ToReference):
    """A vector that the user feeds.

    Attributes:
        batch: how many of them, as images; None for any number.
    """

    name = "input"
    batch: int | None

    def against(self, surgeon: Surgeon[V], vector: V) -> V:
        del vector
        return surgeon.add_input(REFERENCE, "float32", (self.batch, self.width))


@dataclass(frozen=True)
class ToClasses(Reading):
    """Stored vectors, one for each class: `100 cos(h, r_k)`.

    Attributes:
        rows: float32 `[K, D]`, each of length one.
    """

    name = "classes"
    is_of_many = True
    rows: Array

    def against(self, surgeon: Surgeon[V], vector: V) -> V:
        del vector
        return surgeon.ops.constant((self.rows * np.float32(CLIP_SCALE))[:, :, None, None])

    def products(self, surgeon: Surgeon[V], vectors: V, against: V, sides: Sequence[Size]) -> V:
        op, is_clip = surgeon.ops, len(sides) == _CLIP_SIDES
        flat = op.reshape(vectors, [-1, self.width, product_of(op, sides), 1]) if is_clip else vectors
        length = op.sqrt(op.reduce(op.mul(flat, flat), "sum", (1,)))
        maps = op.conv1x1(op.div(flat, op.nonzero_or(length, scalar(op, 1.0))), against)
        return op.reshape(maps, [-1, len(self.rows), *sides]) if is_clip else maps


@dataclass(frozen=True)
class ToPrompts(Reading):
    """Vectors that the model makes of its other inputs, and what it does to the products, element by element.

    Attributes:
        vectors: `[P, D]`, or `[D, P]` where `is_transposed`.
        is_transposed: see `vectors`.
        product: of the model's own vectors.
        tail: the operations behind it: by scalars, or in another order only.
        model_scores: what they end in, `[B, P]`, or `[P, B]` where `scores_transposed`.
        scores_transposed: see `model_scores`.
    """

    name = "prompts"
    vectors: Value
    is_transposed: bool
    product: Value
    tail: tuple[Node, ...]
    model_scores: Value
    scores_transposed: bool

    follows = False
    is_of_many = True

    @property
    def has_scores(self) -> bool:
        return not self.scores_transposed

    def against(self, surgeon: Surgeon[V], vector: V) -> V:
        del vector
        given = surgeon.handle(self.vectors)
        return surgeon.ops.transpose(given, (1, 0)) if self.is_transposed else given

    def products(self, surgeon: Surgeon[V], vectors: V, against: V, sides: Sequence[Size]) -> V:
        op = surgeon.ops
        maps = op.matmul(against, op.reshape(vectors, [-1, self.width, product_of(op, sides)]))
        result = [op.size(maps, 0), -1] if self.count is None else [-1, self.count]
        made = {self.product: op.reshape(maps, [*result, *sides])}
        for node in self.tail:
            operands = operands_again(surgeon, node, made)
            made[node.output] = present(operands)[0]
            if node.op in POINTWISE:
                (made[node.output],) = surgeon.copy(node, operands)
        return made[self.model_scores]

    def scores(self, surgeon: Surgeon[V], vector: V, against: V) -> V:
        del vector, against
        given = surgeon.handle(self.model_scores)
        return surgeon.ops.transpose(given, (1, 0)) if self.scores_transposed else given
