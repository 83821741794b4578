"""Reading an Einsum of two operands as transposes around one matrix product."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from string import ascii_letters
from typing import TypeVar

Permutation = tuple[int, ...]
V = TypeVar("V")


@dataclass(frozen=True)
class TurnedProduct:
    """`transpose(matmul(transpose(first, left), transpose(second, right)), result)`.

    Where it `is_row`, `m` is 1: the first factor lacks that axis, and so does the result.

    Attributes:
        swapped: whether the Einsum's second operand is the first factor.
        left: permutation of the first factor to `[..., m, k]`.
        right: permutation of the second factor to `[..., k, n]`, or `[k, n]` where it is one matrix for all.
        result: permutation of the product.
        is_row: whether the first factor has one row in each matrix.
    """

    swapped: bool
    left: Permutation
    right: Permutation
    result: Permutation
    is_row: bool = False


def as_product(equation: str, ranks: Sequence[int | None] = (None, None)) -> TurnedProduct | None:
    """The product that an Einsum with this equation is; None if it is more, or less, than one.

    Args:
        equation: as NumPy has it.
        ranks: how many axes its operands have, which an ellipsis does not tell.
    """
    labels = labels_of(equation, ranks)
    if labels is None:
        return None
    first, second, result = labels
    both = set(first) & set(second)
    summed = both - set(result)
    if not _sums_one(labels, summed):
        return None
    batch = [label for label in result if label in both]
    free = [label for label in result if label not in both]
    is_row = bool(batch) and len(free) == 1
    swapped = bool(free) and (free[0] in first) == is_row
    if swapped:
        first, second = second, first
    rows, columns = _apart(free, first, second)
    if len(columns) != 1 or (batch and len(rows) != 1 and not is_row):
        return None
    made = "".join([*batch, *rows, *columns])
    left, right = _order(first, [*batch, *rows, *summed]), _order(second, [*batch, *summed, *columns])
    return TurnedProduct(swapped, left, right, _order(made, result), is_row)


def _sums_one(labels: tuple[str, str, str], summed: set[str]) -> bool:
    """Whether one label is summed over, and all others are left."""
    first, second, result = labels
    return len(summed) == 1 and set(first + second) == {*result, *summed}


def _apart(free: Sequence[str], first: str, second: str) -> tuple[list[str], list[str]]:
    """The axes that one operand alone has: the rows of the first, the columns of the second."""
    return [label for label in free if label in first], [label for label in free if label in second]


def _order(axes: str, wanted: Iterable[str]) -> Permutation:
    return tuple(map(axes.index, wanted))


def labels_of(equation: str, ranks: Sequence[int | None]) -> tuple[str, str, str] | None:
    """The axes of both operands and of the result; None unless each has its own."""
    operands, arrow, result = equation.replace(" ", "").partition("->")
    first, comma, second = operands.partition(",")
    texts: tuple[str, ...] | None = (first, second, result)
    if "..." in equation:
        texts = _spelled_out(first, second, result, ranks)
    if texts is None or not arrow or not comma:
        return None
    first, second, result = texts
    are_plain = all(text.isalpha() and len(set(text)) == len(text) for text in texts)
    return (first, second, result) if are_plain else None


def _spelled_out(first: str, second: str, result: str, ranks: Sequence[int | None]) -> tuple[str, ...] | None:
    """The same with a letter for each axis of an ellipsis; None if the operands have not as many there."""
    left, right = (
        -1 if rank is None else rank - len(text.replace("...", ""))
        for text, rank in zip((first, second), ranks, strict=True)
    )
    if left != right or left < 0:  # axes of one operand alone are no batch
        return None
    unused = [letter for letter in ascii_letters if letter not in first + second + result]
    return tuple(text.replace("...", "".join(unused[:left])) for text in (first, second, result))


def is_identity(permutation: Permutation) -> bool:
    """Whether a transpose with this permutation does nothing."""
    return permutation == tuple(range(len(permutation)))


@contextmanager
def exchanged(pairs: Sequence[tuple[V, V]], redirect: Callable[[V, V], None]) -> Iterator[None]:
    """Let what reads the first of each pair read the second instead, for a time; `redirect` does that for one."""
    for einsum, product in pairs:
        redirect(einsum, product)
    try:
        yield
    finally:
        for einsum, product in pairs:
            redirect(product, einsum)
