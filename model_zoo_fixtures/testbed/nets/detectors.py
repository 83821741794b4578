"""Detectors drawn from a grammar: levels, heads, orders of channels, boxes, scores, what is beside them, and outputs.

sample = generate(seed)     # the same seed gives the same network
verdict = judge(sample)     # see testbed.nets.detector_oracle
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import numpy as np

from model_zoo_fixtures.testbed.nets import box_forms, reports
from model_zoo_fixtures.testbed.nets.design import SELECTING, Design, Parts
from model_zoo_fixtures.testbed.nets.detector_oracle import Sample
from model_zoo_fixtures.testbed.nets.finishing import finished
from model_zoo_fixtures.testbed.nets.graph import Net
from model_zoo_fixtures.testbed.nets.lookalikes import LOOKALIKES
from model_zoo_fixtures.testbed.nets.prompted import PROMPTED
from model_zoo_fixtures.testbed.nets.pyramids import Grid, Layout, Rows, before_all, head, part, pyramid, tower

FIRST: list[tuple[str, ...]] = [(), (), ("scores",), ("objectness", "scores"), ("boxes", "scores")]
SIZES = ((64, 96), (96, 64), (64, 64), (32, 64))


def generate(seed: int) -> Sample:
    """One detector, or what looks like one."""
    net = Net(np.random.default_rng(seed))
    kind = KINDS[int(net.rng.choice(len(KINDS), p=SHARES))]
    net.tag(f"kind {kind.__name__}")
    return kind(net, seed)


def dense(net: Net, seed: int) -> Sample:
    """Boxes and scores of every location."""
    return _dense(net, seed, net.pick(["separate", "separate", "joined", "joined", "levels"]))


def selecting(net: Net, seed: int) -> Sample:
    """Boxes that were chosen by their scores."""
    return _dense(net, seed, net.pick(["suppressed", "suppressed", "best", "best flat"]))


def undecoded(net: Net, seed: int) -> Sample:
    """Heads as outputs."""
    return _dense(net, seed, "heads")


def free_sides(net: Net, seed: int) -> Sample:
    """Any size of the image."""
    net.dynamic = True
    return _dense(net, seed, net.pick(["separate", "joined", "best"]))


def boxes_of_classes(net: Net, seed: int) -> Sample:
    """A box for each class at every location."""
    return _dense(net, seed, "class boxes")


def prompted(net: Net, seed: int) -> Sample:
    """Scores that are products with embeddings of a text, or of tokens."""
    kind = net.pick(PROMPTED)
    net.tag(kind.__name__)
    return kind(net, seed)


def lookalike(net: Net, seed: int) -> Sample:
    """No detector."""
    kind = net.pick(LOOKALIKES)
    net.tag(kind.__name__)
    return kind(net, seed)


KINDS: tuple[Callable[[Net, int], Sample], ...] = (
    dense,
    selecting,
    undecoded,
    free_sides,
    boxes_of_classes,
    prompted,
    lookalike,
)
SHARES = (0.4, 0.2, 0.08, 0.08, 0.04, 0.1, 0.1)


def _design(net: Net, output: str) -> Design:
    background = net.pick(["none", "none", "none", "first", "last"])
    activation = "Softmax" if background != "none" else net.pick(["Sigmoid", "Sigmoid", "Sigmoid", "none"])
    dropped = background != "none" and output != "heads" and (output in SELECTING or net.chance(0.5))
    classes = net.pick([1, 2, 3, 3, 4, 4, 5, 6, 8])
    objectness = net.pick(["none", "none", "apart", "beside"]) if activation == "Sigmoid" else "none"
    fields: list[str] = []
    if output in ("separate", "joined", "levels") and net.chance(0.35):
        kinds = ["points", "visible points", "angle", "coefficients", "attributes"]
        fields.append(net.pick(kinds[:-1] if classes == 1 else kinds))  # one class beside several is an objectness
    fused = output in ("separate", "joined", "heads", "suppressed", "best") and net.chance(0.3)
    fused = fused and activation == "Sigmoid" and "attributes" not in fields  # which would be more classes
    form = net.pick(box_forms.FORMS if output != "heads" or not fused else box_forms.FORMS[:-1])  # bins stand behind
    if fused and output == "joined":  # what follows four numbers of a box is taken for objectness, behind bins is not
        objectness = "none" if form == "bins" else "beside" if objectness == "none" else objectness
    layer = "conv" if net.dynamic or net.chance(0.7) else net.pick(["last", "tokens"])
    order = net.pick(["cells", "cells", "anchors", "columns"])
    selects = output in (*SELECTING, "class boxes")
    layout = Layout(
        layer=layer,
        classes_first=net.chance(0.2) and output != "heads",  # as they are, no order is told
        order="cells" if selects and order == "columns" else order,
        flat=net.dynamic or output == "class boxes" or net.chance(0.4),
    )
    return Design(
        classes=classes,
        background=background,
        dropped=dropped,
        objectness=objectness,
        multiplied=objectness != "none" and (selects or net.chance(0.5)),
        activation=activation,
        fields=tuple(fields),
        fused=fused,
        form=form,
        reported=net.pick(box_forms.REPORTED) if output not in ("suppressed",) else net.pick(["xyxy", "yxyx"]),
        normalised=net.chance(0.3),
        layout=layout,
        first=net.pick(FIRST) if fused and output != "heads" else (),
        between=fused and output == "joined" and net.chance(0.3),
        quality=fused and output != "heads" and objectness != "none" and layer == "conv" and net.chance(0.2),
    )


def _anchors(net: Net, design: Design, grids: list[Grid], output: str) -> list[Grid]:
    """Boxes of each cell; some numbers are equal on purpose."""
    count = net.pick([1, 1, 1, 2, 3, 4, 6, design.classes])
    if design.form == "bins" and (output == "heads" or net.chance(0.7)):
        count = 1
    varied = count > 1 and net.chance(0.15)
    return [replace(grid, anchors=count + (varied and index % 2)) for index, grid in enumerate(grids)]


def _dense(net: Net, seed: int, output: str) -> Sample:
    net.batch = net.pick([1, 1, "N"]) if output != "suppressed" else 1
    sides = net.pick(SIZES)
    design = _design(net, output)
    count = net.pick([1, 2, 3, 3, 4])
    first = net.pick([4, 8, 8]) if count < 4 else 4
    grids = pyramid(net, *sides, count, net.pick([8, 12]), first)
    return built(net, seed, output, design, _anchors(net, design, grids, output), sides)


def built(net: Net, seed: int, output: str, design: Design, grids: list[Grid], sides: tuple[int, int]) -> Sample:
    """The detector of a design, with heads on the grids."""
    net.tag(f"output {output}")
    if output == "class boxes":
        grids = [replace(grid, anchors=1) for grid in grids]
    _tags(net, design, grids)
    parts = Parts()
    for grid in grids:
        _heads(net, design, grid, parts, output)
    outputs, first_label = reports.report(net, design, parts, output, sides)
    return finished(net, seed, sides, design, parts, outputs, first_label, output)


def _tags(net: Net, design: Design, grids: list[Grid]) -> None:
    layout = design.layout
    net.tag(f"levels {len(grids)}")
    net.tag(f"classes {design.classes}")
    net.tag(f"anchors {grids[0].anchors}" + (" varied" if len({g.anchors for g in grids}) > 1 else ""))
    net.tag(f"background {design.background}" + (" dropped" if design.dropped else ""))
    net.tag(f"objectness {design.objectness}" + (" multiplied" if design.multiplied else ""))
    net.tag(f"activation {design.activation}")
    net.tag(f"boxes {design.form}")
    net.tag(f"reported {design.reported}")
    net.tag(f"layer {layout.layer}")
    net.tag(f"order {layout.order}" + (" classes first" if layout.classes_first else ""))
    net.tags.extend(f"beside {name}" for name in design.fields)
    if design.fused:
        net.tag(" ".join(["fused", *design.first]))
        net.tags.extend(name for name in ("between", "quality") if getattr(design, name))


def _beside(name: str) -> int:
    """Numbers of a field that is neither box nor score."""
    return {"points": 6, "visible points": 6, "angle": 1, "coefficients": 5, "attributes": 3}[name]


def _heads(net: Net, design: Design, grid: Grid, parts: Parts, output: str) -> None:
    """The heads of one level."""
    boxes = box_forms.width_of(design.form) * (design.scores if output == "class boxes" else 1)
    layout = design.layout
    fields = {"boxes": boxes}
    if design.fused:
        fields |= {"objectness": 1} if design.objectness != "none" else {}
        fields |= {"scores": design.scores} | {name: _beside(name) for name in design.fields}
        fields = {name: fields[name] for name in dict.fromkeys([*design.first, *fields]) if name in fields}
        value, rows = head(net, tower(net, grid), sum(fields.values()), layout, before=int(design.quality))
        starts = dict(zip(fields, accumulate(fields.values(), initial=0), strict=False))
        own = [
            (part(value, grid, rows.width, starts[name], fields[name], layout, before=int(design.quality)),)
            for name in ("scores", "objectness")
            if name in fields
        ]
        parts.levels.append(own[0])
        parts.gates += own[1:]
        parts.raw.append(value)
        if design.quality:
            parts.add("quality", before_all(net, value, grid, layout))
        _cut(net, rows, fields, parts)
        return
    if design.objectness == "beside":
        fields["objectness"] = 1
    read = tower(net, grid)
    value, rows = head(net, read, sum(fields.values()), layout)
    _cut(net, rows, fields, parts)
    if "objectness" in fields:
        parts.gates.append((part(value, grid, rows.width, boxes, 1, layout),))
    apart = read if net.chance(0.3) else tower(net, grid)
    name, scores = head(net, apart, design.scores, layout)
    parts.add("scores", scores)
    parts.levels.append((part(name, grid, design.scores, 0, design.scores, layout),))
    parts.raw += [name, value] if net.chance(0.5) else [value, name]
    beside = {"objectness": 1} if design.objectness == "apart" else {}
    for kind, width in (beside | {kind: _beside(kind) for kind in design.fields}).items():
        value, rows = head(net, net.pick([read, grid]), width, layout)
        parts.add(kind, rows)
        parts.raw.append(value)
        if kind == "objectness":
            parts.gates.append((part(value, grid, 1, 0, 1, layout),))


def _cut(net: Net, rows: Rows, fields: dict[str, int], parts: Parts) -> None:
    start = 0
    for name, width in fields.items():
        parts.add(name, rows.cut(net, start, width))
        start += width
