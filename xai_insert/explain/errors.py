"""Errors of the runs on images."""

from __future__ import annotations

from xai_insert.errors import XaiInsertError


class ImageFileError(XaiInsertError):
    """An image is missing, damaged or of an unknown kind."""


class PreprocessingError(XaiInsertError):
    """How to turn an image into the model's input is not known, or was said wrongly."""


class RunError(XaiInsertError):
    """The model cannot be run on the device, or its results cannot be written."""


class UnknownLayoutError(XaiInsertError):
    """The outputs of a detector or segmenter are not such that boxes can be read from them."""
