"""Recipro-CAM: the class scores when all positions of the feature map but one are zero."""

from __future__ import annotations

from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.of_classifier import NO_BOXES, OF_VECTORS, map_plan
from xai_insert.methods.of_frames import frames_plan
from xai_insert.methods.of_tokens import tokens_plan
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.plan import Plan


class ReciproCam(Method):
    """Of a map, or of the tokens that an attention pool reads."""

    summary = "class scores with one position of the feature map kept"
    paper = "Byun and Lee, Recipro-CAM: Fast gradient-free visual explanations for CNNs, 2022"
    page = "recipro-cam.md"
    tasks = frozenset({"classification", "embedding", "prompts"})
    options = OF_VECTORS | {"output", "target_layer", "top_k", "classes", "form", "mask_batch"}
    excludes = NO_BOXES

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not isinstance(found, FoundClassifier):
            return Refusal("Recipro-CAM is for classifiers")
        readout = found.parts.readout
        if found.parts.consensus is not None:
            return frames_plan(study, found, "recipro-cam", found.parts.consensus)
        if readout is None:
            return map_plan(study, found, "recipro-cam")
        if readout.is_pool:  # of a pool patches are kept one by one
            return tokens_plan(study, found, "recipro-cam", readout, "point")
        return Refusal("the head reads class tokens of a block")


METHOD = ReciproCam()
