"""What the methods of classifiers share: plans whose definition masks a map or the tokens of a block."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import CannotFreeBatchError, ShapeUnknownError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.cuts import region
from xai_insert.graph.ops import Size, Surgeon
from xai_insert.graph.view import Graph, Shape, Value, fixed, format_grid, volume
from xai_insert.layouts.record import Layout
from xai_insert.locate.attention import Attention
from xai_insert.locate.layout import FeatureMap, Side
from xai_insert.locate.stages import is_early
from xai_insert.methods.kernels import position_mask
from xai_insert.methods.masked_runs import many_at_once
from xai_insert.methods.of_classes import Choice, choose_classes, chosen_count
from xai_insert.methods.recipro_cam import masked_runs, recipro_cam, require_few_runs
from xai_insert.methods.reference import unrounded
from xai_insert.methods.rehearsal import STAND_IN, Rehearsal
from xai_insert.methods.shaping import grid_sizes
from xai_insert.methods.top_classes import ClassChoice, best_maps, choose_maps
from xai_insert.methods.vit_recipro_cam import ZeroTokens
from xai_insert.options import Options
from xai_insert.probe.tokens import probe_zero_tokens
from xai_insert.tasks.base import Study
from xai_insert.tasks.cost import flops_of, mega, of_chosen, work_by_class
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.one_size import is_of_one_size
from xai_insert.tasks.plan import Branch, Masking, Output, Plan, unmasked

logger = logging.getLogger(__name__)

SALIENCY_CLASSES = "saliency_classes"
SALIENCY_SCORES = "saliency_scores"
NO_BOXES = {"per_box": "--per-box is for detectors; leave out what is for other models, or --per-box"}
OF_VECTORS = frozenset({"num_classes", "reference", "class_embeddings"})
"""Options that say what a model's vector is."""
NO_CLIPS = "this method is not for clips, or not for frames in the batch; leave --method to the tool"


@dataclass(frozen=True)
class ClassifierPlan(Plan):
    """A decision for a classifier: a map for each class, or one for all (`map_shape` of three sizes)."""

    found: FoundClassifier

    @property
    def may_follow(self) -> bool:
        if self.found.parts.readout is not None:
            return False  # the number of tokens, and what their neighbours are, is written into the branch
        return all(item.is_whole for item in self.found.placed())

    def following(self, closed: Plan, graph: Graph, open_graph: Graph, sides: tuple[Side, ...]) -> Plan:
        # Sizes read off the feature map itself join the model's own layers to the branch, of which OpenVINO computes
        # the end in float32 although the rest runs in bf16: where sizes stay open, the predictions move.
        parts = replace(self.found.parts, target=replace(self.found.parts.target, sides=sides))
        return replace(self, found=replace(self.found, parts=parts))

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        logits = self.found.parts.logits
        choice = choose_classes(surgeon, logits, options) if self.found.reading is None else None
        raw = self.add(loaded, surgeon, graph, options, choice)
        masking = self.masking(options)
        sources = [] if masking is None else masking.features
        scores = unrounded(surgeon, graph, sources, [logits.value])[0]
        if choice is None:
            return Branch(self, raw, scores)
        output = Output(choice.indices, "int64", self.map_shape[:2])
        return Branch(self, raw, scores, choice.indices, {SALIENCY_CLASSES: output})

    @abstractmethod
    def add(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options, choice: Choice) -> Any:
        """Add the raw map, of `map_shape`; of the chosen classes only if there is a choice."""

    def uses(self) -> frozenset[str]:
        return frozenset({"output", "target_layer"}) | self.found.decided

    def metadata(self, options: Options) -> dict[str, str]:
        target = self.found.parts.target
        entries = {
            "target": target.value.name,
            "grid": format_grid(target.grid),
            "classes": str(self.found.maps or ""),
        }
        if self.found.reading is not None:
            entries["reference"] = self.found.reading.name
        entries |= Layout(frames=self.found.frame.times, score_at=self.found.score_at).written()
        if options.top_k is not None:
            entries["top_k"] = str(options.top_k)
        if options.classes is not None:
            entries["chosen_classes"] = ",".join(map(str, options.classes))
        return entries


