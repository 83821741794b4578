"""Plans to mask the tokens of a classifier's last block, or those that its attention pool reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xai_insert.form import Form
from xai_insert.graph.cuts import region
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, Node, Value, fixed, volume
from xai_insert.locate.attention import Attention
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.transformer import Readout
from xai_insert.methods.kernels import Kernel, patch_weights, position_mask
from xai_insert.methods.of_classes import Choice, chosen_count
from xai_insert.methods.of_classifier import MaskedPlan, map_shape
from xai_insert.methods.recipro_cam import masked_runs
from xai_insert.methods.vit_recipro_cam import VitTarget, ZeroTokens, masked_features, masked_vit_runs, vit_recipro_cam
from xai_insert.options import Options
from xai_insert.tasks.base import Study
from xai_insert.tasks.cost import flops_of, mega, of_chosen, work_by_class
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.plan import Masking


@dataclass(frozen=True)
class TokensPlan(MaskedPlan):
    """A decision for tokens that are masked at the entry of a block or of a pool.

    Attributes:
        readout: the block or pool.
        kernel: what a masked sample keeps.
    """

    readout: Readout
    kernel: Kernel

    @property
    def attentions(self) -> Sequence[Attention]:
        return self.readout.attentions

    def masked(self) -> list[Value]:
        return masked_features(self.readout)

    def _vit(self) -> VitTarget:
        return VitTarget(self.readout, self.found.parts.target, self.found.parts.logits.value, self.kernel)

    def runs(self, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Any:
        if self.readout.is_pool:
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
        target, readout = self.found.parts.target, self.readout
        if readout.is_pool and len(target.grid) == 2:
            return Masking(self.masked(), lambda shape, place: position_mask(shape, target, place), self.read)
        weights = patch_weights(
            fixed(target.grid), readout.prefix, self.kernel, readout.tokens, times_last=target.frame.times_last
        )
        return Masking(self.masked(), lambda _, position: weights[position][:, None], self.read)


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
    return int(patches * rest) // (target.shape[0] or 1) + 4 * readout.rows * shares
