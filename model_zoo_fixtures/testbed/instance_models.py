"""Small segmenters in the layouts of real exports; the brighter the image, the more instances they find."""

from __future__ import annotations

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH = 32, 40
CLASSES = 5
DEPTH = 6
CANDIDATES = 8
LOCATIONS = 60


class Builder:
    """Appends nodes to a graph."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array, dtype=np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype), name))
        return name

    def random(self, *shape, scale=1.0) -> str:
        return self.constant(self.rng.standard_normal(shape) * scale)

    def node(self, kind, *inputs, outputs=1, **attributes):
        names = [f"n{len(self.nodes)}_{index}" for index in range(outputs)]
        operands = [self.constant(i) if isinstance(i, (float, np.ndarray)) else i for i in inputs]
        self.nodes.append(helper.make_node(kind, operands, names, name=f"node{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def ints(self, *numbers) -> str:
        return self.constant(numbers, np.int64)

    def reshape(self, value, *sizes):
        return self.node("Reshape", value, self.ints(*sizes))

    def slice(self, value, axis, start, end):
        return self.node("Slice", value, self.ints(start), self.ints(end), self.ints(axis))

    def brightness(self, rank):
        """Mean of each image, `[B, 1, ...]`."""
        mean = self.node("ReduceMean", "image", axes=[1, 2, 3], keepdims=1)
        return self.reshape(mean, -1, *[1] * (rank - 1))

    def model(self, outputs, batch=1):
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, HEIGHT, WIDTH])
        results = []
        for name, value in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name], name=f"to_{name}"))
            results.append(helper.make_empty_tensor_value_info(name))
        graph = helper.make_graph(self.nodes, "segmenter", [image], results, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        kinds = {value.name: value.type for value in inferred.graph.value_info}
        for result, value in zip(model.graph.output, outputs.values(), strict=True):
            result.type.CopyFrom(kinds[value])
        return model


def boxes_in_pixels(rng, count):
    """Corners of boxes, some of which reach over the border."""
    centre = rng.uniform((0, 0), (WIDTH, HEIGHT), (count, 2))
    half = rng.uniform(2, 10, (count, 2))
    return np.concatenate([centre - half, centre + half], axis=1)


def listed(layout):
    """One entry for each instance.

    `pasted`: 1-based labels, masks of the image; `boxes`: the same with masks of boxes; `background-last`: boxes with
    scores, 0-based labels, masks of boxes; `sigmoid`: boxes with scores, masks of the image.
    """
    b = Builder()
    exclusive = layout != "sigmoid"
    width = CLASSES + exclusive
    state = b.node("Mul", b.random(CANDIDATES, 7, scale=3.0), b.brightness(2))
    logits = b.node("MatMul", state, b.random(7, width))
    if exclusive:
        scores = b.node("Softmax", logits, axis=1)
        first = 0 if layout == "background-last" else 1
        scores = b.slice(scores, 1, first, first + CLASSES)
    else:
        scores = b.node("Sigmoid", b.node("Sub", logits, 1.0 * np.ones(1)))
        first = 0
    best = b.node("ReduceMax", scores, axes=[1], keepdims=0)
    labels = b.node("Add", b.node("ArgMax", scores, axis=1, keepdims=0), b.ints(first))
    kept = b.reshape(b.node("NonZero", b.node("Greater", best, 0.6 * np.ones(1))), -1)
    boxes = b.node("Gather", b.constant(boxes_in_pixels(b.rng, CANDIDATES)), kept, axis=0)
    labels, best = (b.node("Gather", value, kept, axis=0) for value in (labels, best))
    if layout in ("boxes", "background-last"):
        feature = b.node("Conv", "image", b.random(1, 3, 1, 1))
        images = b.node("Mul", labels, b.ints(0))
        cut = b.node("RoiAlign", feature, boxes, images, output_height=14, output_width=14, sampling_ratio=2)
        masks = b.node("Sigmoid", cut)
    else:
        kernels = b.node("Gather", b.random(CANDIDATES, 3), kept, axis=0)
        pixels = b.node("MatMul", kernels, b.reshape("image", 3, HEIGHT * WIDTH))
        masks = b.reshape(b.node("Sigmoid", pixels), -1, 1, HEIGHT, WIDTH)
    if layout in ("pasted", "boxes"):
        return b.model({"boxes": boxes, "labels": labels, "scores": best, "masks": masks})
    boxes = b.node("Concat", boxes, b.reshape(best, -1, 1), axis=1)
    sides = (14, 14) if layout == "background-last" else (HEIGHT, WIDTH)
    return b.model(
        {
            "boxes": b.reshape(boxes, 1, -1, 5),
            "labels": b.reshape(labels, 1, -1),
            "masks": b.reshape(masks, 1, -1, *sides),
        }
    )


def _mirrored(axis):
    def move(b, value):
        ends = b.ints(-1), b.ints(np.iinfo(np.int64).min), b.ints(axis), b.ints(-1)
        return b.node("Slice", value, *ends)

    return move


def _rolled(b, value):
    """By three columns."""
    return b.node("Concat", b.slice(value, 3, 3, WIDTH), b.slice(value, 3, 0, 3), axis=3)


def _mixed(b, value):
    """Mirrored by a product with a stored matrix."""
    return b.node("MatMul", value, np.eye(CELLS[1], dtype=np.float32)[::-1])


CELLS = (HEIGHT // 4, WIDTH // 4)
MOVED = {
    None: (None, "", CELLS),
    "image mirrored": (_mirrored(3), "image", CELLS),
    "image upside down": (_mirrored(2), "image", CELLS),
    "image transposed": (lambda b, value: b.node("Transpose", value, perm=[0, 1, 3, 2]), "image", CELLS[::-1]),
    "pixels mirrored": (_mirrored(3), "pixels", CELLS),
    "pixels rolled": (_rolled, "pixels", CELLS),
    "masks mirrored": (_mirrored(3), "masks", CELLS),
    "pixels mixed": (_mixed, "pixels", CELLS),
}
"""What moves, at which value, and the sides of the masks."""


def yolo(layout, batch=1, *, is_mirrored=False):
    """`locations`: a column for each location, no suppression; `rows`: a row for each detection, padded with zeros."""
    b = Builder(1)
    source = _mirrored(3)(b, "image") if is_mirrored else "image"
    prototypes = b.node("Conv", source, b.random(DEPTH, 3, 4, 4, scale=0.1), strides=[4, 4])
    bright = b.brightness(3)
    nothing = b.node("Mul", bright, 0.0 * np.ones(1))
    coefficients = b.node("Add", b.random(1, DEPTH, LOCATIONS), nothing)
    corners = boxes_in_pixels(b.rng, LOCATIONS // 4)[:, None] + b.rng.normal(0, 0.7, (LOCATIONS // 4, 4, 4))
    corners = np.sort(corners.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    centred = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    state = b.rng.standard_normal((1, 7, LOCATIONS))
    weights = b.rng.standard_normal((CLASSES, 7, 1)) * 0.6
    state[0, :, 0] = 2.2 * weights[1, :, 0]  # the first to be found
    logits = b.node("Conv", b.node("Add", b.constant(state), nothing), b.constant(weights))
    scores = b.node("Sigmoid", b.node("Sub", b.node("Mul", logits, bright), 4.0 * np.ones(1)))
    if layout == "locations":
        boxes = b.node("Add", b.constant(centred.T[None]), nothing)
        columns = b.node("Concat", boxes, scores, coefficients, axis=1)
        return b.model({"predictions": columns, "prototypes": prototypes}, batch)
    boxes = b.node("Add", b.constant(corners[None]), nothing)
    best = b.node("ReduceMax", scores, axes=[1], keepdims=1)
    label = b.node("Cast", b.node("ArgMax", scores, axis=1, keepdims=1), to=TensorProto.FLOAT)
    parts = [boxes, *(b.node("Transpose", value, perm=[0, 2, 1]) for value in (best, label, coefficients))]
    rows = b.node("Concat", *parts, axis=2)
    sure = b.node("Cast", b.node("Greater", parts[1], 0.25 * np.ones(1)), to=TensorProto.FLOAT)
    return b.model({"rows": b.node("Mul", rows, sure), "prototypes": prototypes}, batch)


def queries(batch=1, moved=None):
    """Class scores with a last one for no object, masks at a quarter of the image's size, and what they came from.

    `moved` puts the pixels of the image, or the cells that masks are made of, elsewhere; see `MOVED`.
    """
    move, at, (rows, columns) = MOVED[moved]
    b = Builder(2)
    state = b.node("Add", b.random(1, CANDIDATES, 9), b.node("Mul", b.brightness(3), 0.1 * np.ones(1)))
    logits = b.node("MatMul", state, b.random(9, CLASSES + 1))
    bias = np.zeros(CLASSES + 1)
    bias[-1] = 9.0
    dark = b.node("Sub", 1.0 * np.ones(1), b.brightness(3))
    logits = b.node("Add", logits, b.node("Mul", dark, bias))
    source = move(b, "image") if at == "image" else "image"
    pixels = b.node("Conv", source, b.random(9, 3, 4, 4, scale=0.3), strides=[4, 4])
    pixels = move(b, pixels) if at == "pixels" else pixels
    flat = b.reshape(pixels, -1, 9, rows * columns)
    masks = b.reshape(b.node("MatMul", state, flat), -1, CANDIDATES, rows, columns)
    masks = move(b, masks) if at == "masks" else masks
    return b.model({"state": state, "logits": logits, "masks": masks}, batch)


def as_format(model, kind):
    """The model as ONNX or as OpenVINO IR."""
    if kind == "onnx":
        return model
    return ov.Core().read_model(model.SerializeToString())


def image(brightness, seed=0):
    """A textured image of that mean brightness."""
    texture = np.random.default_rng(seed).random((1, 3, HEIGHT, WIDTH), dtype=np.float32)
    return texture * np.float32(brightness / texture.mean())
