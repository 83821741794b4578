"""Seg-Recipro-CAM: for a class's region in a segmenter's output, the places of the feature that speak for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import UnsupportedTaskError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.operators import Window
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.pattern import layer_of
from xai_insert.graph.view import Graph, Value, fixed, format_grid
from xai_insert.layouts.record import Layout
from xai_insert.locate.layout import FeatureMap, Rectangle
from xai_insert.locate.segmenter import Segmenter
from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.shaping import scalar
from xai_insert.methods.tensor import Tensor
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.cost import mega
from xai_insert.tasks.known.segmentation import FoundSegmenter
from xai_insert.tasks.plan import Branch, Plan

_NAME = "seg-recipro-cam"
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SegReciproCamPlan(Plan):
    """A decision for a segmenter whose head is one linear layer, and a resize maybe.

    With `M_k` the pixels that class k wins, `z_k(f m_p)` its scores with the feature f kept at place p alone:
    `S[k, p] = sum over M_k of z_k(f m_p) / |M_k|`, zero where `M_k` is empty. A linear head gives place p the score
    `w_k . f_p + b_k`, and a resize R is linear with weights that sum to one, so that
    `S[k, p] = (z_k(p) - b_k) (R^T M_k)_p / |M_k| + b_k`.

    Attributes:
        whole: the scores behind the resize.
    """

    found: FoundSegmenter
    whole: FeatureMap

    @property
    def keep_float32(self) -> bool:
        return True  # counts of pixels need more than the eight bits of bf16

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        del graph, options
        op, parts = surgeon.ops, self.found.parts
        resizes = self.whole.value is not parts.scores.value
        sides = _resize_of(loaded, parts.scores, self.whole) if resizes else None
        scores = _first_channels(surgeon, parts.scores)
        pixels = _first_channels(surgeon, self.whole)
        wins = op.equal(pixels, op.reduce(pixels, "max", (1,)))
        count = op.reduce(wins, "sum", (2, 3))
        if sides is not None:
            down, across = sides
            wins = op.matmul(op.matmul(op.constant(down.T.copy()), wins), op.constant(across))
        weight = op.div(wins, op.nonzero_or(count, scalar(op, 1.0)))
        if parts.bias is None:
            return Branch(self, op.mul(scores, weight))
        bias = op.reshape(surgeon.handle(parts.bias), [1, parts.classes, 1, 1])
        present = op.greater(count, scalar(op, 0.0))
        s, b, w = Tensor(op, scores), Tensor(op, bias), Tensor(op, weight)
        return Branch(self, ((s - b) * w + b * Tensor(op, present)).handle)

    def rectangle(self) -> Rectangle | None:
        return None if self.found.is_laid_out else super().rectangle()

    def uses(self) -> frozenset[str]:
        return frozenset({"output"})

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        source = self.found.parts.source
        return described | {"target": described["target"] | {"masked": [] if source is None else [source.name]}}

    def metadata(self, options: Options) -> dict[str, str]:
        del options
        parts = self.found.parts
        return {
            "target": parts.scores.value.name if parts.source is None else parts.source.name,
            "grid": format_grid(parts.scores.grid),
            **Layout(
                classes=parts.classes,
                classes_at=parts.output,
                class_axis=parts.class_axis,
                first_label=parts.first_label or None,
            ).written("class_axis"),
        }


def _first_channels(surgeon: Surgeon[Any], feature: FeatureMap) -> Any:
    """A map as `[B, K, h, w]`."""
    handle, perm = surgeon.handle(feature.value), (0, feature.channel_axis, *feature.grid_axes)
    return handle if perm == (0, 1, 2, 3) else surgeon.ops.transpose(handle, perm)


def _resize_of(loaded: LoadedModel, before: FeatureMap, after: FeatureMap) -> tuple[Matrix, Matrix]:
    """The resize along rows `[H, h]` and along columns `[W, w]`: what the model's own runtime makes of single lines."""
    runner = loaded.between([before.value], [after.value.native])
    name, dtype, _ = runner.inputs[0]
    shape = [1 if axis == 0 else size for axis, size in enumerate(fixed((1, *before.shape[1:])))]
    rest = {key: np.zeros([size or 1 for size in sizes], kind) for key, kind, sizes in runner.inputs[1:]}
    found = []
    for axis in (0, 1):
        columns = []
        for cell in range(shape[before.grid_axes[axis]]):
            line = np.zeros(shape, dtype)
            np.moveaxis(line, before.grid_axes[axis], 0)[cell] = 1
            made = runner.run({name: line, **rest})[0]
            along = after.grid_axes[axis]
            columns.append(np.moveaxis(made, along, 0).reshape(made.shape[along], -1)[:, 0])
        found.append(np.stack(columns, axis=1).astype(np.float32))
    return found[0], found[1]


def _is_pointwise(scores: Value) -> bool:
    """Whether the layer that gives the scores reads each place alone."""
    node = layer_of(scores)
    return node is not None and (not isinstance(node.kind, Window) or set(node.kind.kernel or ()) == {1})


class SegReciproCam(Method):
    """Of semantic segmenters whose head is one linear layer."""

    summary = "why a class's region: its mean score with one place of the feature kept"
    paper = "after Byun and Lee, Recipro-CAM, 2022, for the mean score of a region"
    page = "seg-recipro-cam.md"
    tasks = frozenset({"segmentation"})
    options = frozenset({"output"})
    lacking = "no output gives class scores for every place of the image; leave --method to the tool"

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not isinstance(found, FoundSegmenter):
            return Refusal(self.lacking)
        parts = found.parts
        whole = parts.whole
        if whole is None or parts.source is None or not _is_pointwise(parts.scores.value) or parts.classes < 2:
            return Refusal(
                f"Seg-Recipro-CAM needs a head of one linear layer, and a resize maybe; here that is not what gives "
                f"{parts.scores.value.describe()}",
                UnsupportedTaskError,
            )
        if None in parts.scores.grid or None in whole.grid:
            return Refusal(
                f"Seg-Recipro-CAM needs the sizes of {whole.value.describe()}; give those of the input: --input-shape",
                UnsupportedTaskError,
            )
        shape = (parts.scores.shape[0], parts.classes, *parts.scores.grid)
        reason = "linear head" if not parts.enlarged else "linear head and a resize"
        return SegReciproCamPlan(found, _NAME, Form.CLOSED, reason, shape, mega(_flops(parts, whole)), whole)


def _flops(parts: Segmenter, whole: FeatureMap) -> int:
    (rows, columns), (height, width) = fixed(parts.scores.grid), fixed(whole.grid)
    resizing = 0 if whole is parts.scores else 2 * rows * width * (height + columns)
    return parts.classes * (resizing + 2 * height * width)


METHOD = SegReciproCam()
