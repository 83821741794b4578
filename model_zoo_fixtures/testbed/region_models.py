"""Small two-stage detectors in the layouts of real exports, with the numbers of regions and detections left open."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from model_zoo_fixtures.testbed.models import CHANNELS, Builder

HEIGHT, WIDTH = 32, 40
CLASSES = 4  # a background included, but for `sigmoid` scores
SIDE = 3  # of what is pooled from a region
STRIDES = (4, 8)
SCALE = (1.5, 0.75)  # of reported pixels for those of the model, as where it resizes its image


class Net:
    """A two-stage detector.

    Args:
        levels: how regions are pooled: from `one` map, or from two whose rows are `scattered` or `sorted` into a list.
        head: `flatten` or `mean`, then two linear layers; `res5` with a convolution before the mean; `attention`.
        report: `lists` of boxes, scores and labels after a threshold on all pairs of region and class; `rows` of box
            and score, sorted, with labels, suppressed class by class; `best`: the best class of each region, boxes as
            shares of the image, y first; `masks`: lists with masks of the boxes, in pixels of the input.
        side: of the regions in pixels, about.

    Attributes:
        model: the detector.
        feature: name of the value that is masked, `[P, C, m, n]`.
        logits: name of the class scores `[P, K]`.
        scores: name of their softmax or sigmoid.
        regions: name of the regions `[P, 4]`.
    """

    def __init__(
        self, levels: str = "scattered", head: str = "flatten", report: str = "lists", side: float = 9.0
    ) -> None:
        b = self.b = Builder(batch=1, size=(HEIGHT, WIDTH))
        self.report = report
        x = b.node("MaxPool", b.backbone(), kernel_shape=[2, 2], strides=[2, 2])
        self.maps = [x, b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])]
        self.regions = self._regions(x, side)
        pooled = self._one(self.regions, 0) if levels == "one" else self._levels(levels)
        vector = self._head(head, pooled)
        # Scores that stay off 0 and 1, so that each tells its region.
        self.logits = b.node("Gemm", vector, b.weight(CLASSES, 8, scale=0.04), b.weight(CLASSES), transB=1)
        boxes = self._decoded(b.linear(vector, 8, 4))
        self.scores = b.node("Sigmoid" if report == "best" else "Softmax", self.logits, **self._axis())
        makers = {"lists": self._lists, "masks": self._lists, "rows": self._rows, "best": self._best}
        self.model = makers[report](boxes)

    def _axis(self) -> dict[str, int]:
        return {} if self.report == "best" else {"axis": 1}

    def ints(self, *numbers: int) -> str:
        return self.b.const(np.array(numbers, np.int64))

    def columns(self, value: str, start: int, end: int) -> str:
        return self.b.node("Slice", value, self.ints(start), self.ints(end), self.ints(-1))

    def _regions(self, x: str, side: float) -> str:
        """Boxes around the cells that score best, cut off at the image."""
        b, (height, width) = self.b, (HEIGHT // STRIDES[0], WIDTH // STRIDES[0])
        (
            y,
            x_,
        ) = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
        centres = np.stack([x_, y, x_, y], -1).reshape(-1, 4) * STRIDES[0]
        halves = side / 2 * b.rng.uniform(0.6, 1.8, (height * width, 2))
        anchors = centres + np.concatenate([-halves, halves], 1)
        sure = b.node("Reshape", b.node("Conv", x, b.weight(1, CHANNELS, 1, 1)), self.ints(-1))
        moved = b.node("Reshape", b.node("Conv", x, b.weight(1, CHANNELS, 1, 1, scale=0.1)), self.ints(-1, 1))
        boxes = b.node("Add", b.const(anchors.astype(np.float32)), moved)
        boxes = b.node("Max", boxes, b.const(np.float32(0)))
        boxes = b.node("Min", boxes, b.const(np.float32([WIDTH, HEIGHT, WIDTH, HEIGHT])))
        mean = b.node("ReduceMean", sure, keepdims=1)
        kept = b.node("NonZero", b.node("Greater", sure, mean))
        return b.node("Gather", boxes, b.node("Reshape", kept, self.ints(-1)), axis=0)

    def _one(self, regions: str, level: int, side: int = SIDE) -> str:
        b = self.b
        batch = b.node("Mul", b.node("Cast", self.columns(regions, 0, 1), to=TensorProto.INT64), self.ints(0))
        batch = b.node("Reshape", batch, self.ints(-1))
        return b.node(
            "RoiAlign", self.maps[level], regions, batch, output_height=side, output_width=side, sampling_ratio=2,
            spatial_scale=1 / STRIDES[level],
        )  # fmt: skip

    def _levels(self, levels: str) -> str:
        """Wide regions from the coarser map."""
        b = self.b
        width = b.node("Sub", self.columns(self.regions, 2, 3), self.columns(self.regions, 0, 1))
        wide = b.node("Reshape", b.node("Greater", width, b.const(np.float32(11))), self.ints(-1))
        chosen = [b.node("NonZero", wide), b.node("NonZero", b.node("Not", wide))]
        chosen = [b.node("Reshape", places, self.ints(-1)) for places in chosen]
        parts = [
            self._one(b.node("Gather", self.regions, places, axis=0), 1 - index) for index, places in enumerate(chosen)
        ]
        if levels == "scattered":
            count = b.node("Shape", wide)
            whole = b.node("ConstantOfShape", b.node("Concat", count, self.ints(CHANNELS, SIDE, SIDE), axis=0))
            for places, part in zip(chosen, parts, strict=True):
                whole = b.node("ScatterND", whole, b.node("Reshape", places, self.ints(-1, 1)), part)
            return whole
        places = b.node("Concat", *chosen, axis=0)
        _, order = b.node("TopK", places, b.node("Shape", places), axis=0, largest=0, outputs=2)
        return b.node("Gather", b.node("Concat", *parts, axis=0), order, axis=0)

    def _head(self, kind: str, pooled: str) -> str:
        b = self.b
        self.feature = pooled
        if kind == "flatten":
            x = b.linear(b.node("Flatten", pooled), CHANNELS * SIDE * SIDE, 8)
        elif kind == "attention":
            x = b.node("Transpose", b.node("Reshape", pooled, self.ints(-1, CHANNELS, SIDE * SIDE)), perm=[0, 2, 1])
            share = b.node("Softmax", b.node("MatMul", x, b.weight(CHANNELS, 1)), axis=1)
            x = b.node("ReduceSum", b.node("Mul", share, x), self.ints(1), keepdims=0)
            x = b.linear(x, CHANNELS, 8)
        else:
            if kind == "res5":
                x = b.node("Conv", pooled, b.weight(CHANNELS, CHANNELS, 3, 3), pads=[1] * 4)
                self.feature = pooled = b.node("Relu", x)
            x = b.linear(b.node("Flatten", b.node("GlobalAveragePool", pooled)), CHANNELS, 8)
        return b.node("Relu", x)

    def _decoded(self, offsets: str) -> str:
        """Corners of the regions moved by a share of their sides."""
        b = self.b
        sides = b.node("Sub", self.columns(self.regions, 2, 4), self.columns(self.regions, 0, 2))
        moved = b.node("Mul", b.node("Tanh", offsets), b.const(np.float32(0.15)))
        return b.node("Add", self.regions, b.node("Mul", moved, b.node("Concat", sides, sides, axis=1)))

    def _lists(self, boxes: str) -> onnx.ModelProto:
        b = self.b
        foreground = b.node("Reshape", self.columns(self.scores, 1, CLASSES), self.ints(-1))
        everyone = b.node("Expand", b.node("Unsqueeze", boxes, self.ints(1)), self.ints(1, CLASSES - 1, 1))
        everyone = b.node("Reshape", everyone, self.ints(-1, 4))
        labels = b.node("Shape", foreground)
        labels = b.node("Range", b.const(np.array(0)), b.node("Squeeze", labels), b.const(np.array(1)))
        labels = b.node("Add", b.node("Mod", labels, self.ints(CLASSES - 1)), self.ints(1))
        kept = b.node("NonZero", b.node("Greater", foreground, b.const(np.float32(0.4))))
        kept = b.node("Reshape", kept, self.ints(-1))
        foreground, everyone, labels = (b.node("Gather", x, kept, axis=0) for x in (foreground, everyone, labels))
        far = b.node("Mul", b.node("Cast", labels, to=TensorProto.FLOAT), b.const(np.float32(100)))
        apart = b.node("Unsqueeze", b.node("Add", everyone, b.node("Unsqueeze", far, self.ints(1))), self.ints(0))
        alone = b.node("Unsqueeze", foreground, self.ints(0, 1))
        kept = b.node("NonMaxSuppression", apart, alone, self.ints(9), b.const(np.float32([0.5])))
        kept = b.node("Reshape", self.columns(kept, 2, 3), self.ints(-1))
        foreground, everyone, labels = (b.node("Gather", x, kept, axis=0) for x in (foreground, everyone, labels))
        if self.report == "masks":
            masks = b.node("Sigmoid", b.node("ReduceMean", self._one(everyone, 0, 8), axes=[1]))
            return b.model(everyone, foreground, labels, masks)
        everyone = b.node("Mul", everyone, b.const(np.float32(SCALE * 2)))
        return b.model(everyone, foreground, labels)

    def _rows(self, boxes: str) -> onnx.ModelProto:
        """The last class is the background; one row more than there are detections, of zeros."""
        b = self.b
        scores = b.node("Unsqueeze", self.columns(self.scores, 0, CLASSES - 1), self.ints(0))
        boxes = b.node("Unsqueeze", boxes, self.ints(0))
        turned = b.node("Transpose", scores, perm=[0, 2, 1])
        kept = b.node(
            "NonMaxSuppression", boxes, turned, self.ints(9), b.const(np.float32([0.5])), b.const(np.float32([0.4]))
        )
        place = b.node("Reshape", self.columns(kept, 2, 3), self.ints(-1))
        sure = b.node("Unsqueeze", b.node("GatherND", turned, kept), self.ints(0, 2))
        rows = b.node("Concat", b.node("Gather", boxes, place, axis=1), sure, axis=2)
        rows = b.node("Concat", rows, b.const(np.zeros((1, 1, 5), np.float32)), axis=1)
        labels = b.node("Reshape", self.columns(kept, 1, 2), self.ints(1, -1))
        labels = b.node("Concat", labels, b.const(np.full((1, 1), -1)), axis=1)
        last = b.node("Reshape", self.columns(rows, 4, 5), self.ints(-1))
        _, order = b.node("TopK", last, b.node("Shape", last), axis=0, outputs=2)
        return b.model(b.node("Gather", rows, order, axis=1), b.node("Gather", labels, order, axis=1))

    def _best(self, boxes: str) -> onnx.ModelProto:
        b = self.b
        best = b.node("ReduceMax", self.scores, axes=[1], keepdims=0)
        labels = b.node("ArgMax", self.scores, axis=1, keepdims=0)
        shares = b.node("Div", boxes, b.const(np.float32([WIDTH, HEIGHT, WIDTH, HEIGHT])))
        shares = b.node("Gather", shares, self.ints(1, 0, 3, 2), axis=1)
        kept = b.node("Reshape", b.node("NonZero", b.node("Greater", best, b.const(np.float32(0.7)))), self.ints(-1))
        best, labels, shares = (b.node("Gather", x, kept, axis=0) for x in (best, labels, shares))
        top, order = b.node("TopK", best, b.node("Shape", best), axis=0, outputs=2)
        return b.model(b.node("Gather", shares, order, axis=0), top, b.node("Gather", labels, order, axis=0))
