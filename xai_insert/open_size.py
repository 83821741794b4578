"""The size that stands for open sides of an image where a plan is proved."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.feeds import DEFAULT_SIZE
from xai_insert.form import Form
from xai_insert.locate.inputs import image_inputs, image_size
from xai_insert.several import Planned

_MOST_CELLS = 1 << 10
_SMALLEST = 28


def size_for(plans: Sequence[Planned]) -> int:
    """Pixels along each open side: fewer where the head would run for very many masks, each of one cell."""
    size = DEFAULT_SIZE
    while size > _SMALLEST and any(_masks(item, size) > _MOST_CELLS for item in plans):
        size //= 2
    return size


def _masks(item: Planned, size: int) -> float:
    """How many masks are run for an image of this size; 0 where its sides are known, or strides are not."""
    if item.plan.form is not Form.RUNS or image_size(image_inputs(item.graph)[0]) is not None:
        return 0
    lines = [feature.frame.lines for feature in item.plan.found.placed()]
    return max((size * size / abs(rows[0] * columns[0]) for rows, columns in filter(None, lines)), default=0)
