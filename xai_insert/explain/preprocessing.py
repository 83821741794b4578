"""From an image to the model's input, and back from the input's area to the image's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import cv2
import numpy as np

from xai_insert.explain.draw import Image
from xai_insert.explain.errors import PreprocessingError
from xai_insert.explain.outputs import Array

Box = tuple[float, float, float, float]
Resize = Literal["fit", "letterbox", "corner", "crop"]

RESIZES: tuple[str, ...] = get_args(Resize)
LAYOUTS = ("NCHW", "NHWC")

PREPROCESSING_KEYS = frozenset(
    ("mean_values", "scale_values", "reverse_input_channels", "resize_type", "embedded_processing")
)

_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_RESIZE_TYPES: dict[str, Resize] = {
    "standard": "fit",
    "fit_to_window": "corner",
    "fit_to_window_letterbox": "letterbox",
    "crop": "crop",
}
_INTERPOLATIONS = {"LINEAR": cv2.INTER_LINEAR, "CUBIC": cv2.INTER_CUBIC, "NEAREST": cv2.INTER_NEAREST}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input.

    Attributes:
        mean: subtracted per channel, in the model's channel order; one value stands for all channels.
        scale: divides per channel after that.
        bgr: whether the model takes BGR instead of RGB.
        resize: `fit` stretches; `letterbox` keeps the aspect and pads around, `corner` pads right and below;
            `crop` cuts the largest centred area of the input's aspect.
        pad_value: value of the padding, 0..255.
        interpolation: OpenCV's interpolation flag; None averages when shrinking and is linear when enlarging.
        embedded: whether the model does all this itself and takes the image as it was stored (BGR).
    """

    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    bgr: bool = False
    resize: Resize = "fit"
    pad_value: int = 0
    interpolation: int | None = None
    embedded: bool = False

    def text(self) -> str:
        """One line for people."""
        values = [(name, getattr(self, name)) for name in ("mean", "scale")]
        listed = [f"{name} {', '.join(f'{value:g}' for value in numbers)}" for name, numbers in values if numbers]
        return ", ".join([f"resize {self.resize}", "BGR" if self.bgr else "RGB", *(listed or ["values 0..255"])])


@dataclass(frozen=True)
class View:
    """Which part of the image the model sees, and where in its input; both as x0, y0, x1, y1 in 0..1 of the whole."""

    in_image: Box = _WHOLE
    in_input: Box = _WHOLE


def from_metadata(info: Mapping[str, str], by_model_api: bool, given: Mapping[str, Any]) -> Preprocessing:
    """Read the keys that Model API defines.

    Args:
        info: `mean_values`, `scale_values`, `reverse_input_channels`, `resize_type`, `pad_value`,
            `interpolation_mode`, `embedded_processing`; each may be missing.
        by_model_api: whether the metadata is Model API's own, so that its defaults hold: BGR unless
            `reverse_input_channels` says otherwise, linear interpolation.
        given: attributes of `Preprocessing` that the user has chosen instead; None leaves the model's own.

    Raises:
        PreprocessingError: a value cannot be understood.
    """
    chosen = {key: value for key, value in given.items() if value is not None}
    resize = _RESIZE_TYPES.get(name := info.get("resize_type", "standard"))
    if resize is None and "resize" not in chosen:
        raise PreprocessingError(
            f"the model's metadata asks for resize_type {name!r}, wanted one of {', '.join(_RESIZE_TYPES)}; "
            "choose with --resize"
        )
    flag = info.get("reverse_input_channels", str(not by_model_api))
    interpolation = info.get("interpolation_mode", "LINEAR" if by_model_api else "")
    own = Preprocessing(
        mean=_numbers(info, "mean_values"),
        scale=_numbers(info, "scale_values"),
        bgr=not is_true(flag),
        resize=resize or "fit",
        pad_value=int((_numbers(info, "pad_value") or (0,))[0]),
        interpolation=_INTERPOLATIONS.get(interpolation.upper()),
        embedded=is_true(info.get("embedded_processing", "")),
    )
    return replace(own, **chosen)


