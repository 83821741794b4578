"""What the methods share that are made of the derivative of a class score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from xai_insert.errors import NoDerivativeError, TargetNotFoundError, UnsupportedTaskError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.cuts import region
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph
from xai_insert.locate.classifier import Wanted
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.places import find_places
from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.gradients.maps import FORMULAS, Formula, GradientMap, defined, fused, gradient_maps, summed
from xai_insert.methods.of_classes import Choice, choose_classes, chosen_count
from xai_insert.methods.of_classifier import (
    NO_BOXES,
    NO_CLIPS,
    SALIENCY_CLASSES,
    ClassifierPlan,
)
from xai_insert.methods.rehearsal import STAND_IN, Rehearsal
from xai_insert.methods.top_classes import ClassChoice, best_classes
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.cost import flops_of, mega
from xai_insert.tasks.known.classification import FoundClassifier, Unmasked
from xai_insert.tasks.plan import Branch, Derivative, Output, Plan


@dataclass(frozen=True)
class GradientPlan(ClassifierPlan):
    """A decision for maps of the best classes, by derivatives that are written into the graph.

    Attributes:
        fuses: whether the target and the further maps are layers one before the other, whose maps are fused.
    """

    fuses: bool = False

    @property
    def keeps_batch(self) -> bool:
        return True

    @property
    def wants_sizes(self) -> bool:
        return isinstance(self.found, Unmasked)

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        logits = self.found.parts.logits
        choice = choose_classes(surgeon, logits, options) or best_classes(surgeon, logits.value, logits.classes, 1)
        made = self._made(surgeon, graph, choice)
        raw = fused(surgeon, made) if self.fuses else summed(surgeon, made)
        output = Output(choice.indices, "int64", self.map_shape[:2])
        scores = surgeon.handle(logits.value)
        derivatives = [self._derivative(item, scores) for item in made]
        return Branch(self, raw, scores, choice.indices, {SALIENCY_CLASSES: output}, derivatives=derivatives)

    def _derivative(self, item: GradientMap[Any], scores: Any) -> Derivative:
        formula, feature = defined(self.method, item.feature), item.feature
        return Derivative(feature.value, item.raw, item.gradient, formula, scores, batch_axis=feature.batch_axis)

    def _made(self, surgeon: Surgeon[Any], graph: Graph, choice: ClassChoice[Any]) -> list[GradientMap[Any]]:
        parts = self.found.parts
        layers = [*reversed(parts.streams), parts.target] if self.fuses else [parts.target, *parts.streams]
        return gradient_maps(surgeon, graph, layers, parts.logits.value, choice, self.method, one_by_one=self.fuses)

    def add(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options, choice: Choice) -> Any:
        raise NotImplementedError  # `splice` does it

    def rehearse(self, graph: Graph, count: int) -> None:
        """Walk back without writing anything.

        Raises:
            NoDerivativeError: an operator has no rule.
        """
        self._made(Rehearsal(), graph, ClassChoice(STAND_IN, count))

    def uses(self) -> frozenset[str]:
        return super().uses() | {"top_k", "classes"} | ({"fuse"} if self.fuses else set())

    def metadata(self, options: Options) -> dict[str, str]:
        entries = super().metadata(options)
        return entries if options.classes is not None else {"top_k": "1"} | entries


class GradientMethod(Method):
    """A method of a classifier's feature map; its name is one of `FORMULAS`."""

    name: str
    tasks = frozenset({"classification"})
    options = frozenset({"output", "target_layer", "top_k", "classes", "num_classes"})
    excludes = NO_BOXES
    reads = Wanted.DERIVATIVE

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not isinstance(found, FoundClassifier):
            return Refusal("derivatives of class scores are for classifiers")
        if found.parts.consensus is not None:
            return Refusal(NO_CLIPS, UnsupportedTaskError)
        if found.parts.streams and FORMULAS[self.name] != Formula():
            number = 1 + len(found.parts.streams)
            return Refusal(f"{number} maps feed the scores, which hirescam adds up; or choose a layer: --target-layer")
        return self.planned(study, found)

    def planned(self, study: Study, found: FoundClassifier, *, fuses: bool = False) -> Plan | Refusal:
        """The plan for the targets that were found."""
        logits, target = found.parts.logits, found.parts.target
        count = chosen_count(study.options, logits) or 1
        maps = [target, *found.parts.streams]
        refusal = _why_not_together(found, maps)
        if refusal is not None:
            return refusal
        between = region(study.graph, [item.value for item in maps], [logits.value])
        if not between:
            raise TargetNotFoundError(f"the class scores do not depend on {target.value.describe()}")
        flops = sum(flops_of(node, target.batch or 1) for node in between) * count
        shape = (target.batch, count, *target.grid)
        reason = f"{len(between)} operations behind {' and '.join(repr(item.value.name) for item in maps)}"
        if found.instead:
            reason += f"; in place of Recipro-CAM: {found.instead}"
        plan = GradientPlan(found, self.name, Form.DERIVATIVE, reason, shape, mega(flops), fuses)
        try:
            plan.rehearse(study.graph, count)
        except NoDerivativeError as err:
            return _without_rule(found, err)
        return plan


def _why_not_together(found: FoundClassifier, maps: Sequence[FeatureMap]) -> Refusal | None:
    """Why several maps give no one map of derivatives."""
    if len(maps) > 1 and maps[0].frame.times is not None:
        return Refusal(NO_CLIPS, UnsupportedTaskError)
    if all(_share(maps[0], item) for item in maps[1:]):
        return None
    reason = f"{len(maps)} maps feed the scores that do not show the same part of the image the same way round"
    return Refusal(f"{found.instead or reason}; choose a layer with --target-layer")


def _without_rule(found: FoundClassifier, err: NoDerivativeError) -> Refusal:
    if found.instead:
        return Refusal(f"{found.instead}; {err}", TargetNotFoundError)
    return Refusal(str(err), type(err))


def _share(one: FeatureMap, other: FeatureMap) -> bool:
    """Whether two maps lie in the image alike, so that one can be resized to the other."""
    if one.grid == other.grid and one.frame.agrees(other.frame):
        return True
    return all(item.frame.is_upright and item.frame.within(item.grid) for item in (one, other))


def of_image(study: Study, found: FoundClassifier) -> FoundClassifier | None:
    """The same classifier with the image itself as the map to explain; None if it is no single map."""
    images = image_inputs(study.graph)
    feature = find_places(study.graph).map_of(images[0]) if len(images) == 1 else None
    return None if feature is None else replace(found, parts=replace(found.parts, target=feature, streams=()))
