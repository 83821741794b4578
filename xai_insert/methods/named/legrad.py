"""LeGrad: how the scores read from each block grow with its attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from xai_insert.errors import NoDerivativeError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.cuts import region
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, Node, Value
from xai_insert.locate.blocks import Block, last_blocks
from xai_insert.locate.classifier import Wanted
from xai_insert.locate.inputs import image_inputs
from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.gradients.legrad import AttentionMap, defined, legrad
from xai_insert.methods.of_classes import Choice, choose_classes, chosen_count
from xai_insert.methods.of_classifier import (
    NO_BOXES,
    SALIENCY_CLASSES,
    ClassifierPlan,
)
from xai_insert.methods.rehearsal import STAND_IN, Rehearsal
from xai_insert.methods.top_classes import ClassChoice, best_classes
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.cost import flops_of, mega
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.plan import Branch, Derivative, Output, Plan

_BLOCKS = 4


@dataclass(frozen=True)
class LegradPlan(ClassifierPlan):
    """A decision for maps of the best classes, summed over blocks.

    Attributes:
        blocks: those, the last last.
    """

    blocks: tuple[Block, ...]

    @property
    def keeps_batch(self) -> bool:
        return True

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        logits = self.found.parts.logits
        choice = choose_classes(surgeon, logits, options) or best_classes(surgeon, logits.value, logits.classes, 1)
        made = self._made(surgeon, graph, choice)
        raw = made[0].raw
        for item in made[1:]:
            raw = surgeon.ops.add(raw, item.raw)
        output = Output(choice.indices, "int64", self.map_shape[:2])
        derivatives = [
            Derivative(item.attention.result, item.raw, item.gradient, defined(item.block), item.scores, [item.values])
            for item in made
        ]
        scores = surgeon.handle(logits.value)
        return Branch(self, raw, scores, choice.indices, {SALIENCY_CLASSES: output}, derivatives=derivatives)

    def _made(self, surgeon: Surgeon[Any], graph: Graph, choice: ClassChoice[Any]) -> list[AttentionMap[Any]]:
        return legrad(surgeon, graph, self.blocks, self.found.parts.logits.value, choice)

    def add(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options, choice: Choice) -> Any:
        raise NotImplementedError  # `splice` does it

    def rehearse(self, graph: Graph, count: int) -> None:
        """Walk back without writing anything.

        Raises:
            NoDerivativeError: an operator has no rule.
        """
        self._made(Rehearsal(), graph, ClassChoice(STAND_IN, count))

    def uses(self) -> frozenset[str]:
        return (super().uses() - {"target_layer"}) | {"top_k", "classes", "block"}

    def metadata(self, options: Options) -> dict[str, str]:
        entries = super().metadata(options) | {"blocks": str(len(self.blocks))}
        return entries if options.classes is not None else {"top_k": "1"} | entries


class LeGrad(Method):
    """Of transformers whose last blocks attend all tokens of the image."""

    summary = "derivative by the attention of the last blocks, of the best classes"
    paper = "Bousselham et al., LeGrad: An explainability method for vision transformers via feature formation, 2024"
    page = "legrad.md"
    tasks = frozenset({"classification"})
    options = frozenset({"output", "top_k", "classes", "block"})
    excludes = NO_BOXES
    reads = Wanted.DERIVATIVE

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not isinstance(found, FoundClassifier):
            return Refusal("LeGrad is for classifiers")
        graph, logits, options = study.graph, found.parts.logits, study.options
        blocks = last_blocks(graph, image_inputs(graph), logits.value, study.places)
        if not blocks:
            return Refusal(
                "LeGrad wants a transformer that ends with blocks in which all tokens of the image attend one "
                "another and that give such tokens on; found none"
            )
        if options.block is not None and options.block > len(blocks):
            return Refusal(
                f"--block {options.block} wants as many blocks at the end whose tokens the head could read; found "
                f"{len(blocks)}"
            )
        chosen = tuple(blocks[-(options.block or _BLOCKS) :])
        feature = chosen[-1].tokens
        count = chosen_count(options, logits) or 1
        shape = (feature.batch, count, *feature.grid)
        flops = sum(flops_of(node, feature.batch or 1) for node in _run_again(graph, chosen, logits.value)) * count
        reason = f"{len(chosen)} of {len(blocks)} blocks at the end"
        parts = replace(found.parts, target=feature, streams=())
        plan = LegradPlan(replace(found, parts=parts), "legrad", Form.DERIVATIVE, reason, shape, mega(flops), chosen)
        try:
            plan.rehearse(graph, count)
        except NoDerivativeError as err:
            return Refusal(str(err), NoDerivativeError)
        return plan


def _run_again(graph: Graph, blocks: Sequence[Block], logits: Value) -> list[Node]:
    """What is computed again for each class, as often as it is."""
    between = [region(graph, [item.result for item in block.attentions], [block.output]) for block in blocks]
    head = region(graph, [blocks[-1].output], [logits])
    return [node for part in (*between, *[head] * (2 * len(blocks) - 1)) for node in part]


METHOD = LeGrad()
