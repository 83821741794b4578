"""What a user can choose, with every default in one place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from xai_insert.graph.shape import Shape

MethodName = Literal[
    "auto", "recipro-cam", "vit-recipro-cam", "activation-map", "det-class-probability-map", "instance-masks"
]
KernelName = Literal["gaussian", "point"]
OutputDtype = Literal["u8", "f32"]

METHODS: tuple[str, ...] = get_args(MethodName)
KERNELS: tuple[str, ...] = get_args(KernelName)
OUTPUT_DTYPES: tuple[str, ...] = get_args(OutputDtype)


@dataclass(frozen=True)
class Options:
    """How to insert.

    Attributes:
        method: saliency method; `auto` takes the default of the kind of model found.
        target_layer: name of the layer to explain, instead of the one found.
        output: name of the output with the class scores, where there are several.
        kernel: for ViT Recipro-CAM, what a masked sample keeps: `gaussian`, a 3x3 neighbourhood; `point`, one patch.
        block: for ViT Recipro-CAM, which block with attention to mask, counted from the end.
        output_dtype: `u8` scales each map to 0..255 by its own minimum and maximum; `f32` gives raw scores.
        saliency_size: height and width of the map; None keeps the grid of the feature, or a quarter of the input's size
            for instance masks.
        num_classes: number of classes, where the model does not tell it.
        score_threshold: for instance masks, instances with a lower score add nothing; None for the model's own.
        feature_vector: whether to add the pooled feature `[B, C]` as output `feature_vector`; of a detector the means
            of what its class heads (or its region head) read, the finest level first, side by side.
        top_k: for classifiers, how many maps: those of the best classes of each image, which the output
            `saliency_classes` names; None gives the map of every class.
        per_box: for detectors and segmenters with two stages, whether to add the output `saliency_map_per_box`
            `[B, M, h, w]`, a map of each detection that the model reports.
        input_shapes: sizes to fix in the model, by input name; None stays dynamic.
        check: whether to run the plain and the inserted model and refuse a model that does not behave as promised.
        given: names of the options that were set on purpose, though perhaps to their default: a model for which one of
            them does nothing is refused. None: those that differ from their defaults.
    """

    method: MethodName = "auto"
    target_layer: str | None = None
    output: str | None = None
    kernel: KernelName = "gaussian"
    block: int = 1
    output_dtype: OutputDtype = "u8"
    saliency_size: tuple[int, int] | None = None
    num_classes: int | None = None
    score_threshold: float | None = None
    feature_vector: bool = False
    top_k: int | None = None
    per_box: bool = False
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)
    check: bool = True
    given: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, not {self.kernel!r}")
        if self.block < 1:
            raise ValueError(f"block counts from 1, the last, not {self.block}")
        if self.saliency_size is not None and min(self.saliency_size) < 1:
            raise ValueError(f"saliency_size must be positive, not {self.saliency_size}")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes must be positive, not {self.num_classes}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k counts maps, not {self.top_k}")
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise ValueError(f"score_threshold must lie in 0..1, not {self.score_threshold}")
        if self.output_dtype not in OUTPUT_DTYPES:
            raise ValueError(f"output_dtype must be one of {', '.join(OUTPUT_DTYPES)}, not {self.output_dtype!r}")
        if unknown := set(self.given or ()) - {item.name for item in fields(self)}:
            raise ValueError(f"given names options, not {sorted(unknown)}")

    @property
    def on_purpose(self) -> frozenset[str]:
        """Names of the options that were set on purpose, see `given`."""
        if self.given is not None:
            return frozenset(self.given)
        default = Options()
        return frozenset(item.name for item in fields(self) if getattr(self, item.name) != getattr(default, item.name))

    def written(self) -> str:
        """What shapes the outputs and is not at its default, as JSON; empty if all is."""
        default, chosen = Options(), {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in _OF_THE_CALL and value != getattr(default, item.name):
                chosen[item.name] = value
        return json.dumps(chosen) if chosen else ""

    @classmethod
    def read(cls, text: str) -> Options:
        """The options of which `written` gave `text`.

        Raises:
            ValueError: it did not.
        """
        entries: Any = json.loads(text or "{}")
        if not isinstance(entries, dict) or not set(entries) <= {item.name for item in fields(cls)} - _OF_THE_CALL:
            raise ValueError(f"no options: {text[:100]!r}")
        chosen: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()}
        return cls(**chosen)


_OF_THE_CALL = frozenset({"input_shapes", "check", "given"})
"""Options of which nothing is seen in the inserted model, or which are part of its inputs."""
