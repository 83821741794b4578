"""Detectors with queries: a small decoder over two levels, as exporters write DETR and its deformable kin."""

import numpy as np

from model_zoo_fixtures.testbed.detection_oracle import values
from model_zoo_fixtures.testbed.models import Builder

SIZE, QUERIES, CLASSES, HEADS, WIDTH, POINTS, MOST = (16, 24), 7, 5, 2, 8, 3, 4
GRIDS = ((8, 12), (4, 6))
DEEP = WIDTH // HEADS


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def laid(weights, points):
    """Points of both levels on the finer one: each where the cells that it reads have their middle."""
    height, width = GRIDS[0]
    maps = np.zeros((len(weights) // HEADS, QUERIES, height, width))
    for level, (rows, columns) in enumerate(GRIDS):
        for n, q, p in np.ndindex(points[level].shape[:3]):
            x, y = ((points[level][n, q, p].astype(np.float64) + 1) * (columns, rows) - 1) / 2
            weight, place = weights[n, 0, q, level * POINTS + p], []
            for at, count, finest in ((y, rows, height), (x, columns, width)):
                low = int(np.floor(at))
                ends = [(low, 1 - at + low), (low + 1, at - low)]
                ends = [(cell, share) for cell, share in ends if 0 <= cell < count]
                weight *= sum(share for _, share in ends)
                middle = sum(cell * share for cell, share in ends) / max(sum(share for _, share in ends), 1e-12)
                place.append((middle + 0.5) * finest / count - 0.5)
            for i in range(height):
                for j in range(width):
                    near = max(0, 1 - abs(place[0] - i)) * max(0, 1 - abs(place[1] - j))
                    maps[n // HEADS, q, i, j] += weight * near / HEADS
    return maps


class Net:
    """A decoder of two layers: dense attention to the coarse level, then `look` at the levels.

    Args:
        look: `dense`, or deformable by `grid` samples, or by `gather`, as exporters write those out.
        report: `raw` logits and boxes, `scores` for logits, `shares` without that of no object, or the `best` boxes,
            scores and labels.
        turned: whether, of one image, the queries stand before the batch for a layer, turned by reshapes as IRs do.
        assigned: whether, of one image, they are written over another array, element by element, as IRs do.
        classes: how many.
        first: whether the tokens that the queries look at stand before the images, as facebookresearch's DETR has them.
        scaled: whether a stored number scales queries and keys each, as dynamo writes PyTorch's own attention.
        memory: whether what the queries look at is an output too, behind a linear layer, as that of an encoder is.
    """

    def __init__(
        self, look, report, *, turned=False, assigned=False, classes=CLASSES, memory=False, first=False, scaled=False
    ):
        b = self.b = Builder(size=SIZE, batch=1 if turned or assigned else "N")
        self.look, self.report, self.first, self.scaled, self.samples, self.read = look, report, first, scaled, [], []
        fine = b.backbone()
        if memory:
            fine, given = self.encoded(fine)
        maps = [fine, b.node("MaxPool", fine, kernel_shape=[2, 2], strides=[2, 2])]
        x = self.attended(b.weight(1, QUERIES, WIDTH), maps[1], GRIDS[1])
        if turned:
            x = b.node("Add", x, self.linear(self.among_queries(x), WIDTH))
        if assigned:
            count = QUERIES * WIDTH
            flat, where = b.node("Reshape", x, b.const([-1])), b.const(np.arange(count)[:, None])
            x = b.node("ScatterND", b.const(np.zeros(count, np.float32)), where, flat)
            x = b.node("Reshape", x, b.const([1, QUERIES, WIDTH]))
        x = self.attended(x, maps[0], GRIDS[0]) if look == "dense" else self.sampled(x, maps)
        logits, boxes = self.linear(x, classes), b.node("Sigmoid", self.linear(x, 4))
        self.logits = logits
        if report == "raw":
            self.model = b.model(logits, boxes)
        elif report == "scores":
            self.model = b.model(boxes, b.node("Sigmoid", logits), *([given] if memory else []))
        elif report == "shares":
            kept = b.const(np.arange(classes - 1))
            self.model = b.model(boxes, b.node("Gather", b.node("Softmax", logits, axis=-1), kept, axis=-1))
        else:
            scores = b.node("Reshape", b.node("Sigmoid", logits), b.const(np.array([0, QUERIES * CLASSES])))
            best, places = b.node("TopK", scores, b.const(np.array([MOST])), axis=1, outputs=2)
            self.query = b.node("Div", places, b.const(np.array([CLASSES])))
            label = b.node("Mod", places, b.const(np.array([CLASSES])))
            rows = b.node("Expand", b.node("Unsqueeze", self.query, b.const([2])), b.const(np.array([1, 1, 4])))
            scaled = b.node("Mul", b.node("GatherElements", boxes, rows, axis=1), b.const(np.float32([24, 16, 24, 16])))
            self.model = b.model(scaled, best, label)

    def encoded(self, map_):
        """A map as tokens through a linear layer, and a map again."""
        b, (height, width) = self.b, GRIDS[0]
        tokens = b.node("Reshape", map_, b.const(np.array([0, 6, height * width])))
        tokens = b.node("Transpose", tokens, perm=[0, 2, 1])
        tokens = b.node("Add", b.node("MatMul", tokens, b.weight(6, 6)), b.weight(6))
        rows = b.node("Transpose", tokens, perm=[0, 2, 1])
        return b.node("Reshape", rows, b.const(np.array([0, 6, height, width]))), tokens

    def linear(self, x, width):
        b = self.b
        x = b.node("LayerNormalization", x, b.const(np.ones(WIDTH, np.float32)))
        return b.node("Add", b.node("MatMul", x, b.weight(WIDTH, width)), b.weight(width))

    def heads(self, x, count):
        x = self.b.node("Reshape", x, self.b.const(np.array([-1, count, HEADS, DEEP])))
        return self.b.node("Transpose", x, perm=[0, 2, 1, 3])

    def attended(self, x, map_, grid):
        b, cells = self.b, grid[0] * grid[1]
        tokens = b.node("Transpose", b.node("Reshape", map_, b.const(np.array([0, 6, cells]))), perm=[0, 2, 1])
        if self.first:
            tokens = self.tokens = b.node("Relu", b.node("Transpose", tokens, perm=[1, 0, 2]))
        key, value = (b.node("MatMul", tokens, b.weight(6, WIDTH)) for _ in range(2))
        if self.first:
            key, value = (b.node("Transpose", part, perm=[1, 0, 2]) for part in (key, value))
        query = self.linear(x, WIDTH)
        factors = self.heads(query, QUERIES), b.node("Transpose", self.heads(key, cells), perm=[0, 1, 3, 2])
        if self.scaled:
            scale = b.const(np.float32([0.7]))
            factors = [b.node("Mul", factor, scale) for factor in factors]
        scores = b.node("MatMul", *factors)
        self.shares = b.node("Softmax", scores, axis=-1)
        values = self.heads(value, cells)
        self.read = [(values, grid)]
        read = b.node("Transpose", b.node("MatMul", self.shares, values), perm=[0, 2, 1, 3])
        read = b.node("Reshape", read, b.const(np.array([0, QUERIES, WIDTH])))
        return b.node("Add", x, self.linear(read, WIDTH))

    def among_queries(self, x):
        """Attention with its heads in the batch, as PyTorch's own module has it."""
        b = self.b
        rows = b.node("Transpose", x, perm=[1, 0, 2])
        query, key, value = (
            b.node(
                "Transpose",
                b.node("Reshape", self.linear(rows, WIDTH), b.const(np.array([QUERIES, HEADS, DEEP]))),
                perm=[1, 0, 2],
            )
            for _ in range(3)
        )
        shares = b.node("Softmax", b.node("MatMul", query, b.node("Transpose", key, perm=[0, 2, 1])), axis=-1)
        read = b.node("Transpose", b.node("MatMul", shares, value), perm=[1, 0, 2])
        return b.node("Reshape", read, b.const(np.array([1, QUERIES, WIDTH])))

    def sampled(self, x, maps):
        b, read = self.b, []
        self.read = []
        weights = b.node(
            "Reshape", self.linear(x, HEADS * 2 * POINTS), b.const(np.array([0, QUERIES, HEADS, 2 * POINTS]))
        )
        weights = b.node("Transpose", b.node("Softmax", weights, axis=-1), perm=[0, 2, 1, 3])
        self.weights = b.node("Reshape", weights, b.const(np.array([-1, 1, QUERIES, 2 * POINTS])))
        for map_, (height, width) in zip(maps, GRIDS, strict=True):
            offset = b.node("Tanh", self.linear(x, HEADS * POINTS * 2))
            points = b.node("Mul", offset, b.const(np.float32(1.2)))  # some lie outside
            points = b.node("Reshape", points, b.const(np.array([0, QUERIES, HEADS, POINTS, 2])))
            points = b.node("Transpose", points, perm=[0, 2, 1, 3, 4])
            points = b.node("Reshape", points, b.const(np.array([-1, QUERIES, POINTS, 2])))
            self.samples.append(points)
            value = b.node("Conv", map_, b.weight(WIDTH, 6, 1, 1))
            value = b.node("Reshape", value, b.const(np.array([-1, DEEP, height, width])))
            self.read.append((value, (height, width)))
            if self.look == "grid":
                read.append(b.node("GridSample", value, points, align_corners=0))
            else:
                read.append(self.gathered(value, points, height, width))
        if self.look == "grid":  # stacked and flattened, or joined
            stacked = b.node("Concat", *(b.node("Unsqueeze", item, b.const([3])) for item in read), axis=3)
            joined = b.node("Reshape", stacked, b.const(np.array([0, 0, 0, 2 * POINTS])))
        else:
            joined = b.node("Concat", *read, axis=3)
        total = b.node("ReduceSum", b.node("Mul", joined, self.weights), b.const([3]), keepdims=0)
        total = b.node("Reshape", total, b.const(np.array([-1, WIDTH, QUERIES])))
        return b.node("Add", x, self.linear(b.node("Transpose", total, perm=[0, 2, 1]), WIDTH))

    def gathered(self, value, points, height, width):
        b, total = self.b, None
        flat = b.node("Reshape", value, b.const(np.array([0, DEEP, height * width])))
        places, shares = [], []
        for axis, size in ((0, width), (1, height)):
            at = b.node("Gather", points, b.const(np.array(axis)), axis=3)
            at = b.node("Mul", b.node("Add", at, b.const(np.float32(1))), b.const(np.float32(size / 2)))
            at = b.node("Sub", at, b.const(np.float32(0.5)))
            low = b.node("Floor", at)
            part = b.node("Sub", at, low)
            ends = [low, b.node("Add", low, b.const(np.float32(1)))]
            inside = []
            for end in ends:
                kept = b.node("Clip", end, b.const(np.float32(0)), b.const(np.float32(size - 1)))
                inside.append((kept, b.node("Cast", b.node("Equal", end, kept), to=1)))
            places.append([kept for kept, _ in inside])
            both = [b.node("Sub", b.const(np.float32(1)), part), part]
            shares.append([b.node("Mul", share, is_in) for share, (_, is_in) in zip(both, inside, strict=True)])
        for i in range(2):
            for j in range(2):
                index = b.node("Add", b.node("Mul", places[1][i], b.const(np.float32(width))), places[0][j])
                index = b.node("Reshape", b.node("Cast", index, to=7), b.const(np.array([0, 1, QUERIES * POINTS])))
                index = b.node("Expand", index, b.const(np.array([1, DEEP, 1])))
                cell = b.node("GatherElements", flat, index, axis=2)
                cell = b.node("Reshape", cell, b.const(np.array([0, DEEP, QUERIES, POINTS])))
                share = b.node("Unsqueeze", b.node("Mul", shares[1][i], shares[0][j]), b.const([1]))
                part = b.node("Mul", cell, share)
                total = part if total is None else b.node("Add", total, part)
        return total

    def expected(self, path, images):
        """Maps `[B, M, h, w]` by their definition."""
        beside = [self.query] if self.report == "best" else []
        if self.look == "dense":
            logits, shares, *rest = values(path, [self.logits, self.shares, *beside], images)
            maps = shares.mean(1).reshape(len(images), QUERIES, *GRIDS[0])
        else:
            logits, weights, *rest = values(path, [self.logits, self.weights, *self.samples, *beside], images)
            points, rest = rest[:2], rest[2:]
            maps = laid(weights, points)
        scores = sigmoid(logits)
        if self.report == "best":
            best = -np.sort(-scores.reshape(len(images), -1), axis=1)[:, :MOST]
            return np.stack([m[q] for m, q in zip(maps, rest[0].astype(int), strict=True)]) * best[..., None, None]
        return maps * scores.max(-1)[..., None, None]
