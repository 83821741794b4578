"""In which form a map is computed, as reports and metadata say it."""

from __future__ import annotations

from enum import Enum


class Form(str, Enum):
    """How a map is computed; the value is for people and for files."""

    CLOSED = "closed form"
    RUNS = "masked runs"
    DERIVATIVE = "derivative"
    CHANNEL_MEAN = "channel mean"
    SCORES = "class scores"
    PASTED = "masks pasted from boxes"
    WHOLE = "masks of the image"
    PROTOTYPES = "masks from prototypes"
    SUPPRESSED = "masks from prototypes, suppressed"
    QUERIES = "masks of queries"
    NONE = "no map"
