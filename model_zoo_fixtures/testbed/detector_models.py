"""Detectors built by hand: with boxes that they report, with raw heads, and with rows of one score."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed.detection_oracle import resized
from model_zoo_fixtures.testbed.models import Builder

DETECTOR = Path(__file__).parents[1] / "shapes" / "shapes_detector.onnx"


SIDE, CLASSES, ANCHORS, MOST = 32, 5, 3, 7


GRIDS = (8, 4)


def side_arrays(boxes, meaning):
    a, b, c, d = np.moveaxis(boxes.astype(np.float64), -1, 0)
    return {
        "xyxy": (a, b, c, d),
        "yxyx": (b, a, d, c),
        "xywh": (a, b, a + c, b + d),
        "cxcywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    }[meaning]


def overlaps(boxes, others):
    """IoU of boxes given by their sides, `[M, L]`."""
    (a, b, c, d), (e, f, g, h) = [np.array(side)[:, None] for side in boxes], [np.array(s)[None] for s in others]
    common = np.clip(np.minimum(c, g) - np.maximum(a, e), 0, None) * np.clip(
        np.minimum(d, h) - np.maximum(b, f), 0, None
    )
    union = (c - a) * (d - b) + (g - e) * (h - f) - common
    return np.where(union > 0, common / np.where(union > 0, union, 1), 0)


def definition(levels, reported, labels, middle):
    """Maps `[M, h, w]` of one image.

    Args:
        levels: for each level, sides of its boxes `[h * w * A]` and class probabilities `[h, w, A, K]`.
        reported: sides of the reported boxes.
        labels: their classes.
        middle: height and width of the map.
    """
    total = 0
    for sides, scores in levels:
        height, width, anchors, classes = scores.shape
        cosines = scores / np.linalg.norm(scores, axis=-1, keepdims=True)
        similar = cosines.reshape(-1, classes)[:, labels].T
        votes = (overlaps(reported, sides) * similar).reshape(-1, height, width, anchors).max(-1)
        total = total + resized(votes[None], middle)[0]
    return total / len(levels)


class Net:
    """A detector with anchors on two levels that reports its best boxes, or those that suppression leaves.

    Where `report` is `late`, boxes are decoded only of the best locations of each level; where it is `elements`, of
    the best scores of all classes and levels, as EfficientDet does it. `wide` are the sides of the anchors in cells;
    given, boxes are cut off at the image, and a late one finds its anchors by indices of their own.
    """

    def __init__(
        self, *, anchors_first, exclusive, decoded, reported, report, count_baked=False, tower=None, wide=None
    ):
        self.wide = wide
        self.exclusive, self.decoded, self.reported, self.anchors_first = exclusive, decoded, reported, anchors_first
        b = Builder(batch="N" if report in ("rows", "elements") else 1, size=(SIDE, SIDE))
        x = b.backbone()
        x = b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        maps = [x, b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])]
        self.maps = maps
        scores, offsets, centres, self.heads, self.shapes = [], [], [], [], []
        for grid, feature in zip(GRIDS, maps, strict=True):
            read = feature if tower is None else tower(b, feature)
            head = b.node("Conv", read, b.weight(ANCHORS * CLASSES, 6, 1, 1), b.weight(ANCHORS * CLASSES))
            box = b.node("Conv", feature, b.weight(ANCHORS * 4, 6, 1, 1, scale=0.03), b.weight(ANCHORS * 4, scale=0.1))
            self.heads += [head, box]
            scores.append(self.rows(b, head, CLASSES, grid))
            offsets.append(self.rows(b, box, 4, grid))
            centres.append(self.priors(grid))
        if report == "late":
            self.model = self.late(b, offsets, scores, centres, count_baked)
            return
        joined = b.node("Concat", *scores, axis=1)
        if report == "elements":
            self.model = self.of_elements(b, b.node("Concat", *offsets, axis=1), joined, np.concatenate(centres))
            return
        probabilities = b.node("Softmax", joined, axis=2) if exclusive else b.node("Sigmoid", joined)
        if exclusive:  # the first class is the background
            probabilities = b.node("Slice", probabilities, b.const([1]), b.const([CLASSES]), b.const([2]))
        boxes = self.boxes = self.decode(b, b.node("Concat", *offsets, axis=1), np.concatenate(centres))
        self.model = (self.best if report == "rows" else self.suppressed)(b, boxes, probabilities)

    def rows(self, b, value, width, grid):
        order = [0, 1, 3, 4, 2] if self.anchors_first else [0, 3, 4, 1, 2]
        x = b.node("Reshape", value, b.const([0, ANCHORS, width, grid, grid]))
        return b.node("Reshape", b.node("Transpose", x, perm=order), b.const([0, grid * grid * ANCHORS, width]))

    def priors(self, grid):
        """Centre and size in pixels of each row's anchor."""
        step = SIDE / grid
        y, x, a = np.meshgrid(np.arange(grid), np.arange(grid), np.arange(ANCHORS), indexing="ij")
        sizes = step * np.array(self.wide or [1.5, 2.0, 3.0])[a]
        found = np.stack([(x + 0.5) * step, (y + 0.5) * step, sizes, sizes * (0.6 + 0.3 * a)], -1)
        return (found.transpose(2, 0, 1, 3) if self.anchors_first else found).reshape(-1, 4)

    def decode(self, b, offsets, priors):
        priors = priors.astype(np.float32)[None]
        halves = [b.const(np.array(part)) for part in ([0], [2], [4], [2])]
        centre = b.node("Slice", offsets, halves[0], halves[1], halves[3])
        size = b.node("Slice", offsets, halves[1], halves[2], halves[3])
        unit = np.float32(1 / SIDE if self.decoded == "cxcywh" else 1)
        centre = b.node("Add", b.node("Mul", centre, b.const(priors[..., 2:] * unit)), b.const(priors[..., :2] * unit))
        size = b.node("Mul", b.node("Exp", size), b.const(priors[..., 2:] * unit))
        if self.decoded == "cxcywh":
            return b.node("Concat", centre, size, axis=2)
        half = b.node("Mul", size, b.const(np.float32(0.5)))
        return self.cut(b, b.node("Concat", b.node("Sub", centre, half), b.node("Add", centre, half), axis=2))

    def cut(self, b, boxes):
        return b.node("Clip", boxes, b.const(np.float32(0)), b.const(np.float32(SIDE))) if self.wide else boxes

    def best(self, b, boxes, scores):
        """`[N, M, 6]`: the locations of the largest scores; box, score, label in floats."""
        best = b.node("ReduceMax", scores, axes=[2], keepdims=0)
        label = b.node("Cast", b.node("ArgMax", scores, axis=2, keepdims=1), to=TensorProto.FLOAT)
        top, places = b.node("TopK", best, b.const([MOST]), axis=1, outputs=2)
        index = b.node("Unsqueeze", places, b.const([2]))
        four = b.node("Expand", index, b.const([1, 1, 4]))
        label = b.node("GatherElements", label, index, axis=1)
        chosen = self.report_as(b, b.node("GatherElements", boxes, four, axis=1))
        return b.model(b.node("Concat", chosen, b.node("Unsqueeze", top, b.const([2])), label, axis=2))

    def suppressed(self, b, boxes, scores):
        """Boxes `[M, 4]`, labels from 1 `[M]`, scores `[M]`."""
        turned = b.node("Transpose", scores, perm=[0, 2, 1])
        center = int(self.decoded == "cxcywh")
        kept = b.node(
            "NonMaxSuppression", boxes, turned, b.const([MOST]), b.const(np.float32([0.5])),
            b.const(np.float32([0.3])), center_point_box=center,
        )  # fmt: skip
        place = b.node("Gather", kept, b.const(np.array(2)), axis=1)
        chosen = b.node("Gather", b.node("Squeeze", boxes, b.const([0])), place, axis=0)
        label = b.node("Add", b.node("Gather", kept, b.const(np.array(1)), axis=1), b.const(np.array(1)))
        return b.model(self.report_as(b, chosen), label, b.node("GatherND", turned, kept))

    def late(self, b, offsets, scores, centres, count_baked):
        boxes, kept = [], []
        for offset, raw, priors in zip(offsets, scores, centres, strict=True):
            sure = b.node("Squeeze", b.node("Sigmoid", raw), b.const([0]))
            best = b.node("ReduceMax", sure, axes=[1], keepdims=0)
            _, places = b.node("TopK", best, b.const([4 * MOST]), axis=0, outputs=2)
            kept.append(b.node("Gather", sure, places, axis=0))
            moves = b.node("Gather", b.node("Squeeze", offset, b.const([0])), places, axis=0)
            own = places if self.wide is None else b.node("Add", places, b.const(np.array([0])))
            prior = b.node("Gather", b.const(priors.astype(np.float32)), own, axis=0)
            parts = [b.const(np.array([n])) for n in (0, 2, 4, 1)]
            (move, grow), (centre, size) = (
                [b.node("Slice", x, parts[i], parts[i + 1], parts[3]) for i in (0, 1)] for x in (moves, prior)
            )
            centre = b.node("Add", centre, b.node("Mul", move, size))
            half = b.node("Mul", b.node("Mul", size, b.node("Exp", grow)), b.const(np.float32(0.5)))
            both = self.cut(b, b.node("Concat", b.node("Sub", centre, half), b.node("Add", centre, half), axis=1))
            if count_baked:
                both = b.node("Reshape", b.node("Reshape", both, b.const([4 * MOST, 2, 2])), b.const([4 * MOST, 4]))
            boxes.append(both)
        whole = b.node("Unsqueeze", b.node("Concat", *boxes, axis=0), b.const([0]))
        return self.suppressed(b, whole, b.node("Unsqueeze", b.node("Concat", *kept, axis=0), b.const([0])))

    def of_elements(self, b, offsets, scores, priors):
        """`[N, M, 6]`, in one join of sides, score and label."""
        top, places = b.node("TopK", b.node("Flatten", scores), b.const([MOST]), axis=1, outputs=2)
        classes = b.const(np.array(CLASSES))
        label = b.node("Cast", b.node("Mod", places, classes), to=TensorProto.FLOAT)
        rows = b.node("Expand", b.node("Unsqueeze", b.node("Div", places, classes), b.const([2])), b.const([1, 1, 4]))
        ones = b.node("ConstantOfShape", b.node("Shape", offsets), value=onnx.numpy_helper.from_array(np.float32([1])))
        anchors = b.node("Mul", ones, b.const(priors.astype(np.float32)[None]))
        moves, anchors = (b.node("GatherElements", x, rows, axis=1) for x in (offsets, anchors))
        (dx, dy, dw, dh), (x, y, w, h) = (
            [b.node("Gather", value, b.const(np.array(column)), axis=2) for column in range(4)]
            for value in (moves, anchors)
        )
        centres = [b.node("Add", at, b.node("Mul", move, size)) for at, move, size in ((x, dx, w), (y, dy, h))]
        half = b.const(np.float32(0.5))
        halves = [b.node("Mul", b.node("Mul", size, b.node("Exp", grow)), half) for size, grow in ((w, dw), (h, dh))]
        sides = [b.node(op, at, side) for op in ("Sub", "Add") for at, side in zip(centres, halves, strict=True)]
        joined = [*sides, b.node("Sigmoid", top), label]
        return b.model(b.node("Concat", *(b.node("Unsqueeze", value, b.const([2])) for value in joined), axis=2))

    def report_as(self, b, boxes):
        if self.decoded == self.reported:
            return boxes
        assert (self.decoded, self.reported) == ("cxcywh", "xyxy")
        parts = [b.const(np.array(part)) for part in ([0], [2], [4], [-1])]
        centre, size = (b.node("Slice", boxes, parts[i], parts[i + 1], parts[3]) for i in (0, 1))
        half = b.node("Mul", size, b.const(np.float32(0.5)))
        joined = b.node("Concat", b.node("Sub", centre, half), b.node("Add", centre, half), axis=-1)
        return b.node("Mul", joined, b.const(np.float32(SIDE)))  # the centres were in shares of the image

    def expected(self, plain, images, boxes, labels):
        """Maps of the boxes that the inserted model has reported, from the heads of the plain one."""
        heads = dict(zip(self.heads, plain, strict=True))
        found = []
        for number in range(len(images)):
            levels = []
            for index, grid in enumerate(GRIDS):
                raw = heads[self.heads[2 * index]][number].reshape(ANCHORS, CLASSES, grid, grid).transpose(2, 3, 0, 1)
                raw = raw.astype(np.float64)
                scores = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True) if self.exclusive else 1 / (1 + np.exp(-raw))
                offsets = heads[self.heads[2 * index + 1]][number].reshape(ANCHORS, 4, grid, grid).transpose(2, 3, 0, 1)
                priors = self.priors(grid)
                if self.anchors_first:
                    priors = priors.reshape(ANCHORS, grid * grid, 4).swapaxes(0, 1)
                offsets, priors = offsets.reshape(-1, 4), priors.reshape(-1, 4)
                centre = priors[:, :2] + offsets[:, :2] * priors[:, 2:]
                size = np.exp(offsets[:, 2:]) * priors[:, 2:]
                corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
                levels.append(((corners.clip(0, SIDE) if self.wide else corners).T, scores))
            factor = SIDE if self.reported == "cxcywh" else 1
            sides = side_arrays(boxes[number] * factor, self.reported)
            found.append(definition(levels, sides, labels[number], (GRIDS[1], GRIDS[1])))
        return np.stack(found)


