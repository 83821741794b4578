"""The map by its definition, run position by position with onnxruntime, and the verdict on an inserted model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed.nets.graph import Array, Target
from xai_insert import Options, insert
from xai_insert.errors import XaiInsertError

Judgement = Literal["right", "refused", "wrong", "unjudged"]
TOLERANCE = 1e-4  # of the range of the map
NOISE = 1e-5  # of the largest score: what float32 leaves of a small difference on a large common part
CELLS = 256  # of which that holds; over more of them the runs that define the map add up more roundings
DERIVED = "hirescam"  # what is said to stand in place of a map by masks, and proved elsewhere


@dataclass(frozen=True)
class Sample:
    """A generated model with what is right for it.

    Attributes:
        seed: what it was generated from.
        tags: the kinds it is made of.
        model: as built.
        targets: any of these, masked, gives a right map; the last one is what stands nearest to the logits.
        scores: names of the values that count as class scores.
        image: sizes of one image, `[channels, rows, columns]` or with the channels last.
        batch: how many images the model is run on.
        static: whether it takes no other number of images.
        region: top, left, bottom, right of what the map covers, in fractions of the image; None if all of it.
        refusal_ok: whether to refuse is as good as a map.
    """

    seed: int
    tags: tuple[str, ...]
    model: onnx.ModelProto
    targets: tuple[Target, ...]
    scores: tuple[str, ...]
    image: tuple[int, ...]
    batch: int
    static: bool
    region: tuple[float, float, float, float] | None
    refusal_ok: bool

    def images(self) -> Array:
        """Images with structure: noise whose strength differs from place to place."""
        rng = np.random.default_rng(self.seed + 1)
        return rng.standard_normal((self.batch, *self.image)).astype(np.float32)

    def definition(self, target: Target, score: str) -> Array:
        """`[B, K, h, w]`: the scores with the target masked to each cell in turn."""
        run = session(_masked(self.model, target, score))
        images = self.images()
        groups = [images] if self.static else [images[i : i + 1] for i in range(len(images))]
        return np.concatenate([self._maps(run, target, group) for group in groups])

    def _maps(self, run: ort.InferenceSession, target: Target, images: Array) -> Array:
        weights = _weights(target)
        taken = {value.name for value in run.get_inputs()}
        maps = []
        for row in weights:
            feed = {"image": images}
            for index, feature in enumerate(target.features):
                labels = feature.labels if feature.shape[0] == 1 else np.tile(feature.labels, _repeats(feature, images))
                feed[f"mask{index}"] = row[labels]
            maps.append(run.run(None, {k: v for k, v in feed.items() if k in taken})[0].reshape(len(images), -1))
        return np.stack(maps, -1).reshape(len(images), -1, *target.grid)


@dataclass(frozen=True)
class Verdict:
    """What came of an insertion, and why it counts so."""

    sample: Sample
    judgement: Judgement
    reason: str = ""

    @property
    def acceptable(self) -> bool:
        return self.judgement == "right" or (self.judgement == "refused" and self.sample.refusal_ok)


def judge(sample: Sample, convert: Callable[[onnx.ModelProto], Any] = lambda model: model) -> Verdict:
    """Insert and compare with the oracle. `convert` makes the other format.

    Where the other format's runtime gives other predictions for the plain model, nothing can be said about the map
    (seen in OpenVINO 2026.4: attention by a stored query, several images in the batch).
    """
    model = convert(sample.model)
    if not isinstance(model, onnx.ModelProto) and not _agrees(sample, model):
        return Verdict(sample, "unjudged", "the runtime gives other predictions for the plain model")
    try:
        result = insert(model, Options(output_dtype="f32"))
    except XaiInsertError as error:
        return Verdict(sample, "refused", str(error).splitlines()[0])
    except Exception as error:  # a traceback is a fault of its own kind, and never a refusal
        return Verdict(sample, "wrong", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    report = result.report
    found = f"{report.method}, target {report.target.get('name')} {report.target.get('shape')}"
    try:
        drawn = _saliency(result.model, sample.images())
    except Exception as error:
        return Verdict(sample, "wrong", f"{found}: does not run, {type(error).__name__}: {str(error)[:200]}")
    if sample.region is not None and not _states(report.as_dict(), sample.region, drawn.shape[2:]):
        return Verdict(sample, "wrong", f"{found}: the rectangle {sample.region} is not stated")
    nearest = np.inf
    for target in reversed(sample.targets):
        if drawn.shape[2:] != target.grid:
            continue
        for score in sample.scores:
            difference = distance(drawn, sample.definition(target, score))
            if difference <= 1:
                return Verdict(sample, "right", found)
            nearest = min(nearest, difference)
    grids = sorted({target.grid for target in sample.targets})
    if report.method == DERIVED and drawn.shape[2:] in grids:
        return Verdict(sample, "refused", report.reason)
    if np.isinf(nearest):
        return Verdict(sample, "wrong", f"{found}: map {list(drawn.shape)}, right grids {grids}")
    return Verdict(sample, "wrong", f"{found}: differs by {nearest * TOLERANCE:.1e} of its range at {drawn.shape[2:]}")


def distance(drawn: Array, right: Array) -> float:
    """In units of what is allowed."""
    if drawn.shape != right.shape or not np.isfinite(drawn).all():
        return np.inf
    spread = float((right.max((-2, -1)) - right.min((-2, -1))).max())
    noise = NOISE * max(1.0, right.shape[-1] * right.shape[-2] / CELLS)
    allowed = max(TOLERANCE * spread, noise * float(np.abs(right).max()), 1e-9)
    return float(np.abs(drawn - right).max()) / allowed


def _weights(target: Target) -> Array:
    """`[cells, cells + 1]`: what each sample keeps of each cell, and last of what belongs to none."""
    height, width = target.grid
    kept = np.eye(height * width, dtype=np.float32)
    if target.gaussian:
        rows, columns = np.divmod(np.arange(height * width), width)
        near = [0.5, 0.25]
        for one in range(height * width):
            for other in range(height * width):
                down, right = abs(rows[one] - rows[other]), abs(columns[one] - columns[other])
                kept[one, other] = near[down] * near[right] if max(down, right) < 2 else 0
    others = np.full((height * width, 1), float(target.keeps_others), np.float32)
    return np.concatenate([kept, others], 1)


def _repeats(feature: Any, images: Array) -> Sequence[int]:
    return [len(images), *[1] * (feature.labels.ndim - 1)]


def _masked(model: onnx.ModelProto, target: Target, score: str) -> onnx.ModelProto:
    """The model with the target multiplied by masks, which are inputs, and the scores as its only output."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    nodes = list(twin.graph.node)
    for index, feature in enumerate(target.features):
        mask, masked = f"mask{index}", f"masked{index}"
        kind = helper.make_tensor_value_info(mask, TensorProto.FLOAT, [None] * feature.labels.ndim)
        twin.graph.input.append(kind)
        for node in nodes:
            if target.unmasked.isdisjoint(node.output):
                node.input[:] = [masked if name == feature.name else name for name in node.input]
        made = next((i for i, node in enumerate(nodes) if feature.name in node.output), -1)
        nodes.insert(made + 1, helper.make_node("Mul", [feature.name, mask], [masked]))
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    del twin.graph.output[:]
    twin.graph.output.append(helper.make_tensor_value_info(score, TensorProto.FLOAT, None))
    return twin


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _saliency(model: Any, images: Array) -> Array:
    if isinstance(model, onnx.ModelProto):
        return session(model).run(["saliency_map"], {"image": images})[0]
    return np.array(compiled(model)([images])["saliency_map"])


def compiled(model: Any) -> Any:
    import openvino as ov

    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def _agrees(sample: Sample, model: Any) -> bool:
    expected = session(sample.model).run(None, {"image": sample.images()})[0]
    given = np.array(compiled(model)([sample.images()])[0])
    return bool(np.allclose(given, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())))


def _states(report: dict[str, Any], region: Sequence[float], grid: Sequence[int]) -> bool:
    """Whether anything in the report is the rectangle, to half a cell."""
    halves = [0.5 * (region[2 + axis] - region[axis]) / grid[axis] for axis in (0, 1)] * 2

    def numbers(item: Any) -> list[Any]:
        if isinstance(item, dict):
            values = list(item.values())
            return [values, *(n for value in values for n in numbers(value))]
        if isinstance(item, (list, tuple)):
            return [item, *(n for value in item for n in numbers(value))]
        return []

    for candidate in numbers(report):
        if len(candidate) == 4 and all(isinstance(v, (int, float)) for v in candidate):
            for order in ((0, 1, 2, 3), (1, 0, 3, 2)):
                if all(abs(candidate[i] - region[k]) <= halves[k] + 1e-8 for i, k in enumerate(order)):
                    return True
    return False
