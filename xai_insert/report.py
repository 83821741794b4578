"""What was done and why, for people and for CI."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from xai_insert.files import printable
from xai_insert.form import Form
from xai_insert.graph.items import present
from xai_insert.graph.shape import format_grid, format_shape

if TYPE_CHECKING:  # the command line prints reports without planning
    from xai_insert.tasks.plan import Plan

REPORT_VERSION = 1
_FEW, _MANY = 5, 10  # classes that a report offers instead of all, and how many times as many there must be


class Stages:
    """Adds up how long named stages take, in seconds."""

    def __init__(self, seconds: Mapping[str, float] = MappingProxyType({})) -> None:
        self.seconds = dict(seconds)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start


@dataclass(frozen=True)
class Report:
    """One insertion.

    Attributes:
        source: the model that was read.
        output: the file that was written; None if none was.
        format: format of the result.
        task: what the model does: `classification`, `detection`.
        method: saliency method.
        form: how it is computed.
        reason: why in this form.
        logits: `{output, name, shape, classes}`.
        target: `{name, shape, grid, grid_axes, masked}` of the explained feature map; `masked` names the values that
            the definition multiplies by a mask (in transformers the tokens on the residual branch too).
        heads: of a detector's class scores, from the finest level on: `{name, shape, grid, anchors, classes}` each.
        background: index of a detector's background class; None if it has none.
        per_box: where the maps of reported boxes come from, `{decoded, decoded_format, boxes, boxes_format, labels,
            first_label, shape}` or, with two stages, `{feature, logits, regions, boxes, boxes_format, scores, shape}`.
        saliency_map: `{shape, dtype, bytes_per_image, rectangle}`, the last top, left, bottom and right of where the
            map lies, as fractions of the image, None for all of it; empty if there is no map.
        beside: of several image inputs, the maps of the second and those behind it: `{output, input, shape, form,
            target}` each.
        mflops: extra work per image.
        cheaper: `{option, mflops, bytes_per_image}` of the same model with the maps of the best classes alone; empty
            where there are few classes or no choice.
        check: `done`; `left out` by the options; `not yet`, of a dry run, which does not run what it would insert:
            where a closed form turns out not to be the definition, masked runs will take its place.
        output_difference: see `CheckResult`; None if not checked.
        map_difference: see `CheckResult`.
        place: how it was proved where the map lies in the image: `blocks`, `axes`, or `unchecked`; None where the
            method has no such proof.
        bytes_before: size of the model's files; None for models in memory.
        bytes_after: size of the files written.
        quantiser_ignored_scope: regular expression of the names that a quantiser has to leave in float, such as NNCF's
            `IgnoredScope(patterns=[...])`, if the result is to be quantised.
        versions: of the tool and the libraries used.
        seconds: how long each stage took: `load`, `plan`, `emit`, `check`, `write`.
        error: why nothing was inserted; None if it was.
        unused_options: names of the options that do nothing for the model, where that is the error.
        lines: of `--verify`, `--strip`, `--layers` and `--skip-existing`, what was found: a word and a text each.
        verification: of `--verify`, what was measured, see `xai_insert.verify.Verification`.
        version: of this format, which `docs/report.schema.json` describes; raised where a field goes or changes.
    """

    source: str
    output: str | None = None
    format: str = ""
    task: str = ""
    method: str = ""
    form: str = ""
    reason: str = ""
    logits: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    heads: Sequence[Mapping[str, Any]] = ()
    background: int | None = None
    per_box: Mapping[str, Any] = field(default_factory=dict)
    saliency_map: Mapping[str, Any] = field(default_factory=dict)
    beside: Sequence[Mapping[str, Any]] = ()
    mflops: float | None = None
    cheaper: Mapping[str, Any] = field(default_factory=dict)
    check: str = ""
    output_difference: float | None = None
    map_difference: float | None = None
    place: str | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    quantiser_ignored_scope: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    error: str | None = None
    unused_options: Sequence[str] = ()
    lines: Sequence[tuple[str, str]] = ()
    verification: Mapping[str, Any] = field(default_factory=dict)
    version: int = REPORT_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def text(self) -> str:
        """A few aligned lines."""
        if self.error is not None:
            return f"{printable(self.source)}: {self.error}"
        lines = [*map(tuple, self.lines)] if self.lines else self._inserted()
        if self.output is not None:
            lines.append(("written", f"{printable(self.output)}{self._growth()}"))
        return "\n".join([printable(self.source), *(f"  {printable(key):<8} {text}" for key, text in lines)])

    def _inserted(self) -> list[tuple[str, str]]:
        saliency = self.saliency_map
        lines = [
            *self._found(),
            ("method", f"{self.method}, {self.form} ({self.reason})"),
            ("output", _described(saliency) if saliency else "feature_vector"),
            *(("lies in", part) for part in [_part(saliency.get("rectangle"))] if part),
            *(("beside", _other(item)) for item in self.beside),
            ("cost", "follows the input" if self.mflops is None else f"{self.mflops:.1f} MFLOPs per image"),
        ]
        if self.cheaper:
            work, size = (self.cheaper[key] for key in ("mflops", "bytes_per_image"))
            lines.append(("cheaper", f"{self.cheaper['option']}: {work:.1f} MFLOPs, {size:,} bytes per image"))
        if self.check:
            lines.append(("checked", self._checked()))
        return lines

    def _found(self) -> list[tuple[str, str]]:
        lines = []
        if self.logits:
            shape = format_shape(self.logits["shape"])
            lines.append(("logits", f"{self.logits['name']!r} {shape} at output {self.logits['output']!r}"))
            if self.logits.get("note"):
                lines.append(("note", self.logits["note"]))
        if self.target:
            shape = format_shape(self.target["shape"])
            lines.append(("target", f"{self.target['name']!r} {shape}, grid {format_grid(self.target['grid'])}"))
        return lines + self._found_heads()

    def _found_heads(self) -> list[tuple[str, str]]:
        lines = []
        for head in self.heads:
            anchors = f", {head['anchors']} anchors" if head["anchors"] > 1 else ""
            lines.append(
                ("scores", f"{head['name']!r} {format_shape(head['shape'])}, grid {format_grid(head['grid'])}{anchors}")
            )
        if self.per_box:
            shape = format_shape(self.per_box["shape"])
            lines.append(("boxes", f"saliency_map_per_box {shape} of {self.per_box['boxes']!r}"))
        if self.heads:
            background = "no background seen" if self.background is None else f"background is class {self.background}"
            lines.append(("classes", f"{self.heads[0]['classes']}, {background}"))
        return lines

    def _checked(self) -> str:
        if self.check == "left out":
            return "left out (--no-check)"
        if self.output_difference is None:
            instead = (
                "; if the closed form is not the definition, masked runs" if self.form == Form.CLOSED.value else ""
            )
            return f"not yet, since nothing is run here{instead}"
        moved = "identical" if self.output_difference == 0 else f"moved by {self.output_difference:.1e}"
        text = f"predictions {moved}"
        if self.map_difference is not None:
            text += f", map differs from its definition by {self.map_difference:.1e}"
        if self.place is not None:
            text += f", its place proved by {self.place}"
        return text

    def _growth(self) -> str:
        if not self.bytes_before or self.bytes_after is None:
            return ""
        added = self.bytes_after - self.bytes_before
        return f" ({added / 1024:+.1f} KB, {100 * added / self.bytes_before:+.2f} %)"


def describe_plan(plan: Plan, output_dtype: str) -> dict[str, Any]:
    """The fields of a report that a plan fills.

    Raises:
        MisplacedMapError: the values of a map lie in several parts of the image.
    """
    cells = present(plan.map_shape[1:])
    whole = len(cells) == len(plan.map_shape) - 1
    size = math.prod(cells) * (1 if output_dtype == "u8" else 4) if whole else None
    saliency = {
        "shape": plan.map_shape,
        "dtype": output_dtype,
        "bytes_per_image": size,
        "rectangle": plan.rectangle(),
    }
    return {
        "task": plan.found.task,
        "method": plan.method,
        "form": plan.form.value,
        "reason": plan.reason,
        "saliency_map": saliency if plan.map_shape else {},
        "mflops": plan.mflops,
        "cheaper": _cheaper(plan, size),
        **plan.describe(),
    }


def _cheaper(plan: Plan, size: int | None) -> dict[str, Any]:
    """What the maps of a few classes alone would cost, where there are many."""
    work = plan.work_for(_FEW)
    classes = plan.map_shape[1] if len(plan.map_shape) > 1 else None
    if work is None or size is None or classes is None or classes < _MANY * _FEW:
        return {}
    return {"option": f"--top-k {_FEW}", "mflops": work, "bytes_per_image": size // classes * _FEW}


def to_json(reports: list[Report]) -> str:
    """All reports of one call, as a JSON document."""
    return json.dumps({"models": [report.as_dict() for report in reports]}, indent=2) + "\n"


def _part(rectangle: Sequence[float] | None) -> str | None:
    """Which part of the image the map shows, for people; None if it is all of it, to the nearest percent."""
    top, left, bottom, right = (round(100 * edge) for edge in rectangle or (0, 0, 1, 1))
    if (top, left, bottom, right) == (0, 0, 100, 100):
        return None
    return f"a part of the image: rows from {top} to {bottom} %, columns from {left} to {right} %"


def _other(item: Mapping[str, Any]) -> str:
    target = f"{item['target']['name']!r}, grid {format_grid(item['target']['grid'])}"
    return f"{item['output']} {format_shape(item['shape'])} of input {item['input']!r}: {item['form']}, target {target}"


def _described(saliency: Mapping[str, Any]) -> str:
    return f"saliency_map {format_shape(saliency['shape'])} {saliency['dtype']}{_bytes(saliency)}"


def _bytes(saliency: Mapping[str, Any]) -> str:
    size = saliency["bytes_per_image"]
    return "" if size is None else f", {size:,} bytes per image"
