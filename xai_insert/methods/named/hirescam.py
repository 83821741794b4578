"""HiResCAM: the feature map weighted cell by cell with the derivative of the class score."""

from __future__ import annotations

from xai_insert.methods.of_gradients import GradientMethod


class HiResCam(GradientMethod):
    """Of the last map, or of --target-layer."""

    name = "hirescam"
    summary = "derivative times feature map, cell by cell, of the best classes"
    paper = "Draelos and Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of CNNs, 2020"
    page = "hirescam.md"


METHOD = HiResCam()
