"""What a user can choose: each option once, with its default, its words and its rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast, get_args

from xai_insert.graph.shape import Shape
from xai_insert.registry import METHODS_FOLDER, names

KernelName = Literal["gaussian", "point"]
ReferenceName = Literal["self", "input"]
FormName = Literal["auto", "closed", "masked"]
OutputDtype = Literal["u8", "f32"]
RuntimeName = Literal["own", "openvino"]
Kind = Literal["flag", "name", "choice", "count", "share", "size", "shapes", "classes"]

AUTO = "auto"
METHODS: tuple[str, ...] = (AUTO, *names(METHODS_FOLDER))
KERNELS: tuple[str, ...] = get_args(KernelName)
REFERENCES: tuple[str, ...] = get_args(ReferenceName)
FORMS: tuple[str, ...] = get_args(FormName)
OUTPUT_DTYPES: tuple[str, ...] = get_args(OutputDtype)
RUNTIMES: tuple[str, ...] = get_args(RuntimeName)


@dataclass(frozen=True)
class Option:
    """What the command line, the checks and the documents know of an option.

    Attributes:
        help: what it does, for `--help`.
        kind: what it holds.
        metavar: placeholder of the value.
        flag: its name on the command line, if that is not the field's.
        choices: the values that it may have; empty if any.
        show_default: whether `--help` names the default.
        for_all: whether every method goes by it; the others are named by the plans that do.
        decides: whether it says what kind of model is meant, so that other tasks are not asked.
        wrong: what to say of a value that cannot be, `{}` for the value.
    """

    help: str
    kind: Kind
    metavar: str | None = None
    flag: str | None = None
    choices: tuple[str, ...] = ()
    show_default: bool = False
    for_all: bool = False
    decides: bool = False
    wrong: str = ""


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_whole(values: Any, least: int) -> bool:
    return isinstance(values, (tuple, list)) and all(_is_whole(value, least) for value in values)


_MAY_BE: Mapping[str, Callable[[Any], bool]] = {
    "count": lambda value: _is_whole(value, 1),
    "share": lambda value: isinstance(value, (int, float)) and 0 <= value <= 1,
    "size": lambda value: _are_whole(value, 1) and len(value) == 2,
    "classes": lambda value: _are_whole(value, 0) and 0 < len(set(value)) == len(value),
}


def _about(help: str, kind: Kind, **more: Any) -> dict[str, Option]:  # noqa: A002 - the word of `--help`
    return {"option": Option(help, kind, **more)}


@dataclass(frozen=True)
class Options:
    """How to insert; each option's words stand below it."""

    method: str = field(
        default=AUTO,
        metadata=_about(
            "Saliency method, see below; auto: by the model.",
            "choice",
            metavar="NAME",
            choices=METHODS,
            for_all=True,
        ),
    )
    """Saliency method; `auto` takes the default of the kind of model found."""
    target_layer: str | None = field(
        default=None,
        metadata=_about(
            "Layer to explain; -1 to -9: stage from the end.",
            "name",
            metavar="NAME",
            decides=True,
        ),
    )
    """Name of the layer to explain, instead of the one found; `LAST` or `-1` to `-9` count stages from the end."""
    fuse: bool = field(default=False, metadata=_about("LayerCAM: all stages from the last to that one.", "flag"))
    """For LayerCAM with a stage as `target_layer`, whether the maps of all stages from the last to that one are fused:
    the maximum, in the size of the finest."""
    output: str | None = field(
        default=None, metadata=_about("Output with the class scores, of several.", "name", metavar="NAME")
    )
    """Name of the output with the class scores, where there are several; several names have commas between."""
    output_dtype: OutputDtype = field(
        default="u8",
        metadata=_about(
            "u8: scaled to 0..255; f32: raw.",
            "choice",
            choices=OUTPUT_DTYPES,
            show_default=True,
            for_all=True,
        ),
    )
    """`u8` scales each map to 0..255 by its own minimum and maximum; `f32` gives raw scores."""
    input: str | None = field(
        default=None,
        metadata=_about("Image input to explain, of several.", "name", metavar="NAME", for_all=True),
    )
    """Name of the image input that is explained, of several; the others are fed as they are. None explains each, the
    second one by the output `saliency_map_2`."""
    kernel: KernelName = field(
        default="gaussian",
        metadata=_about(
            "ViT Recipro-CAM: 3x3 (default) or one patch.",
            "choice",
            choices=KERNELS,
        ),
    )
    """For ViT Recipro-CAM, what a masked sample keeps: `gaussian`, a 3x3 neighbourhood; `point`, one patch."""
    block: int | None = field(
        default=None,
        metadata=_about(
            "ViT Recipro-CAM: K-th last; LeGrad: last K.",
            "count",
            metavar="K",
            wrong="block counts from 1, the last, not {}",
        ),
    )
    """For ViT Recipro-CAM, which block with attention to mask, counted from the end, None for the last; for LeGrad, how
    many of the last blocks to sum over, None for four."""
    saliency_size: tuple[int, int] | None = field(
        default=None,
        metadata=_about(
            "Size of the map, instead of the method's own.",
            "size",
            metavar="HxW",
            for_all=True,
            wrong="saliency_size must be height and width, positive, not {}",
        ),
    )
    """Height and width of the map; None keeps the grid of the feature, or a quarter of the input's size for instance
    masks."""
    num_classes: int | None = field(
        default=None,
        metadata=_about(
            "Number of classes, where the model hides it.",
            "count",
            metavar="K",
            wrong="num_classes must be positive, not {}",
        ),
    )
    """Number of classes, where the model does not tell it."""
    reference: ReferenceName | None = field(
        default=None,
        metadata=_about("Embeddings: like what, itself or a new input.", "choice", choices=REFERENCES, decides=True),
    )
    """For embeddings, what the map says a place makes the image like: `self`, its own embedding, or `input`, what is
    fed as `reference` `[B, D]`, a new input; None takes `self` where the model is known to give an embedding."""
    class_embeddings: str | None = field(
        default=None,
        metadata=_about("Embeddings: one for each class, .npy [K, D].", "name", metavar="FILE", decides=True),
    )
    """For embeddings, a NumPy file with an embedding of each class `[K, D]`, of prompts say: a map of each."""
    score_threshold: float | None = field(
        default=None,
        metadata=_about(
            "Instance masks: drop lower scores.",
            "share",
            metavar="S",
            wrong="score_threshold must lie in 0..1, not {}",
        ),
    )
    """For instance masks, instances with a lower score add nothing; None for the model's own."""
    feature_vector: bool = field(
        default=False, metadata=_about("Also output feature_vector, the pooled feature.", "flag", for_all=True)
    )
    """Whether to add the pooled feature `[B, C]` as output `feature_vector`; of a detector the means of what its class
    heads (or its region head) read, the finest level first, side by side."""
    range: bool = field(
        default=False,
        metadata=_about("Also output saliency_range, raw extremes.", "flag", for_all=True),
    )
    """Whether to add the least and the greatest raw value of each map as output `saliency_range`, float32 `[B, K, 2]`
    (`[B, 2]` of one map for all classes): with them maps of bytes can be compared with one another."""
    top_k: int | None = field(
        default=None,
        metadata=_about(
            "Classifiers: maps of the K best classes only.",
            "count",
            metavar="K",
            wrong="top_k counts maps, not {}",
        ),
    )
    """For classifiers, how many maps: those of the best classes of each image, which the output `saliency_classes`
    names; None gives the map of every class, of methods that take derivatives that of the best one."""
    classes: tuple[int, ...] | None = field(
        default=None,
        metadata=_about(
            "Classifiers: maps of these classes only: 3,17.",
            "classes",
            metavar="LIST",
            wrong="classes are different numbers from 0 on, not {}",
        ),
    )
    """For classifiers, the numbers of the classes that get a map, in the order of the maps, in place of the
    best."""
    form: FormName = field(default="auto", metadata=_about("masked: what defines a map, run.", "choice", choices=FORMS))
    """For maps that are class scores under masks, `closed` wants the closed form and refuses a model that has none,
    `masked` runs the definition itself; `auto` takes the closed form where there is one."""
    mask_batch: int | None = field(
        default=None,
        metadata=_about(
            "Masked runs: masks at once, at most.", "count", metavar="M", wrong="mask_batch counts masks, not {}"
        ),
    )
    """For masked runs, how many masks are run at once, at most; None for 8, or fewer where their activations would take
    more than 256 MB."""
    per_box: bool = field(
        default=False, metadata=_about("Detectors: also a map of each reported box.", "flag", decides=True)
    )
    """For detectors, and segmenters with two stages, whether to add the output `saliency_map_per_box` `[B, M, h, w]`, a
    map of each detection that the model reports."""
    input_shapes: Mapping[str, Shape] = field(
        default_factory=dict,
        metadata=_about(
            "Fix sizes of an input; ? is open. Repeatable.",
            "shapes",
            metavar="NAME:N,C,H,W",
            flag="--input-shape",
            for_all=True,
        ),
    )
    """Sizes to fix in the model, by input name; None stays dynamic."""
    check: bool = field(
        default=True,
        metadata=_about("Write without comparing before and after.", "flag", flag="--no-check", for_all=True),
    )
    """Whether to run the plain and the inserted model and refuse a model that does not behave as promised."""
    check_in: RuntimeName = field(
        default="own",
        metadata=_about("openvino: check an ONNX result there as well.", "choice", choices=RUNTIMES, for_all=True),
    )
    """Whether the check also has OpenVINO, where it is installed, read and run what was inserted into an ONNX model;
    importing it takes longer than a small insertion."""
    given: tuple[str, ...] | None = None
    """Names of the options that were set on purpose, though perhaps to their default: a model for which one of them
    does nothing is refused. None: those that differ from their defaults."""

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            _require_value(name, option, getattr(self, name))
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


