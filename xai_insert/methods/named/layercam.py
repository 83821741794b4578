"""LayerCAM: the feature map weighted cell by cell with the positive part of the derivative."""

from __future__ import annotations

from xai_insert.methods.of_gradients import GradientMethod


class LayerCam(GradientMethod):
    """Of the last map, or of --target-layer."""

    name = "layercam"
    summary = "positive derivative times feature map, of the best classes; for finer maps"
    paper = "Jiang et al., LayerCAM: Exploring hierarchical class activation maps, 2021"
    page = "layercam.md"


METHOD = LayerCam()
