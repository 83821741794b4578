"""Every proof of an inserted model: its predictions, its maps against their definition, and where the maps lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xai_insert.check import CheckResult, Plain, check_definition, check_outputs, random_feeds
from xai_insert.check_batch import require_own_maps
from xai_insert.check_derivative import check_derivative
from xai_insert.check_map import map_shows_place
from xai_insert.check_place import places_of
from xai_insert.check_runtimes import require_same_elsewhere
from xai_insert.check_steps import require_shown
from xai_insert.check_time import require_times
from xai_insert.errors import MisplacedMapError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.graph.items import present
from xai_insert.graph.view import Shape
from xai_insert.locate.inputs import image_inputs
from xai_insert.opening import Opened
from xai_insert.options import Options
from xai_insert.several import Planned
from xai_insert.tasks.plan import Branch, Masking

_DETECTION = "detection"  # as `xai_insert.tasks.known.detection` calls it, which takes long to import


def prove(
    loaded: LoadedModel,
    plans: Sequence[Planned],
    branches: Sequence[Branch],
    options: Options,
    plain: Plain,
    opened: Opened | None,
) -> CheckResult:
    """Compare with the plain model and the definition, and change blocks of the image.

    Args:
        loaded: the inserted model.
        plans: what was planned, for each image input.
        branches: what was added.
        options: those of the insertion.
        plain: what the plain model gave for a random input.
        opened: the plan with open sides, if that was carried out.

    Raises:
        XaiInsertError: what is refuted.
    """
    runner = loaded.runner()
    feeds = random_feeds(runner, plain.size)
    outputs = runner.run(feeds)
    if branches[0].raw is None:
        return CheckResult(check_outputs(plans[0].graph, plain.outputs, outputs, []), None, None)
    declared = [branches[0].plan.map_shape, *(output.shape for output in branches[0].outputs.values())]
    moved = check_outputs(plans[0].graph, plain.outputs, outputs, declared)
    first, shown = len(plain.outputs), list[tuple[Any, bool]]()
    for item, branch in zip(plans, branches, strict=True):
        shown.append((outputs[first], _is_shown(item, runner, feeds, outputs, first)))
        first += 1 + len(branch.outputs) + options.range + (options.feature_vector and not item.suffix)
    if any(_may_mix_images(branch, options) for branch in branches):
        require_own_maps(loaded, plans[0].graph, runner, feeds, outputs)
    if options.check_in == "openvino":
        require_same_elsewhere(loaded, feeds, plans[0].graph.output_names, outputs)
    del runner  # no two whole models at a time in memory
    measured, places, steps = list[float | None](), list[str | None](), list[bool]()
    for item, branch, (maps, is_shown) in zip(plans, branches, shown, strict=True):
        known = item.plan.masking(options)
        masking = known if opened is None else opened.plan.masking(options)
        sizes = () if known is None else [feature.sizes for feature in known.features]  # that the model had
        off, in_steps = _off(loaded, branch, masking, maps, sizes, plain.size)
        measured.append(off)
        steps.append(in_steps)
        places.append(_place(loaded, item, is_shown=is_shown))
    place = min(places, key=lambda place: place != "axes")  # all of them or none
    return CheckResult(moved, max(present(measured), default=None), place, any(steps))


def _may_mix_images(branch: Branch, options: Options) -> bool:
    """Whether two images are still to be run: no definition is, and there is more than scores of each location."""
    is_of_locations = branch.plan.form is Form.SCORES and branch.plan.found.task == _DETECTION
    return branch.plan.masking(options) is None and (bool(branch.outputs) or not is_of_locations)


def _off(
    loaded: LoadedModel, branch: Branch, masking: Masking | None, maps: Any, known: Sequence[Shape], size: int
) -> tuple[float | None, bool]:
    """How far a map differs from its definition, at features of known sizes; None if that masks nothing.

    And whether its scores change in steps, as far as that made it constant on noise. `size` stands for open sides of
    what the head reads too.
    """
    found, in_steps = branch.plan.found, False
    if found.placed() and not found.may_be_empty and not branch.derivatives:  # the negative part may be left out
        in_steps = require_shown(maps, loaded, masking, branch)
    if branch.derivatives:
        return max(check_derivative(loaded, item, branch.classes) for item in branch.derivatives), in_steps
    if masking is None:
        return None, in_steps
    handles = branch.raw, branch.scores, branch.classes
    return check_definition(loaded, masking, *handles, known, size, in_steps=in_steps), in_steps


def _is_shown(item: Planned, runner: Runner, feeds: Mapping[str, Any], outputs: Sequence[Any], index: int) -> bool:
    """Whether a map itself tells where it lies."""
    asked = [feature for feature in item.plan.found.placed() if feature.positions != 1]  # one cell lies nowhere else
    image = image_inputs(item.graph)[0]
    return len(asked) == 1 and map_shows_place(asked[0], image, runner, feeds, outputs, index, item.place)


def _place(loaded: LoadedModel, item: Planned, *, is_shown: bool) -> str | None:
    """Where a map lies, by the map itself if it tells, else by the values that it explains."""
    features = item.plan.found.placed()
    if not features:
        return None
    image = image_inputs(item.graph)[0]
    require_times(features, loaded, image)
    place = "blocks" if is_shown else places_of(features, loaded, image, item.place)
    for other in item.sharing:
        _require_no_other_place(loaded, item, other)
    return place


def _require_no_other_place(loaded: LoadedModel, item: Planned, other: Planned) -> None:
    """Refuse a map in which a further image lies at other places than the first; it need not show its place."""
    try:
        places_of(other.plan.found.placed(), loaded, image_inputs(other.graph)[0], other.place)
    except MisplacedMapError as err:
        err.args = (
            f"{err}. One map cannot be of both {item.input!r} and {other.input!r}: --input NAME explains one of them",
        )
        raise
