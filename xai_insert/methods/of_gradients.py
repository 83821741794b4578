"""What the methods share that are made of the derivative of a class score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from xai_insert.errors import NoDerivativeError, TargetNotFoundError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.cuts import region
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph
from xai_insert.locate.classifier import Wanted
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.places import find_places
from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.gradients.maps import FORMULAS, GradientMap, defined, gradient_map
from xai_insert.methods.of_classifier import NO_BOXES, SALIENCY_CLASSES, Choice, ClassifierPlan
from xai_insert.methods.rehearsal import STAND_IN, Rehearsal
from xai_insert.methods.top_classes import ClassChoice, best_classes
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.cost import flops_of, mega
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.plan import Branch, Derivative, Output, Plan


@dataclass(frozen=True)
class GradientPlan(ClassifierPlan):
    """A decision for maps of the best classes, by derivatives that are written into the graph."""

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        logits, target = self.found.parts.logits, self.found.parts.target
        choice = best_classes(surgeon, logits.value, logits.classes, _count(options))
        made = self._made(surgeon, graph, choice)
        output = Output(choice.indices, "int64", self.map_shape[:2])
        derivative = Derivative(target.value, made.gradient, defined(self.method, target))
        scores = surgeon.handle(logits.value)
        return Branch(self, made.raw, scores, choice.indices, {SALIENCY_CLASSES: output}, derivative=derivative)

    def _made(self, surgeon: Surgeon[Any], graph: Graph, choice: ClassChoice[Any]) -> GradientMap[Any]:
        return gradient_map(surgeon, graph, self.found.parts.target, self.found.parts.logits.value, choice, self.method)

    def add(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options, choice: Choice) -> Any:
        raise NotImplementedError  # `splice` does it

    def rehearse(self, graph: Graph, count: int) -> None:
        """Walk back without writing anything.

        Raises:
            NoDerivativeError: an operator has no rule.
        """
        self._made(Rehearsal(), graph, ClassChoice(STAND_IN, count))

    def uses(self) -> frozenset[str]:
        return super().uses() | {"top_k"}

    def metadata(self, options: Options) -> dict[str, str]:
        return super().metadata(options) | {"top_k": str(_count(options))}


def _count(options: Options) -> int:
    return options.top_k or 1


class GradientMethod(Method):
    """A method of a classifier's feature map; its name is one of `FORMULAS`."""

    name: str
    tasks = frozenset({"classification"})
    options = frozenset({"output", "target_layer", "top_k", "num_classes"})
    excludes = NO_BOXES
    reads = Wanted.DERIVATIVE

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not isinstance(found, FoundClassifier):
            return Refusal("derivatives of class scores are for classifiers")
        if found.parts.streams:
            return Refusal(f"{1 + len(found.parts.streams)} maps feed the scores; choose a layer with --target-layer")
        return self.planned(study, found)

    def planned(self, study: Study, found: FoundClassifier) -> Plan | Refusal:
        """The plan for the target that was found."""
        logits, target = found.parts.logits, found.parts.target
        count = min(_count(study.options), logits.classes)
        between = region(study.graph, [target.value], [logits.value])
        if not between:
            raise TargetNotFoundError(f"the class scores do not depend on {target.value.describe()}")
        batch = target.shape[0] or 1
        flops = sum(flops_of(node, batch) for node in between) * count
        shape = (target.shape[0], count, *target.grid)
        assert self.name in FORMULAS
        reason = f"{len(between)} operations behind {target.value.name!r}"
        plan = GradientPlan(found, self.name, Form.DERIVATIVE, reason, shape, mega(flops))
        try:
            plan.rehearse(study.graph, count)
        except NoDerivativeError as err:
            return Refusal(str(err), NoDerivativeError)
        return plan


def of_image(study: Study, found: FoundClassifier) -> FoundClassifier | None:
    """The same classifier with the image itself as the map to explain; None if it is no single map."""
    images = image_inputs(study.graph)
    feature = find_places(study.graph).map_of(images[0]) if len(images) == 1 else None
    return None if feature is None else FoundClassifier(replace(found.parts, target=feature, streams=()))