def reporting_detector():
    """The trained detector of shapes with suppression: boxes `[M, 4]`, scores `[M]`, labels `[M]`."""
    model = onnx.load(DETECTOR)
    constants = {
        "most": np.array([20]), "overlap": np.float32([0.7]), "least": np.float32([0.4]),
        "one": np.array(1), "two": np.array(2),
        "rows": np.array([-1, 4]),
    }  # fmt: skip
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    nodes = [
        ("Transpose", ["scores"], "turned", {"perm": [0, 2, 1]}),
        ("NonMaxSuppression", ["boxes", "turned", "most", "overlap", "least"], "kept", {}),
        ("Gather", ["kept", "two"], "place", {"axis": 1}),
        ("Gather", ["kept", "one"], "label", {"axis": 1}),
        ("Reshape", ["boxes", "rows"], "flat", {}),
        ("Gather", ["flat", "place"], "found", {"axis": 0}),
        ("GatherND", ["turned", "kept"], "sure", {}),
    ]
    model.graph.node.extend(helper.make_node(op, inputs, [out], name=out, **a) for op, inputs, out, a in nodes)
    del model.graph.output[:]
    for name, kind, shape in (("found", 1, ["M", 4]), ("sure", 1, ["M"]), ("label", 7, ["M"])):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model


