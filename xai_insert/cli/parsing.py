"""Option types shared by the command lines."""

from __future__ import annotations

import click

from xai_insert.graph.shape import Shape


class InputShapeType(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    """`NAME:1,3,224,224`; `?` or `-1` leaves a size open."""

    name = "NAME:N,C,H,W"

    def convert(
        self, value: str | tuple[str, Shape], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Shape]:
        if isinstance(value, tuple):
            return value
        name, separator, sizes = value.rpartition(":")
        try:
            shape = tuple(None if size.strip() in ("?", "-1") else int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not separator or not name or not shape or any(size is not None and size < 1 for size in shape):
            self.fail(f"{value!r} is not NAME:N,C,H,W, for example image:1,3,224,224", param, ctx)
        return name, shape


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    """`HxW`, both positive."""

    name = "HxW"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        height, _, width = value.lower().partition("x")
        if not height.isdecimal() or not width.isdecimal() or min(int(height), int(width)) < 1:
            self.fail(f"{value!r} is not HxW, for example 56x56", param, ctx)
        return int(height), int(width)


class CountType(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    """A whole number above zero; shorter in the help than click's own range."""

    name = "K"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if (isinstance(value, str) and not value.isdecimal()) or int(value) < 1:
            self.fail(f"{value!r} is not a whole number above 0", param, ctx)
        return int(value)


class ClassesType(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    """Numbers of classes, `3,17,281`."""

    name = "LIST"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() for part in parts) or len({int(part) for part in parts}) < len(parts):
            self.fail(f"{value!r} is not a list of different classes, for example 3,17,281", param, ctx)
        return tuple(map(int, parts))


INPUT_SHAPE = InputShapeType()
SIZE = SizeType()
COUNT = CountType()
CLASSES = ClassesType()
