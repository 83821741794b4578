"""Grad-CAM: the feature map weighted with the mean derivative of each channel."""

from __future__ import annotations

from xai_insert.methods.of_gradients import GradientMethod


class GradCam(GradientMethod):
    """Of the last map, or of --target-layer."""

    name = "grad-cam"
    summary = "feature map weighted with mean derivatives, of the best classes"
    paper = "Selvaraju et al., Grad-CAM: Visual explanations from deep networks, 2017"
    page = "grad-cam.md"


METHOD = GradCam()
