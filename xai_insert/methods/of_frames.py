"""Recipro-CAM of clips whose frames stand in the batch of a network of images, and whose scores are averaged.

With z(f) the scores of a frame with feature f, a clip of T frames has the scores `mean over t of z(f_t)`. Kept alone,
place p of frame t gives `S[k, t, p] = (z_k(f_t m_p) + (T - 1) z_k(0)) / T`: the maps of the frames side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import UnsupportedTaskError
from xai_insert.feeds import feeds_of
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, fixed
from xai_insert.layouts.record import Layout
from xai_insert.locate.consensus import Consensus
from xai_insert.methods.base import Refusal
from xai_insert.methods.of_classifier import MapPlan, map_plan
from xai_insert.methods.shaping import scalar
from xai_insert.options import Options
from xai_insert.tasks.base import Study
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.plan import Branch, Plan


@dataclass(frozen=True)
class FramesPlan(MapPlan):
    """A decision for a classifier of frames.

    Attributes:
        consensus: the mean over them.
    """

    consensus: Consensus

    @property
    def may_follow(self) -> bool:
        return False

    def uses(self) -> frozenset[str]:
        return super().uses() - {"top_k", "classes"}

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        branch = super().splice(loaded, surgeon, graph, options)
        others = self._of_nothing(loaded) * np.float32((self.consensus.count - 1) / self.consensus.count)

        def arranged(raw: Any) -> Any:
            op, (classes, count, *grid) = surgeon.ops, fixed(self.map_shape[1:])
            by_class = op.transpose(op.reshape(raw, [-1, count, classes, *grid]), (0, 2, 1, 3, 4))
            return op.add(op.mul(by_class, scalar(op, 1 / count)), op.constant(others.reshape(1, -1, 1, 1, 1)))

        return replace(branch, arranged=arranged)

    def _of_nothing(self, loaded: LoadedModel) -> npt.NDArray[np.float32]:
        """The scores of a frame whose feature is zero, `[K]`."""
        features = [item.value for item in self.found.placed()]
        runner = loaded.between(features, [self.consensus.scores.native])
        rng = np.random.default_rng(0)
        feeds = feeds_of(runner.inputs, rng)
        feeds |= {name: np.zeros_like(feeds[name]) for name, _, _ in runner.inputs[: len(features)]}
        scores: npt.NDArray[np.float32] = runner.run(feeds)[0][0].astype(np.float32)
        return scores

    def metadata(self, options: Options) -> dict[str, str]:
        times = self.consensus.times
        return super().metadata(options) | Layout(frames=(times.stride, times.offset)).written()


def frames_plan(study: Study, found: FoundClassifier, method: str, consensus: Consensus) -> Plan | Refusal:
    """The plan to mask the places of each frame; what it is checked by are the scores of the frames."""
    if found.parts.readout is not None:
        return Refusal("frames stand in the batch of a transformer with class tokens", UnsupportedTaskError)
    if not found.frame.is_upright:
        return Refusal("the features are turned against the frames", UnsupportedTaskError)
    plan = map_plan(study, found, method)
    shape = (consensus.batch, found.parts.logits.classes, consensus.count, *found.parts.target.grid)
    reason = f"{plan.reason}, of each of {consensus.count} frames"
    work = None if plan.mflops is None else plan.mflops * consensus.count
    form: Form = plan.form
    return FramesPlan(found, method, form, reason, shape, work, consensus)
