"""What is stored between class scores and their sigmoid or softmax: a temperature, a shift of each class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from xai_insert.errors import UnsupportedTaskError
from xai_insert.graph.operators import Picked
from xai_insert.graph.traits import ARRANGES, SAME, SQUASHES
from xai_insert.graph.view import Op, Use, Value, constant_of

_MOST = 1 << 16
_MOVES = ARRANGES | SAME | {Op.CONCAT}
Numbers = npt.NDArray[np.float64]
Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Affine:
    """`scale * score + shift`, with one number for all classes or one for each."""

    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)

    def behind(self, op: Op, number: Numbers) -> Affine:
        """What it is with one more addition, subtraction, product or quotient."""
        scale, shift = np.array(self.scale), np.array(self.shift)
        if op in (Op.ADD, Op.SUB):
            return replace(self, shift=_told(shift + number if op is Op.ADD else shift - number))
        factor = number if op is Op.MUL else 1 / number
        return Affine(_told(scale * factor), _told(shift * factor))


def affine_behind(value: Value, classes: int) -> Affine | None:
    """What is done to class scores behind the layer that gives them, where levels may already be joined.

    None if nothing is, or nothing that is stored.

    Raises:
        UnsupportedTaskError: it turns scores round.
    """
    found, order = Affine(), np.arange(classes)
    while (use := value.only_use) is not None and use.node.op not in SQUASHES:
        number, picked = _stored(use, len(order)), _picked(use, order)
        if number is None and picked is None and use.node.op not in _MOVES:
            return None
        found = found if number is None else found.behind(use.node.op, _of_head(number, order, classes, use.node.op))
        order = order if picked is None else picked
        value = use.node.output
    if min(found.scale) <= 0:
        raise UnsupportedTaskError(f"class scores are multiplied by numbers below zero before {value.describe()}")
    return None if use is None or found == Affine() else found


def _picked(use: Use, order: Order) -> Order | None:
    """The classes that a Gather picks, as the head counts them; None if it is no such."""
    kind = use.node.kind
    if not isinstance(kind, Picked) or use.index or not kind.indices:
        return None
    count = len(order)
    is_of_classes = use.node.read(0).sizes[kind.axis] == count and all(-count <= at < count for at in kind.indices)
    return np.asarray(order[[*kind.indices]]) if is_of_classes else None


def _of_head(number: Numbers, order: Order, classes: int, op: Op) -> Numbers:
    """Numbers of the classes in some order as those of the head's; a class that is not picked stays as it is."""
    if number.size == 1:
        return number
    found = np.full(classes, 0.0 if op in (Op.ADD, Op.SUB) else 1.0)
    found[order] = number
    return found


def _stored(use: Use, classes: int) -> Numbers | None:
    """The one number, or one for each class, that scores are added to or multiplied by; None if it is no such."""
    op, index = use.node.op, use.index
    if op not in (Op.ADD, Op.MUL) and (op not in (Op.SUB, Op.DIV) or index):
        return None
    elements = constant_of(use.node.operand(1 - index), limit=_MOST)
    if elements is None:
        return None
    numbers = elements.astype(np.float64).reshape(-1)
    return numbers[:1] if np.ptp(numbers) == 0 else numbers if numbers.size == classes else None


def _told(numbers: Numbers) -> tuple[float, ...]:
    return tuple(map(float, numbers))
