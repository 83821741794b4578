"""Which graph inputs are images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from xai_insert.errors import NotVisionModelError, ShapeUnknownError, UnknownNameError
from xai_insert.graph.cuts import activations
from xai_insert.graph.items import only
from xai_insert.graph.operators import Permutation
from xai_insert.graph.shape import holds_pixels
from xai_insert.graph.traits import ARITHMETIC, UNCHANGED
from xai_insert.graph.view import Graph, Op, Shape, Use, Value, format_shape

_MOST_CHANNELS = 16
_LEAST_SIDE = 8
_COLOURS = 3
_SCALES = UNCHANGED | ARITHMETIC
_READERS = 4  # followed of each value


def image_inputs(graph: Graph) -> list[Value]:
    """Every input that holds images, or clips of them: a few channels, two sides, and an axis of frames maybe.

    Of a view that watches one of them, that one.

    Raises:
        NotVisionModelError: if there is none.
        ShapeUnknownError: if an input without a known rank might be one.
    """
    if graph.watched is not None:
        return [graph.watched]
    found = [value for value in graph.inputs if _is_image(value)]
    found = found or [value for value in graph.inputs if _has_many_channels(value)]
    if not found:
        raise _no_image(graph)
    return found


def _no_image(graph: Graph) -> NotVisionModelError | ShapeUnknownError:
    """The error for a model without an input of images, with what is there instead."""
    unknown = [value for value in graph.inputs if value.shape is None]
    if unknown:
        name = unknown[0].name
        return ShapeUnknownError(f"input {name!r} has no known rank; give its sizes: --input-shape {name}:1,3,224,224")
    files = [value.name for value in graph.inputs if value.rank == 1 and value.dtype in ("uint8", "string", "object")]
    if files:
        return NotVisionModelError(
            f"no image input: {files[0]!r} may be the bytes of an image file, which the model decodes; insert into the "
            "model without that part, and put it in front again"
        )
    listed = ", ".join(f"{value.describe()} {value.dtype}" for value in graph.inputs) or "no input at all"
    square = [value for value in graph.inputs if value.rank == 5 and {*value.sizes[1:3]} <= {1, _COLOURS}]
    return NotVisionModelError(
        f"{square[0].describe()} may be clips, but which axis holds channels and which frames cannot be told where "
        "each has 1 or 3: export the model with another number of frames"
        if square
        else "no image input: wanted one of rank 4 such as [N, 3, H, W], or of clips such as [N, 3, T, H, W], "
        f"found {listed}; only vision models fit"
    )


def watching(graph: Graph, name: str | None) -> list[Graph]:
    """The model with one image input watched at a time: that of the name, or each; one view as it is of only one.

    Raises:
        UnknownNameError: no image input has that name.
        NotVisionModelError: see `image_inputs`, as for `ShapeUnknownError`.
    """
    images = image_inputs(graph)
    if name is None:
        return [graph] if len(images) == 1 else [replace(graph, watched=image) for image in images]
    chosen = [image for image in images if image.name == name]
    if not chosen:
        raise UnknownNameError("image input", name, [image.name for image in images])
    return [replace(graph, watched=chosen[0])]


def _is_image(value: Value) -> bool:
    shape, is_float = value.shape, "float" in value.dtype
    if shape is None:
        return False
    if len(shape) == 5 and is_float:
        return _clip_axes(shape) is not None
    is_of_pixels = len(shape) == 4 and (is_float or holds_pixels(shape, value.dtype))
    return is_of_pixels and any(_is_layout(shape, channel) for channel in (1, 3))


def _has_many_channels(value: Value) -> bool:
    """Whether an input has bands, as spectral cameras give them, or frames; beside an image they may be a state."""
    return "float" in value.dtype and (_is_convolved(value) or frames_in_channels(value) is not None)


def _is_layout(shape: Shape, channel: int) -> bool:
    channels = shape[channel]
    sides = [size for axis, size in enumerate(shape) if axis not in (0, channel)]
    few = channels is None or channels <= _MOST_CHANNELS
    return few and all(side is None or side >= _LEAST_SIDE for side in sides)


_CLIPS = {1: (2, 3, 4), 2: (1, 3, 4), 4: (1, 2, 3)}  # the axis of the channels: those of frames, rows, columns


def _clip_axes(shape: Shape) -> tuple[int, int, int] | None:
    """Axes of frames, rows and columns of clips, whose channels are one or three; None where they cannot be told."""
    found = [
        axes
        for channel, axes in _CLIPS.items()
        if shape[channel] in (1, 3)
        and all(shape[axis] is None or (shape[axis] or 0) >= _LEAST_SIDE for axis in axes[1:])
    ]
    return only(found)


def time_axis(image: Value) -> int | None:
    """The axis of the frames of a clip; None for images."""
    axes = _clip_axes(image.sizes) if image.rank == 5 else None
    return None if axes is None else axes[0]


def frames_in_channels(image: Value) -> int | None:
    """How many frames of three channels stand one behind the other in the channels of an image; None for one frame.

    A reshape takes them out, as temporal segment networks do: `[N, T * 3, H, W]` to `[N * T, 3, H, W]`.
    """
    if image.rank != 4 or not (channels := image.sizes[1]) or channels % _COLOURS or channels == _COLOURS:
        return None
    frame = (_COLOURS, *image.sizes[2:])
    is_taken_apart = any(_makes_frames(use, value, frame) for value in _scaled(image) for use in value.uses)
    return channels // _COLOURS if is_taken_apart else None


def _makes_frames(use: Use, value: Value, frame: Shape) -> bool:
    """Whether a reshape of a value takes images of these sizes out of its channels."""
    is_reshaped = use.node.op is Op.RESHAPE and use.node.read(0) is value
    return is_reshaped and bool(use.node.output.rank) and use.node.output.sizes[-3:] == frame


def image_axes(image: Value) -> tuple[int, int]:
    """Axes of height and width of an image input."""
    axes = _clip_axes(image.sizes) if image.rank == 5 else None
    if axes is not None:
        return axes[1:]
    is_first = _is_layout(image.sizes, 1) and not _is_moved_first(image)
    return (2, 3) if is_first or _is_convolved(image) or frames_in_channels(image) else (1, 2)


def _is_convolved(image: Value) -> bool:
    """Whether a convolution reads an image as it is, or scaled: its second axis is that of the channels."""
    reads = (use.node for value in _scaled(image) for use in value.uses if use.index == 0)
    return image.rank == 4 and any(node.op is Op.CONV for node in reads)


def _scaled(image: Value) -> Iterator[Value]:
    """An image, and what it is once it is scaled."""
    ahead = [image]
    for value in ahead:
        yield value
        readers = [use.node for use in value.uses]
        ahead += [node.output for node in readers if node.op in _SCALES and len(node.computed) == 1][:_READERS]


def _is_moved_first(image: Value) -> bool:
    """Whether the last axis of an image may be of channels, and all that reads it moves it before the rows first."""
    readers = [use.node for use in image.uses if use.node.op is not Op.SHAPE]
    perms = [node.kind.perm for node in readers if isinstance(node.kind, Permutation)]
    return (
        _is_layout(image.sizes, 3) and 0 < len(readers) == len(perms) and all(perm and perm[1] == 3 for perm in perms)
    )


def sized_axes(image: Value) -> tuple[int, ...]:
    """Axes of an image input beside the batch and the channels: of frames, in clips; of rows and of columns."""
    times = time_axis(image)
    return (*(() if times is None else (times,)), *image_axes(image))


def image_size(image: Value) -> tuple[int, int] | None:
    """Height and width of an image input; None if they are not known."""
    height, width = (image.sizes[axis] for axis in image_axes(image))
    return None if height is None or width is None else (height, width)


def shape_hint(graph: Graph) -> str:
    """How to give the sizes that are unknown, for error messages."""
    for value in image_inputs(graph):
        if value.shape is not None and None in value.shape[1:]:
            sizes = [1 if axis == 0 else size for axis, size in enumerate(value.shape)]
            text = format_shape(tuple(sizes))[1:-1].replace(" ", "").replace("?", "224")
            return f"give the sizes of the input: --input-shape {value.name}:{text}"
    return "choose another with --target-layer"


def open_hint(graph: Graph) -> str:
    """The same behind another sentence; empty where all sizes are known but the batch."""
    is_open = any(None in image.sizes[1:] for image in image_inputs(graph))
    return f"; {shape_hint(graph)}" if is_open else ""


def outputs_of_image(graph: Graph) -> list[Value]:
    """The outputs that the watched image leads to, of several; else all of them."""
    if graph.watched is None:
        return list(graph.outputs)
    reached = activations(graph, [graph.watched])
    return [value for value in graph.outputs if value in reached]
