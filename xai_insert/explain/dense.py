"""Which class reads the outputs of a model that says something of every place, by its task."""

from __future__ import annotations

from xai_insert.explain.anomaly import ANOMALY_DETECTION, Inspector
from xai_insert.explain.keypoints import Joints
from xai_insert.explain.segment import SEMANTIC_SEGMENTATION, Painter

Reader = Painter | Inspector | Joints
READERS: dict[str, type[Painter | Inspector]] = {
    SEMANTIC_SEGMENTATION: Painter,
    ANOMALY_DETECTION: Inspector,
}