def found_objects(scene, boxes, labels):
    """For each object the reported box of its class that fits it best, by number; None unless all are found."""
    chosen = []
    for item in scene.objects:
        fits = overlaps(np.array(item.box)[:, None], boxes.T)[0] * (labels == item.class_id)
        if fits.max(initial=0) < 0.6:
            return None
        chosen.append(int(fits.argmax()))
    return chosen if len(set(chosen)) == len(chosen) else None


def raw_detector(**more):
    """Two levels of undecoded heads, 3 anchors of a box, an objectness and 4 classes each."""
    b = Builder(size=(32, 32), **more)
    fine = b.backbone()
    coarse = b.node("MaxPool", fine, kernel_shape=[2, 2], strides=[2, 2])
    heads = [b.node("Conv", x, b.weight(27, 6, 1, 1), b.weight(27)) for x in (fine, coarse)]
    return b.model(*heads), heads


def row_detector(*, batched):
    """Lists of rows, one for each anchor, as BlazeFace gives them: `[N, L, 1]` scores and `[N, L, 16]` boxes.

    16x16 cells, two anchors each, and 8x8 cells, three each, the latter by DepthToSpace from a quarter of the cells.
    Returns the model, its two class heads, and the model with these as outputs.
    """
    b = Builder(size=(32, 32), batch=1)
    fine = b.backbone()
    coarse = b.node("MaxPool", fine, kernel_shape=[4, 4], strides=[4, 4])
    heads, outputs = [], []
    for width in (1, 16):
        parts = []
        for x, anchors, side in ((fine, 2, 1), (coarse, 3, 2)):
            head = b.node(
                "Conv", x, b.weight(anchors * width * side * side, 6, 1, 1), b.weight(anchors * width * side**2)
            )
            heads.append(head)
            maps = head if side == 1 else b.node("DepthToSpace", head, blocksize=side)
            rows = b.node("Transpose", maps, perm=[0, 2, 3, 1])
            parts.append(b.node("Reshape", rows, b.const(np.array([1, -1, width] if batched else [-1, width]))))
        outputs.append(b.node("Concat", *parts, axis=1 if batched else 0))
    return b.model(*outputs), heads[:2], b.model(*heads[:2])
