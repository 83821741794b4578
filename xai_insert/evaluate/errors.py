"""Errors of measuring."""

from __future__ import annotations

from xai_insert.errors import XaiInsertError


class AnnotationError(XaiInsertError):
    """Annotations are missing, damaged, or those of other images or classes."""
