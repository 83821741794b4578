"""Option types shared by the command lines."""

from __future__ import annotations

from typing import Any

import click

from xai_insert.graph.shape import Shape


class _Told(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    """A type whose values are tuples, of which defaults are already."""

    wanted: str

    def convert(self, value: str | tuple[Any, ...], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        read = value if isinstance(value, tuple) else self.read(value)
        if read is None:
            self.fail(f"{value!r} is not {self.wanted}", param, ctx)
        return read

    def read(self, text: str) -> tuple[Any, ...] | None:
        """The value; None if the text is none."""
        raise NotImplementedError


class InputShapeType(_Told):
    """`NAME:1,3,224,224`; `?` or `-1` leaves a size open."""

    name = "NAME:N,C,H,W"
    wanted = "NAME:N,C,H,W, for example image:1,3,224,224"

    def read(self, text: str) -> tuple[str, Shape] | None:
        name, _, sizes = text.rpartition(":")
        try:
            shape = tuple(None if size.strip() in ("?", "-1") else int(size) for size in sizes.split(","))
        except ValueError:
            return None
        return (name, shape) if name and all(size is None or size > 0 for size in shape) else None


class SizeType(_Told):
    """`HxW`, both positive."""

    name = "HxW"
    wanted = "HxW, for example 56x56"

    def read(self, text: str) -> tuple[int, int] | None:
        height, _, width = text.lower().partition("x")
        sides = [int(side) for side in (height, width) if side.isdecimal()]
        return (sides[0], sides[1]) if len(sides) == 2 and min(sides) > 0 else None


class CountType(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    """A whole number above zero; shorter in the help than click's own range."""

    name = "K"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if (isinstance(value, str) and not value.isdecimal()) or int(value) < 1:
            self.fail(f"{value!r} is not a whole number above 0", param, ctx)
        return int(value)


class ClassesType(_Told):
    """Numbers of classes, `3,17,281`."""

    name = "LIST"
    wanted = "a list of different classes, for example 3,17,281"

    def read(self, text: str) -> tuple[int, ...] | None:
        parts = [part.strip() for part in text.split(",")]
        numbers = tuple(int(part) for part in parts if part.isdecimal())
        return numbers if len(set(numbers)) == len(parts) else None


INPUT_SHAPE = InputShapeType()
SIZE = SizeType()
COUNT = CountType()
CLASSES = ClassesType()
