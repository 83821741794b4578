"""Python versions of the torchvision operators that detectors need, for where its compiled library does not load.

They go in under the operators' own names, so that exporters see what they see in an ordinary installation.
"""

import numpy as np
import torch

from model_zoo_fixtures.export import shims

import torchvision  # isort: skip - after the shims

_ROI_ALIGN = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
    " int sampling_ratio, bool aligned) -> Tensor"
)
_installed: list[torch.library.Library] = []


def install() -> None:
    """Register the operators, once, and only where the compiled ones are missing."""
    if _installed or not shims.operators_are_declared_only():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(_ROI_ALIGN)
    library.impl("nms", _nms, "CPU")
    library.impl("roi_align", _roi_align, "CPU")
    torch.library.register_fake("torchvision::roi_align", _fake_roi_align, lib=library)
    for scope in (vars(torchvision.extension), torchvision.ops.nms.__globals__, torchvision.ops.roi_align.__globals__):
        scope |= {"_has_ops": _has_ops, "_assert_has_ops": _assert_has_ops}
    _installed.append(library)


def _has_ops() -> bool:
    return True


def _assert_has_ops() -> None:
    return None


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order]
    overlapping = (torchvision.ops.box_iou(boxes, boxes) > iou_threshold).numpy()
    dropped = np.zeros(len(order), bool)
    for place in range(len(order)):
        if not dropped[place]:
            dropped[place + 1 :] |= overlapping[place, place + 1 :]
    return order[torch.from_numpy(~dropped)]


def _roi_align(
    features: torch.Tensor,
    rois: torch.Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    from torchvision.ops.roi_align import _roi_align as in_python

    return in_python(features, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned)


def _fake_roi_align(
    features: torch.Tensor,
    rois: torch.Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    return features.new_empty((rois.shape[0], features.shape[1], pooled_height, pooled_width))
