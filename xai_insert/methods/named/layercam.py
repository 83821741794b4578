"""LayerCAM: the feature map weighted cell by cell with the positive part of the derivative."""

from __future__ import annotations

from dataclasses import replace

from xai_insert.locate.classifier import locate_classifier
from xai_insert.locate.stages import stage_number
from xai_insert.methods.base import Refusal
from xai_insert.methods.of_gradients import GradientMethod
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.plan import Plan


class LayerCam(GradientMethod):
    """Of the last map, or of --target-layer; of several with --fuse."""

    name = "layercam"
    summary = "positive derivative times feature map, of the best classes; for finer maps"
    paper = "Jiang et al., LayerCAM: Exploring hierarchical class activation maps for localization, 2021"
    page = "layercam.md"
    options = GradientMethod.options | {"fuse"}

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        options = study.options
        if not options.fuse or not isinstance(found, FoundClassifier):
            return super().applies(study, found)
        number = stage_number(options.target_layer or "")
        if number is None or number == 1:
            return Refusal("--fuse wants the stage from which on maps are fused: --target-layer -2 to -9")
        behind = [
            locate_classifier(study.graph, replace(options, target_layer=f"-{place}"), study.wanted).target
            for place in range(1, number)
        ]
        layers = replace(found.parts, streams=tuple(reversed(behind)))
        return self.planned(study, replace(found, parts=layers), fuses=True)


METHOD = LayerCam()
