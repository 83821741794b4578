"""Classifiers: Recipro-CAM, ViT Recipro-CAM, Activation Map."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import CannotFreeBatchError, TargetNotFoundError
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.cuts import region
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, Shape, Value, fixed, format_grid, volume
from xai_insert.locate.classifier import Classifier, locate_classifier
from xai_insert.locate.layout import FeatureMap, Frame
from xai_insert.locate.transformer import Attention, Readout
from xai_insert.methods.activation_map import activation_map
from xai_insert.methods.recipro_cam import masked_runs, recipro_cam
from xai_insert.methods.reference import unrounded
from xai_insert.methods.rehearsal import STAND_IN, Rehearsal
from xai_insert.methods.top_classes import ClassChoice, best_classes, choose_maps
from xai_insert.methods.vit_recipro_cam import (
    Kernel,
    VitTarget,
    ZeroTokens,
    masked_features,
    masked_vit_runs,
    patch_weights,
    vit_recipro_cam,
)
from xai_insert.options import Options
from xai_insert.probe.tokens import probe_zero_tokens
from xai_insert.tasks.cost import flops_of, mega
from xai_insert.tasks.plan import Branch, Masking, Output, Plan

logger = logging.getLogger(__name__)

SALIENCY_CLASSES = "saliency_classes"
_FLOATS = ("float16", "float32", "float64", "bfloat16")


@dataclass(frozen=True)
class ClassificationPlan(Plan):
    """A decision for a classifier.

    Attributes:
        found: what was located in the model.
    """

    task = "classification"
    found: Classifier

    @property
    def keep_float32(self) -> bool:
        # A map that comes from attention is a small difference on a large common part; that of a pool is not.
        return self.method != "activation-map" and (self.found.readout is not None or self.form == "masked runs")

    @property
    def may_follow(self) -> bool:
        is_grid = self.found.readout is None and len(self.found.target.grid_axes) == 2
        return is_grid and self.form != "masked runs"

    @property
    def frame(self) -> Frame:
        return self.found.target.frame

    def placed(self) -> Sequence[FeatureMap]:
        return [self.found.target, *self.found.streams]

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        choice = None
        if options.top_k is not None:
            choice = best_classes(surgeon, self.found.logits.value, self.found.logits.classes, options.top_k)
        raw = self._add(loaded, surgeon, graph, options, choice)
        masking = self.masking(options)
        sources = [] if masking is None else masking.features
        scores = unrounded(surgeon, graph, sources, [self.found.logits.value])[0]
        if choice is None:
            return Branch(self, raw, scores)
        output = Output(choice.indices, "int64", self.map_shape[:2])
        return Branch(self, raw, scores, choice.indices, {SALIENCY_CLASSES: output})

    def _add(
        self,
        loaded: LoadedModel,
        surgeon: Surgeon[Any],
        graph: Graph,
        options: Options,
        choice: ClassChoice[Any] | None,
    ) -> Any:
        found = self.found
        if self.method == "activation-map":
            return activation_map(surgeon, found.target)
        if self.form == "closed form":
            readout = found.readout
            zeros = {} if readout is None else probe_zero_tokens(loaded, surgeon, graph, readout)
            return _closed_form(surgeon, graph, found, options, zeros, choice)
        if found.readout is not None:
            maps = masked_vit_runs(surgeon, graph, _vit(found, found.readout, options))
        else:
            maps = masked_runs(surgeon, graph, found.target, found.logits.value, found.streams)
        if choice is not None:
            maps = choose_maps(surgeon, maps, choice, (None, found.logits.classes, *found.target.grid))
        return maps

    def uses(self) -> frozenset[str]:
        used = {"output", "target_layer", "top_k"}
        readout = self.found.readout
        if readout is not None and not readout.is_pool:  # of a pool patches are kept one by one, and it is the last
            used |= {"block"} if self.method == "activation-map" else {"block", "kernel"}
        return frozenset(used)

    def describe(self) -> dict[str, Any]:
        logits, target = self.found.logits, self.found.target
        return {
            "logits": {
                "output": logits.output_name,
                "name": logits.value.name,
                "shape": logits.value.shape,
                "classes": logits.classes,
            },
            "target": target.describe()
            | {"masked": [value.name for value in self._masked()], "rectangle": target.frame.rectangle},
        }

    def metadata(self, options: Options) -> dict[str, str]:
        entries = {
            "target": self.found.target.value.name,
            "grid": format_grid(self.found.target.grid),
            "classes": str(self.found.logits.classes),
        }
        rectangle = self.frame.rectangle
        if rectangle is not None and not self.frame.within(self.found.target.grid):
            entries["rectangle"] = " ".join(f"{edge:.6g}" for edge in rectangle)
        if self.method == "vit-recipro-cam":
            entries["kernel"] = options.kernel
        if options.top_k is not None:
            entries["top_k"] = str(options.top_k)
        return entries

    def masking(self, options: Options) -> Masking | None:
        found = self.found
        if self.method == "activation-map":
            return None
        if found.readout is not None:
            height, width = fixed(found.target.grid)
            kernel = _kernel(found.readout, options)
            weights = patch_weights((height, width), found.readout.prefix, kernel, found.readout.tokens)
            return Masking(self._masked(), lambda _, position: weights[position][:, None])
        target = found.target
        return Masking(self._masked(), lambda shape, position: position_mask(shape, target, position))

    def _masked(self) -> list[Value]:
        if self.method == "activation-map":
            return []
        readout = self.found.readout
        if readout is not None:
            return masked_features(readout)
        return [self.found.target.value, *(item.value for item in self.found.streams)]

    def pooled(self) -> Value | None:
        return self.found.pooled

    def without_closed_form(self, graph: Graph, reason: str) -> Plan | None:
        return masked_plan(graph, self.found, self.map_shape, reason) if self.form == "closed form" else None


def plan_classification(graph: Graph, options: Options) -> ClassificationPlan:
    """Locate a classifier's parts and choose method and form.

    Raises:
        XaiInsertError: one of its children, see `locate_classifier`.
    """
    found = locate_classifier(graph, options)
    target = found.target
    for value in (target.value, found.logits.value):
        if value.dtype not in _FLOATS:
            raise TargetNotFoundError(
                f"{value.describe()} holds {value.dtype}, wanted floating-point numbers; is the file whole?"
            )
    batch, classes = target.shape[0], found.logits.classes
    if options.method == "activation-map":
        flops = volume([2 if size is None else size for size in target.shape[1:]])
        shape: Shape = (batch, *target.grid)
        return ClassificationPlan(
            "activation-map", "channel mean", "one map for all classes", shape, mega(flops), found
        )
    shape = (batch, classes if options.top_k is None else min(classes, options.top_k), *target.grid)
    obstacle = found.obstacle or _batching_obstacle(graph, found, options)
    if obstacle is not None:
        return masked_plan(graph, found, shape, obstacle)
    if found.readout is not None:
        flops = _token_flops(graph, found, found.readout)
        reason = "attention pool" if found.readout.is_pool else "class token"
        return ClassificationPlan(_method(found), "closed form", reason, shape, mega(flops), found)
    head = region(graph, [end.result for end in found.ends], [found.logits.value])
    per_row = sum(flops_of(node, 1) for node in head)
    weighted = sum(flops_of(end.result.producer, 1) for end in found.ends if end.result.producer is not None)
    cells = target.positions
    flops = None if cells is None else cells * per_row + weighted + 2 * (volume(target.shape[1:]) or 0)
    return ClassificationPlan("recipro-cam", "closed form", found.collapse, shape, mega(flops), found)


def masked_plan(graph: Graph, found: Classifier, shape: Shape, reason: str) -> ClassificationPlan:
    """The plan that runs the rest of the model once per position."""
    target = found.target
    masked = [target.value, *(item.value for item in found.streams)]
    rest = region(graph, masked, [found.logits.value])
    batch = target.shape[0] or 1
    flops = None if target.positions is None else target.positions * sum(flops_of(node, batch) for node in rest)
    return ClassificationPlan(_method(found), "masked runs", reason, shape, mega(flops), found)


def _method(found: Classifier) -> str:
    return "recipro-cam" if found.readout is None or found.readout.is_pool else "vit-recipro-cam"


def _kernel(readout: Readout, options: Options) -> Kernel:
    return "point" if readout.is_pool else options.kernel


def position_mask(shape: Sequence[int], target: FeatureMap, position: int) -> npt.NDArray[np.float32]:
    """A mask that keeps one position (row-major in the grid) and other tokens, of sizes 1 on the other axes."""
    sizes = [shape[axis] if axis in target.grid_axes else 1 for axis in range(len(shape))]
    mask = np.zeros(int(np.prod(sizes)), np.float32)
    if len(target.grid_axes) == 1 and target.positions is not None:
        mask[: target.prefix] = mask[target.prefix + target.positions :] = 1.0
    mask[target.prefix + position] = 1.0
    return mask.reshape(sizes)


def _vit(found: Classifier, readout: Readout, options: Options) -> VitTarget:
    return VitTarget(readout, found.target, found.logits.value, _kernel(readout, options))


def _closed_form(
    surgeon: Surgeon[Any],
    graph: Graph,
    found: Classifier,
    options: Options,
    zeros: Mapping[Attention, ZeroTokens],
    choice: ClassChoice[Any] | None,
) -> Any:
    if found.readout is not None:
        return vit_recipro_cam(surgeon, graph, _vit(found, found.readout, options), zeros, choice)
    return recipro_cam(surgeon, graph, found.target, found.ends, found.logits.value, choice)


def _any_token(value: Value) -> npt.NDArray[Any]:
    return np.zeros([1] * len(value.sizes), np.float32)


def _batching_obstacle(graph: Graph, found: Classifier, options: Options) -> str | None:
    """Why the head cannot run on all positions at once; None if it can."""
    attentions = () if found.readout is None else found.readout.attentions
    # Any tokens will do: what is told is which axes are mixed.
    zeros = {item: ZeroTokens(_any_token(item.key), _any_token(item.value), is_affine=True) for item in attentions}
    count = None if options.top_k is None else min(options.top_k, found.logits.classes)
    choice = None if count is None else ClassChoice(STAND_IN, count)
    try:
        _closed_form(Rehearsal(), graph, found, options, zeros, choice)
    except CannotFreeBatchError as err:
        logger.info("no closed form: %s", err)
        return str(err)
    return None


def _token_flops(graph: Graph, found: Classifier, readout: Readout) -> int:
    """The rest of the block for one row per patch, and scores and sums of the masked attentions."""
    results = [attention.result for attention in readout.attentions]
    patches, tokens = found.target.positions or 0, readout.tokens
    rest = sum(flops_of(node, 1) for node in region(graph, results, [found.logits.value]))
    batch = found.target.shape[0] or 1
    shares = sum(patches * tokens * (volume(fixed(item.value.sizes[1:])) or 0) // tokens for item in readout.attentions)
    return patches * readout.rows * rest // tokens // batch + 4 * readout.rows * shares