def is_true(text: str) -> bool:
    """Whether a metadata value means yes."""
    return text.strip().lower() in ("true", "yes", "1")


def _numbers(info: Mapping[str, str], key: str) -> tuple[float, ...]:
    text = info.get(key, "")
    try:
        return tuple(float(item) for item in re.split(r"[\s,\[\]()]+", text) if item)
    except ValueError:
        raise PreprocessingError(f"the model's metadata has {key} {text!r}, wanted numbers") from None


def prepare(image: Image, how: Preprocessing, size: tuple[int, int], channels: int) -> tuple[Array, View]:
    """Turn an image into the model's input.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        how: see `Preprocessing`.
        size: height and width of the input.
        channels: 3, or 1 for a model of grey images.

    Returns:
        uint8 or float32 `[height, width, channels]`, and the area of the image it shows.
    """
    pixels, view = _resize(image, how, size)
    if channels == 1:
        pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)[..., None]
    elif how.bgr or how.embedded:
        pixels = pixels[..., ::-1]
    if how.embedded or not (how.mean or how.scale):
        return pixels, view
    mean, scale = (_per_channel(values, channels) for values in (how.mean or (0.0,), how.scale or (1.0,)))
    return (pixels - mean) / scale, view


def unprepared(pixels: Array, how: Preprocessing) -> Image:
    """An input `[height, width, channels]` as uint8 RGB `[height, width, 3]`: `prepare` undone, but for its size."""
    channels, values = pixels.shape[-1], pixels.astype(np.float32)
    if not how.embedded and (how.mean or how.scale):
        mean, scale = (_per_channel(values, channels) for values in (how.mean or (0.0,), how.scale or (1.0,)))
        values = values * scale + mean
    colours = np.asarray(values.round().clip(0, 255), np.uint8)
    if channels != 3:
        return np.repeat(colours[..., :1], 3, axis=-1)
    return np.ascontiguousarray(colours[..., ::-1] if how.bgr or how.embedded else colours)


def _per_channel(values: tuple[float, ...], channels: int) -> Array:
    if len(values) not in (1, channels):
        raise PreprocessingError(f"{len(values)} values of mean or scale do not fit {channels} channels")
    return np.asarray(values, np.float32)


def _resize(image: Image, how: Preprocessing, size: tuple[int, int]) -> tuple[Image, View]:
    height, width = size
    rows, columns = image.shape[:2]
    if (rows, columns) == size:
        return image, View()
    if how.resize == "fit":
        return _scaled(image, width, height, how.interpolation), View()
    if how.resize == "crop":
        return _crop(image, size, how.interpolation)
    ratio = min(width / columns, height / rows)
    inner_w, inner_h = max(1, round(columns * ratio)), max(1, round(rows * ratio))
    left, top = ((width - inner_w) // 2, (height - inner_h) // 2) if how.resize == "letterbox" else (0, 0)
    padded = np.full((height, width, 3), how.pad_value, np.uint8)
    padded[top : top + inner_h, left : left + inner_w] = _scaled(image, inner_w, inner_h, how.interpolation)
    area = (left / width, top / height, (left + inner_w) / width, (top + inner_h) / height)
    return padded, View(in_input=area)


def _crop(image: Image, size: tuple[int, int], interpolation: int | None) -> tuple[Image, View]:
    height, width = size
    rows, columns = image.shape[:2]
    ratio = max(width / columns, height / rows)
    cut_w, cut_h = min(columns, max(1, round(width / ratio))), min(rows, max(1, round(height / ratio)))
    left, top = (columns - cut_w) // 2, (rows - cut_h) // 2
    part = np.ascontiguousarray(image[top : top + cut_h, left : left + cut_w])
    area = (left / columns, top / rows, (left + cut_w) / columns, (top + cut_h) / rows)
    return _scaled(part, width, height, interpolation), View(in_image=area)


def _scaled(image: Image, width: int, height: int, interpolation: int | None) -> Image:
    if interpolation is None:
        shrinks = width < image.shape[1] or height < image.shape[0]
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)
