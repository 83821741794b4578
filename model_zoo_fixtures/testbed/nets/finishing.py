"""The model of a detector's nodes, and what is right for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import onnx
from onnx import TensorProto, helper, shape_inference

from model_zoo_fixtures.testbed.nets.design import SELECTING, Design, Parts
from model_zoo_fixtures.testbed.nets.detector_oracle import Level, Reading, Sample
from model_zoo_fixtures.testbed.nets.graph import Array, Net

SEGMENTATION = "semantic segmentation"


def finished(
    net: Net,
    seed: int,
    sides: tuple[int, int],
    design: Design,
    parts: Parts,
    outputs: Sequence[str],
    first_label: int | None,
    output: str,
) -> Sample:
    """A dense detector."""
    readings = merged(parts.levels, [rows.grid.stride for rows in parts.rows["boxes"]])
    if design.classes == 1 and parts.gates:
        readings += merged(parts.gates, [rows.grid.stride for rows in parts.rows["boxes"]])
    index = design.background_index
    return sample(
        net,
        seed,
        sides,
        outputs,
        readings=readings,
        classes=design.scores,
        told=net.pick([design.classes, design.scores]),
        backgrounds=(index,) if design.dropped else (None, index),
        first_label=first_label,
        refusal_ok=_is_ambiguous(design, output),
        tasks=_of_one_map(sides) if output == "heads" and len(outputs) == 1 else (),
    )


def _of_one_map(sides: tuple[int, int]) -> tuple[str, ...]:
    """What a single map may be: of an upright image its channels are said to be likely key points."""
    height, width = sides
    return (SEGMENTATION, "keypoints") if height > width else (SEGMENTATION,)


def _is_ambiguous(design: Design, output: str) -> bool:
    """Whether what the graph says fits another detector, or no detector, as well."""
    if output == "heads" or (output == "class boxes" and design.activation != "Softmax"):
        return True
    if output in SELECTING:
        return False
    if "attributes" in design.fields:
        return True
    return design.activation == "none" and (design.scores == 4 or bool(design.fields))


def merged(levels: Sequence[Level], strides: Sequence[int]) -> list[Reading]:
    """One by one; and levels of one grid taken together."""
    apart = tuple(levels)
    pairs = groupby(zip(strides, apart, strict=True), key=lambda pair: pair[0])
    together = tuple(tuple(part for _, level in group for part in level) for _, group in pairs)
    return [apart] if together == apart else [apart, together]


def sample(
    net: Net,
    seed: int,
    sides: tuple[int, int],
    outputs: Sequence[str],
    *,
    readings: Sequence[Reading] = (),
    features: Sequence[tuple] = (),
    classes: int = 0,
    told: int = 0,
    backgrounds: tuple[int | None, ...] = (None,),
    first_label: int | None = None,
    refusal_ok: bool = False,
    beside: dict[str, Array] | None = None,
    tasks: tuple[str, ...] = (),
) -> Sample:
    """The model with its outputs, and what is right for it."""
    beside = beside or {}
    return Sample(
        seed=seed,
        tags=tuple(net.tags),
        model=_model(net, sides, outputs, beside),
        readings=tuple(readings),
        features=tuple(features),
        classes=classes,
        told=told or classes,
        backgrounds=backgrounds,
        first_label=first_label,
        image=(3, *sides),
        batch=net.batch if isinstance(net.batch, int) else 2,
        refusal_ok=refusal_ok or not (readings or features),
        beside=beside,
        tasks=tasks,
    )


def _model(net: Net, sides: tuple[int, int], outputs: Sequence[str], beside: dict[str, Array]) -> onnx.ModelProto:
    declared = ["height", "width"] if net.dynamic else list(sides)
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [net.batch, 3, *declared])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in beside.items()]
    named = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(net.nodes, "net", inputs, named, net.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", net.opset)], ir_version=8)
    inferred = shape_inference.infer_shapes(model, strict_mode=True)
    model.graph.output[0].CopyFrom(inferred.graph.output[0])
    for index, value in enumerate(inferred.graph.output):
        model.graph.output[index].CopyFrom(value)
    onnx.checker.check_model(model)
    return model
