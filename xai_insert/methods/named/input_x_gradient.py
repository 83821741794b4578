"""Input times gradient: the image weighted with the derivative of the class score, pixel by pixel."""

from __future__ import annotations

from xai_insert.errors import UnsupportedTaskError
from xai_insert.locate.classifier import Wanted
from xai_insert.methods.base import Refusal
from xai_insert.methods.of_gradients import GradientMethod, of_image
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.plan import Plan


class InputTimesGradient(GradientMethod):
    """Of the image itself, in its own size."""

    name = "input-x-gradient"
    summary = "derivative times image, pixel by pixel, of the best classes"
    paper = "Shrikumar et al., Not just a black box: Learning important features through propagating differences, 2016"
    page = "input-x-gradient.md"
    options = frozenset({"output", "top_k", "classes"})
    reads = Wanted.IMAGE

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if study.options.target_layer is not None:
            return Refusal("input-x-gradient explains the image itself: leave out --target-layer", UnsupportedTaskError)
        pixels = of_image(study, found) if isinstance(found, FoundClassifier) else None
        if pixels is None:
            return Refusal("input-x-gradient wants a classifier of one image")
        return self.planned(study, pixels)


METHOD = InputTimesGradient()
