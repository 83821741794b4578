"""Maps of boxes in a model that is given another size or batch: they follow, or the model does not load."""

import numpy as np
import onnx
import pytest

from model_zoo_fixtures.testbed import keypoint_models, models, oracle, query_models, region_models
from model_zoo_fixtures.testbed.detection_oracle import values
from model_zoo_fixtures.testbed.detector_models import CLASSES, MOST, SIDE, Net, definition, side_arrays
from xai_insert import Options, insert

BOXES = Options(per_box=True, output_dtype="f32")


class Computed:
    """A detector without anchors that computes where its locations are while it runs, as YOLO does.

    Args:
        size: height and width of the image.
        units: whether boxes are in `pixels`, in `shares` of the image but reported in pixels, or larger than the image
            and `cut` off there when they are reported.
        batch: of the image.
    """

    def __init__(self, size=(SIDE, SIDE), units="pixels", batch=1):
        b = self.b = models.Builder(batch=batch, size=size)
        self.units, self.size = units, size
        fine = b.node("MaxPool", b.backbone(), kernel_shape=[2, 2], strides=[2, 2])
        coarse = b.node("MaxPool", fine, kernel_shape=[2, 2], strides=[2, 2])
        self.heads, boxes, scores = [], [], []
        for feature, stride in ((fine, 4), (coarse, 8)):
            head = b.node("Conv", feature, b.weight(CLASSES, 6, 1, 1), b.weight(CLASSES))
            box = b.node("Conv", feature, b.weight(4, 6, 1, 1, scale=0.1), b.weight(4, scale=0.1))
            self.heads.append(head)
            scores.append(b.node("Reshape", head, b.const([0, CLASSES, -1])))
            boxes.append(self.decoded(feature, self.away(box), stride))
        joined = b.node("Transpose", b.node("Concat", *boxes, axis=2), perm=[0, 2, 1])
        self.boxes = b.node("Div", joined, self.sides()) if units == "shares" else joined
        sure = b.node("Sigmoid", b.node("Transpose", b.node("Concat", *scores, axis=2), perm=[0, 2, 1]))
        self.model = b.model(self.reported(sure))

    def ints(self, *numbers):
        return self.b.const(np.array(numbers))

    def side(self, value, axis):
        return self.b.node("Gather", self.b.node("Shape", value), self.ints(axis))

    def sides(self):
        """Width and height of the image, twice, in floats."""
        both = [self.b.node("Cast", self.side("image", axis), to=onnx.TensorProto.FLOAT) for axis in (3, 2, 3, 2)]
        return self.b.node("Concat", *both, axis=0)

    def decoded(self, feature, away, stride):
        """`[N, 4, cells]`: so far from the middle of each cell."""
        b, sizes = self.b, [self.side(feature, axis) for axis in (3, 2)]
        grid = b.node("Concat", self.ints(1, 1), sizes[1], sizes[0], axis=0)
        middles = []
        for size, shape in zip(sizes, ([1, 1, 1, -1], [1, 1, -1, 1]), strict=True):
            zero, one = b.const(np.array(0)), b.const(np.array(1))
            count = b.node("Cast", b.node("Range", zero, b.node("Squeeze", size), one), to=onnx.TensorProto.FLOAT)
            middle = b.node("Reshape", b.node("Add", count, b.const(np.float32(0.5))), b.const(shape))
            middles.append(b.node("Reshape", b.node("Expand", middle, grid), b.const([1, 1, -1])))
        middles = b.node("Concat", *middles, axis=1)
        ends = [b.node("Slice", away, self.ints(n), self.ints(n + 2), self.ints(1)) for n in (0, 2)]
        corners = b.node("Concat", b.node("Sub", middles, ends[0]), b.node("Add", middles, ends[1]), axis=1)
        return b.node("Mul", corners, b.const(np.float32(stride)))

    def away(self, box):
        """How far the sides are from the middle, in cells."""
        b, grown = self.b, self.b.node("Exp", box)
        grown = b.node("Mul", grown, b.const(np.float32(9))) if self.units == "cut" else grown
        return b.node("Reshape", grown, b.const([0, 4, -1]))

    def reported(self, scores):
        """`[N, M, 6]`: box, score and label of the best locations."""
        b = self.b
        best = b.node("ReduceMax", scores, axes=[2], keepdims=0)
        label = b.node("Cast", b.node("ArgMax", scores, axis=2, keepdims=1), to=onnx.TensorProto.FLOAT)
        top, places = b.node("TopK", best, b.const([MOST]), axis=1, outputs=2)
        index = b.node("Unsqueeze", places, b.const([2]))
        boxes = b.node("GatherElements", self.boxes, b.node("Expand", index, b.const([1, 1, 4])), axis=1)
        if self.units == "shares":
            boxes = b.node("Mul", boxes, self.sides())
        if self.units == "cut":
            boxes = b.node("Max", b.node("Min", boxes, self.sides()), b.const(np.float32(0)))
        return b.node(
            "Concat", boxes, b.node("Unsqueeze", top, b.const([2])), b.node("GatherElements", label, index, axis=1),
            axis=2,
        )  # fmt: skip

    def expected(self, folder, images, reported):
        """`[N, M, h, w]`, by NumPy, of the heads and boxes of the plain model."""
        onnx.save(self.model, folder / "plain.onnx")
        *heads, boxes = values(folder / "plain.onnx", [*self.heads, self.boxes], images)
        if self.units == "shares":
            boxes = boxes * np.array([*self.size[::-1]] * 2)
        found = []
        for number in range(len(images)):
            levels, start = [], 0
            for head in heads:
                count = head[number, 0].size
                own = boxes[number, start : start + count]
                if self.units == "cut":
                    own = own.clip(0, np.array([*self.size[::-1]] * 2))
                scores = 1 / (1 + np.exp(-head[number].transpose(1, 2, 0)[:, :, None].astype(np.float64)))
                levels.append((side_arrays(own, "xyxy"), scores))
                start += count
            rows, labels = reported[number, :, :4], reported[number, :, 5].astype(int)
            found.append(definition(levels, side_arrays(rows, "xyxy"), labels, heads[1].shape[2:]))
        return np.stack(found)


