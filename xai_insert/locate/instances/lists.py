"""Outputs with one entry per instance: boxes, labels, scores and masks, as Mask R-CNN gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from xai_insert.errors import AmbiguousModelError
from xai_insert.graph.cuts import makers
from xai_insert.graph.view import Node, Op
from xai_insert.layouts.boxes import are_shares, are_whole
from xai_insert.locate.instances.kinds import BoxFormat, ListedInstances, Sample


def find_list(samples: Sequence[Sample], image: tuple[int, int]) -> ListedInstances | None:
    """Boxes, labels, scores and masks of the same instances; None if the outputs are not such a list.

    Args:
        samples: the model's outputs for a sample image.
        image: height and width of that image.

    Raises:
        AmbiguousModelError: several outputs fit equally well.
    """
    for boxes in filter(_are_boxes, samples):
        found = _beside(boxes, [sample for sample in samples if sample is not boxes], image)
        if found is not None:
            return found
    return None


def _beside(boxes: Sample, others: Sequence[Sample], image: tuple[int, int]) -> ListedInstances | None:
    """The list that boxes make with other outputs."""
    lead = boxes.shape[:-1]
    masks = [sample for sample in others if _are_masks(sample, lead)]
    numbers = [sample for sample in others if _without_ones(sample.shape) == _without_ones(lead)]
    labels = [sample for sample in numbers if _are_labels(sample)]
    scores = _scores(boxes, [sample for sample in numbers if sample not in labels])
    fitting = {"masks": masks, "labels": labels, "scores": scores}
    if not all(fitting.values()):
        return None
    _require_one(fitting)
    relative = bool(boxes.array.size) and are_shares(boxes.array[..., :4])
    return ListedInstances(
        masks[0],
        labels[0],
        None if scores[0] is boxes else scores[0],
        boxes,
        _is_per_box(masks[0], image),
        BoxFormat(is_relative=relative),
    )


def _scores(boxes: Sample, numbers: Sequence[Sample]) -> list[Sample]:
    """What may hold the scores: the boxes themselves where a column stands behind their sides."""
    return [boxes] if boxes.shape[-1] == 5 else [sample for sample in numbers if sample.is_float]


def _require_one(fitting: Mapping[str, Sequence[Sample]]) -> None:
    for what, samples in fitting.items():
        if len(samples) > 1:
            listed = ", ".join(sample.describe() for sample in samples)
            raise AmbiguousModelError(f"several outputs could be the {what} of the instances: {listed}")


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _are_boxes(sample: Sample) -> bool:
    return sample.is_float and len(sample.shape) in (2, 3) and sample.shape[-1] in (4, 5)


def _are_masks(sample: Sample, lead: Sequence[int]) -> bool:
    """One mask for each box, whose sizes are `lead`."""
    shape = sample.shape
    if len(shape) - len(lead) not in (1, 2, 3) or min(shape[-2:]) < 2:
        return False
    return _without_ones(shape[:-2]) == _without_ones(lead) and are_shares(sample.array)


def _are_labels(sample: Sample) -> bool:
    return sample.array.dtype.kind in "iu" or bool(
        sample.array.size and are_whole(sample.array) and np.ptp(sample.array)
    )


def _is_per_box(masks: Sample, image: tuple[int, int]) -> bool:
    """Whether a mask covers its box: it has not the size of the image and comes from features cut out by boxes."""
    return masks.shape[-2:] != image and bool(makers(masks.value, _cuts_out_boxes))


def _cuts_out_boxes(node: Node) -> bool:
    return node.op is Op.ROI_ALIGN