@dataclass(frozen=True)
class MaskedPlan(ClassifierPlan):
    """A decision for a map that is the class scores under masks.

    Attributes:
        one_by_one: whether masks are run one by one because several at once turned out not to be the same.
        by_class: millions of operations for each class, of those that are computed for the chosen classes alone.
        view: the model at one size of the image, of which everything that was found is, where the model makes all
            images of one size; None where it is of the model itself.
    """

    one_by_one: bool = field(default=False, kw_only=True)
    by_class: float = field(default=0.0, kw_only=True)
    view: Graph | None = field(default=None, kw_only=True)

    def at_once(self, options: Options) -> int | None:
        """How many masks are run at once, at most; None for as many as fit."""
        return 1 if self.one_by_one else options.mask_batch

    @abstractmethod
    def masked(self) -> list[Value]:
        """The values that the definition masks."""

    @abstractmethod
    def runs(self, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Any:
        """Add the maps of all classes by the definition: the rest of the model once per position."""

    @abstractmethod
    def closed(
        self,
        surgeon: Surgeon[Any],
        graph: Graph,
        options: Options,
        choice: Choice,
        zeros: Mapping[Attention, ZeroTokens],
    ) -> Any:
        """Add the maps in closed form; `zeros` are the zero tokens of each attention that is masked."""

    def uses(self) -> frozenset[str]:
        used = super().uses() | {"form"} | ({"mask_batch"} if self.form is Form.RUNS else set())
        reading = self.found.reading
        return used | ({"top_k", "classes"} if reading is None else {"top_k"} if reading.is_of_many else set())

    def of_any_size(self, graph: Graph, sized: Graph, other: tuple[Graph, Plan], options: Options) -> Plan:
        if not is_of_one_size((sized, self.found), (other[0], other[1].found)):
            return super().of_any_size(graph, sized, other, options)
        return replace(self, view=sized)

    @property
    def may_follow(self) -> bool:
        return super().may_follow and (self.found.reading is None or self.found.reading.follows)

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        branch, reading = super().splice(loaded, surgeon, self.view or graph, options), self.found.reading
        if reading is None:
            return branch
        against, target = reading.against(surgeon, branch.scores), self.found.parts.target
        raw = reading.products(surgeon, branch.raw, against, _sides(surgeon, target))
        scores = reading.scores(surgeon, branch.scores, against)
        new = not reading.has_scores  # else they are an output already
        outputs = {SALIENCY_SCORES: Output(scores, "float32", (self.map_shape[0], reading.count))} if new else {}
        branch = replace(branch, scores=reading.checked(branch.scores, scores), outputs=outputs)
        if options.top_k is None or not reading.is_of_many:
            return replace(branch, raw=raw)
        raw, best = best_maps(surgeon, raw, scores, options.top_k, (None, reading.count, *target.grid))
        outputs[SALIENCY_CLASSES] = Output(best, "int64", self.map_shape[:2])
        return replace(branch, raw=raw, classes=best)

    @property
    def attentions(self) -> Sequence[Attention]:
        """The attentions of which the closed form needs the zero tokens."""
        return ()

    @property
    def read(self) -> Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[Any]]:
        """Class scores of what the model gives under a mask and without one."""
        return unmasked if self.found.reading is None else self.found.reading.expected

    @property
    def keep_float32(self) -> bool:
        # A map that comes from attention is a small difference on a large common part; that of a pool is not.
        return bool(self.attentions) or self.form is Form.RUNS or self.found.reading is not None

    def add(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options, choice: Choice) -> Any:
        if self.form is Form.CLOSED:
            zeros: Mapping[Attention, ZeroTokens] = {}
            if (readout := self.found.parts.readout) is not None:
                projected = unrounded(surgeon, graph, readout.entries, readout.projected)
                zeros = probe_zero_tokens(loaded, graph, readout, projected)
            return self.closed(surgeon, graph, options, choice, zeros)
        maps = self.runs(surgeon, graph, options)
        if choice is None:
            return maps
        return choose_maps(
            surgeon, maps, choice, (None, self.found.parts.logits.classes, *self.found.parts.target.grid)
        )

    def work_for(self, count: int) -> float | None:
        logits = self.found.parts.logits
        chosen = self.found.reading is not None or self.map_shape[1] != logits.classes
        return None if chosen else of_chosen(self.mflops, self.by_class, logits, count)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        masked = [value.name for value in self.masked()]
        return described | {"target": described["target"] | {"masked": masked}}

    def without_closed_form(self, graph: Graph, reason: str) -> MaskedPlan | None:
        if self.form is Form.CLOSED:
            return self.by_runs(graph, reason)
        return None if self.one_by_one else replace(self, one_by_one=True)

    def by_runs(self, graph: Graph, reason: str) -> MaskedPlan:
        """The plan that runs the rest of the model once per position."""
        parts = self.found.parts
        target = parts.target
        rest = region(self.view or graph, [target.value, *(item.value for item in parts.streams)], [parts.logits.value])
        batch = target.batch or 1
        flops = None if target.positions is None else target.positions * sum(flops_of(node, batch) for node in rest)
        return replace(self, form=Form.RUNS, reason=reason, mflops=mega(flops), by_class=0.0)

    def checked(self, study: Study) -> MaskedPlan:
        """The plan itself if its closed form can be written, else that by masked runs.

        Raises:
            CannotFreeBatchError: it cannot, and nothing else is wanted.
        """
        graph, parts = study.graph, self.found.parts
        if study.options.form == "masked":
            return self.by_runs(graph, "as asked for")
        obstacle = self._why_not_written(study) if parts.obstacle is None else parts.obstacle
        if obstacle is None:
            return self
        if study.options.form == "closed":
            raise no_closed_form(obstacle)
        if is_early(graph, parts.target.value, parts.logits.value):
            obstacle += "; what is explained is the first layer"
        return self.by_runs(graph, obstacle)

    def _why_not_written(self, study: Study) -> str | None:
        """What keeps the closed form from being written; None if a rehearsal writes it."""
        try:
            self.rehearse(Rehearsal(), study.graph, study.options)
        except CannotFreeBatchError as err:
            logger.info("no closed form: %s", err)
            return str(err)
        return None

    def rehearse(self, surgeon: Rehearsal, graph: Graph, options: Options) -> None:
        """Write the closed form where nothing is written."""
        # Any tokens will do: what is told is which axes are mixed.
        zeros = {
            item: ZeroTokens(_any_token(item.key), _any_token(item.value), is_affine=True) for item in self.attentions
        }
        count = chosen_count(options, self.found.parts.logits) if self.found.reading is None else None
        choice = None if count is None else ClassChoice(STAND_IN, count)
        self.closed(surgeon, graph, options, choice, zeros)


