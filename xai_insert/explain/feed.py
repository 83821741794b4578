"""The model's input from an image: layout, size and type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xai_insert.explain.draw import Image
from xai_insert.explain.errors import PreprocessingError
from xai_insert.explain.outputs import Array
from xai_insert.explain.preprocessing import Preprocessing, View, prepare, unprepared
from xai_insert.explain.shown import ImageInput


@dataclass(frozen=True)
class Feeder:
    """Makes inputs of a fixed layout, size and type.

    Attributes:
        how: the preprocessing.
        layout: `NCHW` or `NHWC`; of clips `NCTHW`, `NTCHW` or `NTHWC`.
        batch: images per input; a fixed batch is filled with copies.
        channels: 1 or 3.
        size: height and width; None takes each image at its own size.
        dtype: NumPy type of the input.
        frames: of a clip; None for images.
    """

    how: Preprocessing
    layout: str
    batch: int
    channels: int
    size: tuple[int, int] | None
    dtype: str
    frames: int | None = None

    @classmethod
    def of(
        cls, model: ImageInput, how: Preprocessing, layout: str | None = None, size: tuple[int, int] | None = None
    ) -> Feeder:
        """Fit to a model.

        Args:
            model: its input.
            how: the preprocessing.
            layout: None takes the model's own, or finds the channels by their number.
            size: height and width where the model leaves them open.

        Raises:
            PreprocessingError: the input's layout, channels or size cannot be told.
        """
        frames = None
        if len(model.shape) == 5:
            layout, frames = _of_clips(model, layout)
        layout = layout or _layout(model)
        batch, channels, height, width = (model.shape[layout.index(axis)] for axis in "NCHW")
        if channels not in (1, 3, None):
            raise PreprocessingError(
                f"wanted an input with 1 or 3 channels, found {channels} in {list(model.shape)} read as {layout}; "
                "the other order is --layout " + ("NHWC" if layout == "NCHW" else "NCHW")
            )
        fixed = None if height is None or width is None else (height, width)
        size = _size(model, fixed, size, needs_one=not how.embedded)
        return cls(how, layout, batch or 1, channels or 3, size, model.dtype, frames)

    def feed(self, image: Image) -> tuple[Array, View]:
        """Turn uint8 RGB `[H, W, 3]` into an input, and say which area of the image it shows."""
        feed, (view,) = self.stack([image])
        return feed, view

    def stack(self, images: Sequence[Image]) -> tuple[Array, list[View]]:
        """Turn images into one input; where the model's batch is larger, the last is repeated."""
        if self.frames is not None:
            raise PreprocessingError(f"the model takes clips of {self.frames} frames: give a video")
        parts, views = self._prepared(images)
        parts = [pixels.transpose(2, 0, 1) if self.layout == "NCHW" else pixels for pixels in parts]
        parts += [parts[-1]] * (self.batch - len(parts))
        return np.ascontiguousarray(np.stack(parts), dtype=self.dtype), views

    def clip(self, images: Sequence[Image]) -> tuple[Array, View]:
        """Turn the frames of a clip into one input; of fewer than it takes, the last is repeated."""
        parts, views = self._prepared(images)
        parts += [parts[-1]] * ((self.frames or 0) - len(parts))
        frames = np.stack(parts).transpose(["THWC".index(axis) for axis in self.layout[1:]])
        return np.ascontiguousarray(np.stack([frames] * self.batch), dtype=self.dtype), views[0]

    def _prepared(self, images: Sequence[Image]) -> tuple[list[Array], list[View]]:
        """Pixels `[H, W, C]` at the model's size."""
        parts, views = [], []
        for image in images:
            pixels, view = prepare(image, self.how, self.size or (image.shape[0], image.shape[1]), self.channels)
            parts.append(pixels)
            views.append(view)
        return parts, views

    def picture(self, fed: Array) -> Image:
        """What an image of the model's other inputs looks like: the preparation of this one's, undone.

        Args:
            fed: the input, `[N, C, H, W]` or `[N, H, W, C]`; the first image is taken.

        Returns:
            uint8 RGB `[H, W, 3]`.
        """
        is_last = fed.shape[3] in (1, 3) and fed.shape[1] not in (1, 3)
        return unprepared(fed[0] if is_last else fed[0].transpose(1, 2, 0), self.how)

    def text(self) -> str:
        """One line for people."""
        size = "own size" if self.size is None else f"{self.size[0]}x{self.size[1]}"
        return f"{self.layout} {size}, {'embedded preprocessing' if self.how.embedded else self.how.text()}"


def _layout(model: ImageInput) -> str:
    if model.layout in ("NCHW", "NHWC"):
        return model.layout
    first, last = model.shape[1], model.shape[3]
    return "NHWC" if last in (1, 3) and first not in (1, 3) else "NCHW"


def _of_clips(model: ImageInput, layout: str | None) -> tuple[str, int]:
    """The layout of an input of clips, and how many frames it takes."""
    if layout:
        raise PreprocessingError("--layout is for images, and the model takes clips")
    found = _clip_layout(model)
    frames = model.shape[found.index("T")]
    if frames is None:
        raise PreprocessingError(
            f"the input {model.name!r} leaves the number of frames open: fix it when the map is inserted, for "
            "example xai-insert --input-shape"
        )
    return found, frames


def _clip_layout(model: ImageInput) -> str:
    """The layout whose channels are one or three.

    Raises:
        PreprocessingError: none is, or several.
    """
    found = [layout for layout in ("NCTHW", "NTCHW", "NTHWC") if model.shape[layout.index("C")] in (1, 3)]
    if len(found) != 1:
        raise PreprocessingError(f"wanted clips with 1 or 3 channels on one axis, found {list(model.shape)}")
    return found[0]


def _size(
    model: ImageInput, fixed: tuple[int, int] | None, wanted: tuple[int, int] | None, *, needs_one: bool
) -> tuple[int, int] | None:
    """Height and width of the input: the model's own, or those that are wanted where it leaves them open."""
    if fixed and wanted and fixed != wanted:
        raise PreprocessingError(f"the model's input is {fixed[0]}x{fixed[1]}: leave out --input-size")
    size = fixed or wanted
    if not size and needs_one:
        raise PreprocessingError(
            f"the input {model.name!r} has no fixed size: say at which size to run the model, "
            "for example --input-size 224x224"
        )
    return size
