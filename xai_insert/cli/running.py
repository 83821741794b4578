"""Options of the commands that run a model on images: what runs it, and how an image becomes its input."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import click

from xai_insert.explain.preprocessing import LAYOUTS, RESIZES
from xai_insert.explain.runtime import RUNTIMES

_Function = TypeVar("_Function", bound=Callable[..., None])


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    try:
        return None if value is None else tuple(float(item) for item in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a number or numbers such as 123.7,116.3,103.5", ctx, param
        ) from None


def _scale(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    numbers = _numbers(ctx, param, value)
    if numbers and 0 in numbers:
        raise click.BadParameter("images are divided by it, so it cannot be 0", ctx, param)
    return numbers


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", value)
    if not match:
        raise click.BadParameter(f"{value!r} is not height x width, for example 224x224", ctx, param)
    return int(match[1]), int(match[2])


_OPTIONS = (
    click.option("--runtime", type=click.Choice(RUNTIMES), help="Default: openvino for .xml, onnxruntime for .onnx."),
    click.option("--device", default="CPU", show_default=True, help="Device, as the runtime calls it."),
    click.option("--mean", callback=_numbers, metavar="R,G,B", help="Subtract from the image's 0..255."),
    click.option("--scale", callback=_scale, metavar="R,G,B", help="Divide by, after that."),
    click.option("--channels", type=click.Choice(("rgb", "bgr")), help="Order of the model's channels."),
    click.option("--layout", type=click.Choice(LAYOUTS), help="Order of the input's axes."),
    click.option(
        "--resize", type=click.Choice(RESIZES),
        help="fit: stretch; letterbox: pad around; corner: pad right and below; crop: cut the centre.",
    ),
    click.option(
        "--input-size", callback=_size, metavar="HxW", help="Size to run at, if the model leaves it open."
    ),
)  # fmt: skip


def run_options(function: _Function) -> _Function:
    """Give a command `runtime`, `device`, `mean`, `scale`, `channels`, `layout`, `resize` and `input_size`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