@dataclass(frozen=True)
class MapPlan(MaskedPlan):
    """A decision for a map whose positions are masked one by one.

    Attributes:
        of_size: for one that follows the image, the model of one size, and the plan for it.
    """

    of_size: tuple[Graph, MapPlan] | None = field(default=None, kw_only=True)

    def following(self, closed: Plan, graph: Graph, open_graph: Graph, sides: tuple[Side, ...]) -> Plan:
        plan = super().following(closed, graph, open_graph, sides)
        if self.form is Form.RUNS and isinstance(plan, MapPlan) and isinstance(closed, MapPlan):
            return replace(plan, of_size=(graph, closed))
        return plan

    @property
    def wants_sizes(self) -> bool:
        target = self.found.parts.target  # tokens, of which each is to be masked
        return self.form is Form.RUNS and None in target.grid and len(target.grid_axes) < len(target.grid)

    def masked(self) -> list[Value]:
        return [feature.value for feature in self.found.placed()]

    def runs(self, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Any:
        parts, at_once = self.found.parts, self.at_once(options)
        if self.of_size is not None:
            require_few_runs(self.of_size[1].found.parts.target)
            at_once = self.of_size[1].together(self.of_size[0], at_once)
            if self.together(graph, at_once) < at_once:
                raise ShapeUnknownError("masks would run one by one, which for this size run several at once")
        return masked_runs(surgeon, graph, parts.target, parts.logits.value, parts.streams, at_once)

    def together(self, graph: Graph, at_once: int | None) -> int:
        """How many masks are run at once."""
        parts = self.found.parts
        nodes = region(graph, self.masked(), [parts.logits.value])
        return many_at_once(nodes, self.masked(), parts.logits.value, parts.target.positions, at_once)

    def closed(
        self,
        surgeon: Surgeon[Any],
        graph: Graph,
        options: Options,
        choice: Choice,
        zeros: Mapping[Attention, ZeroTokens],
    ) -> Any:
        del options, zeros
        parts = self.found.parts
        return recipro_cam(surgeon, graph, parts.target, parts.ends, parts.logits.value, choice)

    def masking(self, options: Options) -> Masking | None:
        del options
        target = self.found.parts.target
        return Masking(self.masked(), lambda shape, position: position_mask(shape, target, position), self.read)


def no_closed_form(obstacle: str) -> CannotFreeBatchError:
    """The error for a closed form that is asked for and cannot be had."""
    return CannotFreeBatchError(f"there is no closed form: {obstacle}; --form masked runs the definition")


def _sides(surgeon: Surgeon[Any], target: FeatureMap) -> Sequence[Size]:
    """The sides of a grid, read while the model runs where they follow the image."""
    is_open = None in target.grid
    return grid_sizes(surgeon, surgeon.handle(target.value), target) if is_open else fixed(target.grid)


def map_shape(study: Study, found: FoundClassifier) -> Shape:
    """`[B, K, h, w]`, of the chosen classes if only those are wanted."""
    target, logits = found.parts.target, found.parts.logits
    if found.reading is None:
        return (target.batch, chosen_count(study.options, logits) or logits.classes, *target.grid)
    count, most = found.maps, study.options.top_k
    return (target.batch, count if most is None or count is None else min(count, most), *target.grid)


def map_plan(study: Study, found: FoundClassifier, method: str) -> MaskedPlan:
    """The plan to mask the positions of a map."""
    parts = found.parts
    head = region(study.graph, [end.result for end in parts.ends], [parts.logits.value])
    per_row = sum(flops_of(node, 1) for node in head)
    weighted = sum(flops_of(end.result.producer, 1) for end in parts.ends if end.result.producer is not None)
    cells, batch = parts.target.positions, parts.target.batch or 1
    flops = None if cells is None else (cells * per_row + weighted) // batch + 2 * (volume(parts.target.shape[1:]) or 0)
    last = 0.0 if found.reading else work_by_class(head, parts.logits, cells)
    work = of_chosen(mega(flops), last, parts.logits, chosen_count(study.options, parts.logits))
    return MapPlan(found, method, Form.CLOSED, parts.collapse, map_shape(study, found), work, by_class=last).checked(
        study
    )


def _any_token(value: Value) -> npt.NDArray[Any]:
    return np.zeros([1] * len(value.sizes), np.float32)
