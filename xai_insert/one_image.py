"""Models that declare an open batch and take one image: their exporter has written the batch into a layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np

from xai_insert.check import random_feeds
from xai_insert.errors import CheckFailedError, TimeLimitError
from xai_insert.feeds import feeds_of
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import Graph, Node, Op, Shape
from xai_insert.locate.inputs import image_inputs

logger = logging.getLogger(__name__)

_SEED = 0
_SECONDS = 60.0


def fixing_layer(loaded: LoadedModel, graph: Graph) -> Node | None:
    """The layer that fixes the batch of a model whose images have an open one; None where it takes several images.

    Many layers that look so are none, as a reshape to one image of many channels, and back: so the model is run.
    """
    if not _open_images(graph):
        return None
    layer = next((node for node in graph.nodes if _fixes_batch(node)), None)
    if layer is None:
        return None
    try:
        runner = loaded.runner()
        runner.run(random_feeds(runner), _SECONDS)
    except (CheckFailedError, TimeLimitError):
        return None  # said where the plain model is run
    try:
        runner.run(feeds_of(runner.inputs, np.random.default_rng(_SEED), batch=2), _SECONDS)
    except TimeLimitError:
        return None
    except CheckFailedError as err:
        logger.info("the model takes one image: %s", err)
        return layer
    return None


def of_one_image(fresh: Callable[[], LoadedModel], graph: Graph) -> Callable[[], LoadedModel]:
    """What loads the model with a batch of one, given what loads it, and its view."""
    sizes = _open_images(graph)

    def load() -> LoadedModel:
        loaded = fresh()
        loaded.fix_sizes(sizes)
        return loaded

    return load


def _open_images(graph: Graph) -> Mapping[str, Shape]:
    """Sizes of one image, by the name of each input of images whose batch is open."""
    return {image.name: (1, *image.sizes[1:]) for image in image_inputs(graph) if image.sizes[0] is None}


def _fixes_batch(node: Node) -> bool:
    """Whether a layer reads an open batch, and gives or joins it with a fixed one."""
    if not node.outputs or node.op not in (Op.RESHAPE, Op.CONCAT):
        return False
    read = node.operands if node.op is Op.CONCAT else node.operands[:1]
    firsts = [value.shape[0] for value in read if value.shape and len(value.shape) > 1]
    result = node.output.shape
    if node.op is Op.CONCAT:
        return None in firsts and len(set(firsts)) > 1
    return None in firsts and bool(result) and result is not None and result[0] is not None
