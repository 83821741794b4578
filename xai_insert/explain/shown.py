"""Which outputs belong to the image that is explained, and which to other images that are fed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xai_insert.explain.outputs import OF_ANOTHER, OWN, SALIENCY_MAP, Array, OtherImage, Outputs, read_outputs
from xai_insert.layouts.record import Layout

_NONE = "none"


@dataclass(frozen=True)
class ImageInput:
    """The model's image input: sizes (None is open), NumPy type, and layout if the model names it."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    layout: str | None = None


@dataclass(frozen=True)
class ShownOutputs:
    """Reads the outputs of one inference for the image that is explained, and for those that are fed.

    Attributes:
        names: the outputs' names, see `_names_for`.
        fed: by input.
        layout: what the predictions mean.
        others: of each image that is fed and has maps of its own: its input, names and rectangle.
    """

    names: Sequence[str]
    fed: Mapping[str, Array]
    layout: Layout
    others: Sequence[tuple[str, Sequence[str], tuple[float, ...] | None]]

    @classmethod
    def of(
        cls,
        shown: ImageInput,
        inputs: Sequence[ImageInput],
        fed: Mapping[str, Array],
        names: Sequence[str],
        about: Mapping[str, str],
    ) -> ShownOutputs:
        """Read what the metadata say of each image input."""
        arrays = {item.name: np.asarray(fed[item.name], item.dtype) for item in inputs if item.name in fed}
        own, suffixes = _names_for(shown.name, names, about), _suffixes(about)
        others = []
        for suffix, name in suffixes.items():
            if name in arrays and f"{SALIENCY_MAP}{suffix}" in names:
                about_it = {"rectangle": about.get(f"rectangle{suffix}", _NONE)}
                others.append((name, _names_for(name, names, about), Layout.read(about_it, 0).rectangle))
        if suffix := next((key for key, name in suffixes.items() if name == shown.name), ""):
            about = {**about, "rectangle": about.get(f"rectangle{suffix}", _NONE)}
        return cls(own, arrays, Layout.read(about, _predictions(own)), others)

    def __call__(self, results: Sequence[Array]) -> Outputs:
        others = [
            OtherImage(name, self.fed[name], read_outputs(results, names), rectangle)
            for name, names, rectangle in self.others
        ]
        return replace(read_outputs(results, self.names), others=others)


def _suffixes(about: Mapping[str, str]) -> dict[str, str]:
    """Image inputs that have maps of their own, by the suffix of what is said about them."""
    return {key.removeprefix("input"): name for key, name in about.items() if re.fullmatch(r"input(_\d+)?", key)}


def _names_for(shown: str, names: Sequence[str], about: Mapping[str, str]) -> list[str]:
    """The outputs' names as if the model had no other image: without the suffix of what is said about the one shown."""
    inputs = _suffixes(about)
    suffix = next((key for key, name in inputs.items() if name == shown), "")
    own = {f"{name}{suffix}": name for name in OWN}
    others = {f"{name}{key}" for name in OWN for key in inputs} - set(own)
    return [own.get(name, f"{OF_ANOTHER}{name}" if name in others else name) for name in names]


def _predictions(names: Sequence[str]) -> int:
    """How many outputs are the model's own, of names as `read_outputs` takes them."""
    return sum(name not in OWN and not name.startswith(OF_ANOTHER) for name in names)
