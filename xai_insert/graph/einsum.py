"""Reading an Einsum of two operands as transposes around one matrix product."""

from __future__ import annotations

from dataclasses import dataclass

Permutation = tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """`transpose(matmul(transpose(first, left), transpose(second, right)), result)`.

    Attributes:
        swapped: whether the Einsum's second operand is the first factor.
        left: permutation of the first factor to `[..., m, k]`.
        right: permutation of the second factor to `[..., k, n]`, or `[k, n]` where it is one matrix for all.
        result: permutation of the product.
    """

    swapped: bool
    left: Permutation
    right: Permutation
    result: Permutation


def as_product(equation: str) -> Product | None:
    """The product that an Einsum with this equation is; None if it is more, or less, than one."""
    operands, arrow, result = equation.replace(" ", "").partition("->")
    first, comma, second = operands.partition(",")
    labels = (first, second, result)
    if not arrow or not comma or not all(text.isalpha() and len(set(text)) == len(text) for text in labels):
        return None
    free = [label for label in result if (label in first) != (label in second)]
    if not free or any(label not in operands for label in result):
        return None
    swapped = free[0] not in first
    if swapped:
        first, second = second, first
    batch = [label for label in result if label in first and label in second]
    summed = [label for label in first if label in second and label not in result]
    columns = [label for label in second if label not in first]
    rows = [label for label in first if label not in second]
    if len(summed) != 1 or len(columns) != 1 or any(label not in result for label in rows + columns):
        return None
    if len(rows) != 1 and batch:
        return None
    rows = [label for label in result if label in rows]
    made = [*batch, *rows, *columns]
    return Product(
        swapped,
        tuple(first.index(label) for label in [*batch, *rows, *summed]),
        tuple(second.index(label) for label in [*batch, *summed, *columns]),
        tuple(made.index(label) for label in result),
    )


def is_identity(permutation: Permutation) -> bool:
    """Whether a transpose with this permutation does nothing."""
    return permutation == tuple(range(len(permutation)))