def reshaped(model, images):
    """A model for images of another size or number."""
    twin = model.clone()
    twin.reshape(list(images.shape))
    return twin


def of_sizes(model, images):
    """What it gives for them."""
    return oracle.run(reshaped(model, images), images)


def as_read(model, kind, folder, options=BOXES):
    """The inserted model as OpenVINO reads it."""
    given, read = models.with_reader(model, kind, folder)
    return read(insert(given, options).model)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("units", ["pixels", "shares", "cut"])
def test_votes_follow_where_places_are_computed(units, kind, tmp_path):
    inserted = as_read(Computed(units=units).model, kind, tmp_path)
    for sizes in ([1, 3, SIDE, SIDE], [1, 3, 48, 80], [2, 3, 64, 40]):
        images = np.random.default_rng(3).standard_normal(sizes).astype(np.float32)
        reported, _, maps = of_sizes(inserted, images).values()
        wanted = Computed(sizes[2:], units, batch="N").expected(tmp_path, images, reported)
        assert wanted.max((2, 3)).min() > 0.05
        np.testing.assert_allclose(maps, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("units", ["pixels", "cut"])
def test_derivatives_of_boxes_follow(units, kind, tmp_path):
    """As those that are inserted for that size, which `test_odam` compares with slopes."""
    options = Options(per_box=True, method="odam", output_dtype="f32")
    inserted = as_read(Computed(units=units).model, kind, tmp_path, options)
    for sizes in ([1, 3, 48, 80], [2, 3, 64, 40]):
        images = np.random.default_rng(3).standard_normal(sizes).astype(np.float32)
        afresh = insert(Computed(sizes[2:], units, sizes[0]).model, options).model
        a, b = (oracle.run(model, images)["saliency_map_per_box"] for model in (afresh, reshaped(inserted, images)))
        assert a.max((2, 3)).min() > 0
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * a.max())


@pytest.mark.parametrize("kind", models.FORMATS)
def test_votes_are_for_one_size_where_places_are_stored(kind, tmp_path):
    net = Net(anchors_first=False, exclusive=False, decoded="xyxy", reported="xyxy", report="rows")
    net.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(RuntimeError):
        as_read(net.model, kind, tmp_path).reshape([1, 3, 2 * SIDE, SIDE])


def detector(report, **more):
    net = Net(anchors_first=True, exclusive=False, decoded="xyxy", reported="xyxy", report=report, **more)
    return net.model, {}


DETECTORS = {
    "votes": lambda: detector("rows"),
    "votes of elements": lambda: detector("elements"),
    "votes of a list": lambda: detector("lists"),
    "late votes": lambda: detector("late"),
    "odam": lambda: (detector("rows")[0], {"method": "odam"}),
    "odam of a list": lambda: (detector("lists")[0], {"method": "odam"}),
    "regions": lambda: (region_models.Net().model, {}),
    "rows of regions": lambda: (region_models.Net(report="rows").model, {}),
    "queries": lambda: (query_models.Net("dense", "scores").model, {}),
    "best queries": lambda: (query_models.Net("gather", "best").model, {}),
    "sampling queries": lambda: (query_models.Net("grid", "scores").model, {}),
    "odam of queries": lambda: (query_models.Net("dense", "scores").model, {"method": "odam"}),
    "odam of sampling queries": lambda: (query_models.Net("grid", "scores").model, {"method": "odam"}),
}
ALONE = {"votes of a list", "late votes", "odam of a list", "regions", "rows of regions"}


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", DETECTORS)
def test_each_image_of_another_batch_has_its_own_maps(name, kind, tmp_path):
    """A list of boxes of one image is not read as one of two."""
    model, chosen = DETECTORS[name]()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inserted = as_read(model, kind, tmp_path, Options(per_box=True, output_dtype="f32", **chosen))
    sizes = [2, *(size.get_length() for size in list(inserted.input(0).partial_shape)[1:])]
    images = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    if name in ALONE:
        with pytest.raises(RuntimeError):
            of_sizes(inserted, images)
        return
    found = of_sizes(inserted, images)
    for index in range(2):
        alone = oracle.run(inserted, images[index : index + 1])
        for output in ("saliency_map", "saliency_map_per_box"):
            right = alone[output]
            assert np.ptp(right) > 0
            np.testing.assert_allclose(found[output][index : index + 1], right, rtol=0, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_bins_are_for_one_size_and_any_batch(order, kind, tmp_path):
    """Of an image that lies the plain model takes as many tokens, but its bins stay those of one that stands."""
    b = models.Builder(batch=1, size=(64, 48))
    _, outputs = keypoint_models.simcc(b, order=order)
    inserted = as_read(b.model(*outputs), kind, tmp_path, Options(output_dtype="f32"))
    with pytest.raises(RuntimeError):
        inserted.clone().reshape([1, 3, 48, 64])
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 48)).astype(np.float32)
    alone = np.concatenate([oracle.run(inserted, images[n : n + 1])["saliency_map"] for n in range(2)])
    inserted.reshape(images.shape)
    np.testing.assert_allclose(oracle.run(inserted, images)["saliency_map"], alone, rtol=0, atol=1e-6)
