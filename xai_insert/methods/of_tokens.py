"""Plans to mask the tokens of a classifier's last block, or those that its attention pool reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from xai_insert.errors import ShapeUnknownError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.cuts import region
from xai_insert.graph.items import only
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, Node, Shape, Value, fixed, volume
from xai_insert.locate.attention import Attention
from xai_insert.locate.layout import FeatureMap, Side
from xai_insert.locate.places import find_places
from xai_insert.locate.transformer import Readout
from xai_insert.methods.kernels import Kernel, patch_weights, position_mask
from xai_insert.methods.of_classes import Choice, chosen_count
from xai_insert.methods.of_classifier import MaskedPlan, map_shape
from xai_insert.methods.recipro_cam import masked_runs
from xai_insert.methods.rehearsal import Noted
from xai_insert.methods.vit_recipro_cam import VitTarget, ZeroTokens, masked_features, masked_vit_runs, vit_recipro_cam
from xai_insert.options import Options
from xai_insert.tasks.base import Study
from xai_insert.tasks.cost import flops_of, mega, of_chosen, work_by_class
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.one_size import is_of_one_size
from xai_insert.tasks.plan import Branch, Masking, Plan


@dataclass(frozen=True)
class TokensPlan(MaskedPlan):
    """A decision for tokens that are masked at the entry of a block or of a pool.

    Attributes:
        readout: the block or pool.
        kernel: what a masked sample keeps.
        of_size: where the grid follows the image, the model at one size, by which the branch is written, and the grid
            that it has there.
    """

    readout: Readout
    kernel: Kernel
    of_size: tuple[Graph, FeatureMap] | None = field(default=None, kw_only=True)

    @property
    def attentions(self) -> Sequence[Attention]:
        return self.readout.attentions

    def masked(self) -> list[Value]:
        return masked_features(self.readout)

    def _vit(self) -> VitTarget:
        parts, sized = self.found.parts, self._sized
        behind = self.readout.tokens - sized.prefix - (sized.positions or 0)
        return VitTarget(self.readout, parts.target, parts.logits.value, self.kernel, behind)

    @property
    def _sized(self) -> FeatureMap:
        """The target where its grid is known."""
        return self.found.parts.target if self.of_size is None else self.of_size[1]

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        return super().splice(loaded, surgeon, graph if self.of_size is None else self.of_size[0], options)

    def of_any_size(self, graph: Graph, sized: Graph, other: tuple[Graph, Plan], options: Options) -> Plan:
        if is_of_one_size((sized, self.found), (other[0], other[1].found)):
            return replace(self, view=sized)
        own = self.found.parts.target
        target = open_target(graph, (sized, own), other)
        found = replace(self.found, parts=replace(self.found.parts, target=target))
        shape = (*self.map_shape[:2], *target.grid)
        plan = replace(self, found=found, map_shape=shape, mflops=None, by_class=0.0, of_size=(sized, own))
        if not plan.is_written_as(other, target, options):
            raise ShapeUnknownError("numbers that follow the size of the image would be written into the branch")
        return plan

    def is_written_as(self, other: tuple[Graph, Plan], target: FeatureMap, options: Options) -> bool:
        """Whether the plan at another size writes the same; masked runs, whose nodes are copied as they are, do."""
        graph, plan = other
        if not isinstance(plan, TokensPlan) or self.of_size is None or plan.form is not self.form:
            return False
        parts = replace(plan.found.parts, target=target)
        found = replace(plan.found, parts=parts)
        twin = replace(plan, found=found, of_size=(graph, plan.found.parts.target))
        if [value.native for value in twin.masked()] != [value.native for value in self.masked()]:
            return False
        if self.form is Form.RUNS:
            return True
        notes = [Noted(), Noted()]
        for note, (view, item) in zip(notes, ((self.of_size[0], self), (graph, twin)), strict=True):
            item.rehearse(note, view, options)
        return notes[0].asked == notes[1].asked

    def runs(self, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Any:
        if self.readout.is_pool and self.of_size is None:
            parts = self.found.parts
            return masked_runs(surgeon, graph, parts.target, parts.logits.value, (), self.at_once(options))
        return masked_vit_runs(surgeon, graph, self._vit(), self.at_once(options))

    def closed(
        self,
        surgeon: Surgeon[Any],
        graph: Graph,
        options: Options,
        choice: Choice,
        zeros: Mapping[Attention, ZeroTokens],
    ) -> Any:
        del options
        return vit_recipro_cam(surgeon, graph, self._vit(), zeros, choice)

    def uses(self) -> frozenset[str]:
        # Of a pool patches are kept one by one, and it is the last.
        return super().uses() if self.readout.is_pool else super().uses() | {"block", "kernel"}

    def metadata(self, options: Options) -> dict[str, str]:
        entries = super().metadata(options)
        return entries if self.readout.is_pool else entries | {"kernel": self.kernel}

    def masking(self, options: Options) -> Masking | None:
        del options
        target, readout = self._sized, self.readout
        if readout.is_pool and len(target.grid) == 2:
            return Masking(self.masked(), lambda shape, place: position_mask(shape, target, place), self.read)
        weights = patch_weights(
            fixed(target.grid), readout.prefix, self.kernel, readout.tokens, times_last=target.frame.times_last
        )
        return Masking(self.masked(), lambda _, position: weights[position].reshape(-1, *readout.beside), self.read)


def tokens_plan(study: Study, found: FoundClassifier, method: str, readout: Readout, kernel: Kernel) -> MaskedPlan:
    """The plan to mask tokens; the rest of the block runs for one row per patch, beside the masked attentions."""
    target, logits = found.parts.target, found.parts.logits
    results = [attention.result for attention in readout.attentions]
    head = region(study.graph, results, [logits.value])
    last = 0.0 if found.reading else work_by_class(head, logits, target.positions)
    flops = _flops(head, target, readout)
    work = of_chosen(mega(flops), last, logits, chosen_count(study.options, logits))
    reason = "attention pool" if readout.is_pool else "class token"
    shape = map_shape(study, found)
    return TokensPlan(found, method, Form.CLOSED, reason, shape, work, readout, kernel, by_class=last).checked(study)


def _flops(head: Sequence[Node], target: FeatureMap, readout: Readout) -> int:
    """Multiplications for an image: the attentions of every mask, and the rest of the model for each."""
    patches, tokens = target.positions or 0, readout.tokens
    shares = sum(patches * tokens * (volume(fixed(item.value.sizes[1:])) or 0) // tokens for item in readout.attentions)
    rows = 1 if readout.is_pool else readout.rows / tokens  # of those that operations on all tokens compute
    rest = sum(flops_of(node, 1) * (rows if tokens in (node.output.shape or ()) else 1) for node in head)
    return int(patches * rest) // (target.batch or 1) + 4 * readout.rows * shares


def open_target(graph: Graph, own: tuple[Graph, FeatureMap], other: tuple[Graph, Plan]) -> FeatureMap:
    """The target of a model with open sides, which has it at two sizes.

    Raises:
        ShapeUnknownError: it is not the same at both, or its sides are nowhere to be read.
    """
    target, twin = own[1], only(other[1].found.placed())
    sides = find_places(own[0]).sides_of(target.value)
    others = None if twin is None else find_places(other[0]).sides_of(twin.value)
    if twin is None or not sides or not others or not _are_alike(target, sides, twin, others):
        raise ShapeUnknownError(f"{target.value.describe()} has no grid whose sides are read alike at two sizes")
    if target.value.native != twin.value.native or target.prefix != twin.prefix:
        raise ShapeUnknownError(f"{target.value.describe()} is another value, or of other tokens, at another size")
    by_native = {value.native: value for value in graph.values}
    for one, two in ((target.value, twin.value), *((a.value, b.value) for a, b in zip(sides, others, strict=True))):
        by_native[one.native].shape = _common(one.sizes, two.sizes)
    read = tuple(replace(side, value=by_native[side.value.native]) for side in sides)
    grid, frame = _common(target.grid, twin.grid), replace(target.frame, rectangle=None)
    return replace(target, value=by_native[target.value.native], grid=grid, frame=frame, sides=read)


def _are_alike(one: FeatureMap, sides: Sequence[Side], two: FeatureMap, others: Sequence[Side]) -> bool:
    """Whether two views of one model read the sides of a grid in one place, which lies in the image alike."""
    read = [[(side.value.native, side.axis) for side in found] for found in (sides, others)]
    return read[0] == read[1] and one.frame.agrees(two.frame)


def _common(first: Shape, second: Shape) -> Shape:
    return tuple(a if a == b else None for a, b in zip(first, second, strict=True))
