"""Inserting into a model of one size in a way that its map follows, should it be given another."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from xai_insert.errors import XaiInsertError
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import Graph
from xai_insert.locate.inputs import image_axes, image_inputs
from xai_insert.options import Options
from xai_insert.tasks.choose import make_plan
from xai_insert.tasks.plan import Plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A model whose image has an open height and width, or an open batch, and the plan for it.

    Attributes:
        graph: its view.
        plan: the plan.
        follows: whether the sides are open, not the batch alone.
    """

    graph: Graph
    plan: Plan
    follows: bool


def opened_sizes(loaded: LoadedModel, graph: Graph, plan: Plan, options: Options) -> Opened | None:
    """Open the sides of the image for the time of the insertion, so that the map follows a later reshape.

    The batch alone where the plan is for one size of the image, but would be for one batch as well. None, and nothing
    is open, where the model, the format or the plan is for the sizes that there are.
    """
    sizes = {image: image_axes(image) if plan.may_follow else (0,) for image in image_inputs(graph)}
    is_fixed = all(None not in (image.sizes[axis] for axis in axes) for image, axes in sizes.items())
    if not ((plan.may_follow or plan.keeps_batch) and is_fixed and loaded.open_sizes(sizes)):
        return None
    try:
        open_graph = loaded.view()
        other = make_plan(loaded, open_graph, options)
        if _choice(other) == _choice(plan):
            found = other.following(plan, graph, open_graph) if plan.may_follow else other
            return Opened(open_graph, found, plan.may_follow)
    except XaiInsertError as err:
        logger.info("the map is for one size of the image: %s", err)
    loaded.close_sizes()
    return None


def _choice(plan: Plan) -> tuple[object, ...]:
    """What a plan explains and how: with open sides, a pool of one window may look as if it kept a grid."""
    return plan.method, plan.form, plan.reason, [feature.value.name for feature in plan.found.placed()]