def _require_value(name: str, option: Option, value: Any) -> None:
    """Refuse what an option cannot be."""
    if option.choices and value not in (*option.choices, getattr(Options, name)):
        raise ValueError(f"{name} must be one of {', '.join(option.choices)}, not {value!r}")
    if option.wrong and value is not None and not _MAY_BE[option.kind](value):
        raise ValueError(option.wrong.format(repr(value)))
    if option.kind == "flag" and not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}")


_OF_THE_CALL = frozenset({"input_shapes", "check", "check_in", "given", "class_embeddings"})
"""Options of which nothing is seen in the inserted model, or which are part of its inputs or its constants."""

OPTIONS: dict[str, Option] = {
    item.name: cast("Option", item.metadata["option"]) for item in fields(Options) if "option" in item.metadata
}
"""Every option, by the name of its field."""
EVERY_METHOD = frozenset(name for name, option in OPTIONS.items() if option.for_all)
"""Those that every method goes by."""
DECIDING = frozenset(name for name, option in OPTIONS.items() if option.decides)
"""Those that say what kind of model is meant."""


def flag(name: str) -> str:
    """What the command line calls an option, `--top-k`."""
    return OPTIONS[name].flag or f"--{name.replace('_', '-')}"


def settled(options: Any) -> Options:
    """The options that were given, or the default of all for None.

    Raises:
        ValueError: it is something else.
    """
    if options is not None and not isinstance(options, Options):
        raise ValueError(f"options must be Options(...), not a {type(options).__name__}")
    return options or Options()
