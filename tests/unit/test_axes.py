"""Following axes: what each operator does to the rows and columns of an image."""

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import openvino.opset13 as opset
import pytest
from onnx import TensorProto, helper, numpy_helper

from xai_insert.formats.backend import load
from xai_insert.locate.places import find_places

H, W = 24, 36


class Net:
    """A graph written node by node; `place(name)` says what its axes hold."""

    def __init__(self, batch=1, opset=17):
        self.nodes, self.stored, self.batch, self.opset = [], [], batch, opset

    def const(self, elements):
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(elements), name))
        return name

    def ints(self, *values):
        return self.const(np.array(values, np.int64))

    def node(self, kind, *inputs, outputs=1, **attributes):
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x, channels_in=3, channels=5, kernel=4, stride=4, pads=0):
        weight = self.const(np.ones((channels, channels_in, kernel, kernel), np.float32))
        return self.node("Conv", x, weight, strides=[stride] * 2, pads=[pads] * 4)

    def model(self, name):
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [self.batch, 3, H, W])
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "net", [image], [output], self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def place(self, name):
        view = load(onnx.shape_inference.infer_shapes(self.model(name)), {}).view()
        return find_places(view).of(view.outputs[0])


def test_a_convolution_widens_the_stride():
    net = Net()
    place = net.place(net.conv("image"))
    assert (place.axes, place.grid) == ((2, 3), (6, 9))
    assert (place.rows.stride, place.rows.offset) == (4.0, 1.5)


def repeated(net, x, axis, sizes, *, outside=False):
    """Each cell of an axis three times in a row; or all cells in their order three times."""
    new = axis if outside else axis + 1
    times = [1] * 5
    times[new] = 3
    tiled = net.node("Tile", net.node("Unsqueeze", x, net.ints(new)), net.ints(*times))
    return net.node("Reshape", tiled, net.ints(*sizes))


def test_repeated_cells_are_finer_cells():
    net = Net()
    x = repeated(net, net.conv("image"), 2, [1, 5, 18, 9])
    place = net.place(repeated(net, x, 3, [1, 5, 18, 27]))
    assert (place.axes, place.grid) == ((2, 3), (18, 27))
    assert place.rows.stride == pytest.approx(4 / 3)
    assert place.columns.offset == pytest.approx(1.5 - 4 / 3)
    net = Net()
    assert net.place(repeated(net, net.conv("image"), 2, [1, 5, 18, 9], outside=True)) is None


@pytest.mark.parametrize(("count", "offset"), [(9, 33.5), (8, None)])
def test_a_reversal_of_the_whole_axis_is_a_flip(count, offset):
    """As TensorFlow's converter writes a flip; one of fewer cells is none."""
    net = Net()
    place = net.place(net.node("ReverseSequence", net.conv("image"), net.ints(count), time_axis=3, batch_axis=0))
    assert (None if place is None else place.columns.offset) == offset
    if place is not None:
        assert place.columns.stride == -4.0


def test_padding_shifts():
    net = Net()
    place = net.place(net.conv("image", kernel=3, stride=2, pads=1))
    assert (place.rows.stride, place.rows.offset) == (2.0, 0.0)


def test_tokens_are_rows_and_columns_with_others_before():
    net = Net()
    x = net.node("Reshape", net.conv("image"), net.ints(1, 5, 54))
    x = net.node("Transpose", x, perm=[0, 2, 1])
    x = net.node("Concat", net.const(np.ones((1, 2, 5), np.float32)), x, axis=1)
    place = net.place(x)
    assert (place.axes, place.grid, place.prefix, place.suffix) == ((1,), (6, 9), 2, 0)
    assert net.place(net.node("Slice", x, net.ints(2), net.ints(56), net.ints(1))).prefix == 0


def test_equal_sizes_mean_nothing():
    """As many tokens as channels, split into heads: the grid is where it was."""
    net = Net()
    x = net.node("Reshape", net.conv("image", channels=54), net.ints(1, 54, 54))
    heads = net.node("Reshape", net.node("Transpose", x, perm=[0, 2, 1]), net.ints(1, 54, 6, 9))
    assert (net.place(heads).axes, net.place(heads).grid) == ((1,), (6, 9))


def test_pooled_over_one_axis_it_is_lost_on_that_axis():
    net = Net()
    assert net.place(net.node("ReduceMean", net.conv("image"), axes=[2], keepdims=1)) is None


def test_members_are_no_place():
    net = Net()
    x = net.node("Flatten", net.node("GlobalAveragePool", net.conv("image")))
    x = net.node("MatMul", x, net.const(np.ones((5, 54), np.float32)))
    assert net.place(net.node("Reshape", x, net.ints(1, 6, 9))) is None


def test_transposed_and_turned_grids_are_known_as_such():
    net = Net()
    x = net.node("Transpose", net.conv("image"), perm=[0, 1, 3, 2])
    x = net.node("Slice", x, net.ints(-1), net.ints(-100), net.ints(2), net.ints(-1))
    place = net.place(x)
    assert place.grid == (9, 6)
    assert (place.first.stride, place.first.offset, place.second.stride) == (-4.0, 33.5, 4.0)


def rolled(net, x, axis, by, size):
    """Cells moved by `by`, what falls off coming back on the other side."""
    parts = [
        net.node("Slice", x, net.ints(begin), net.ints(end), net.ints(axis)) for begin, end in ((by, size), (0, by))
    ]
    return net.node("Concat", *parts, axis=axis)


@pytest.mark.parametrize("by", [1, 2, 5])
def test_opposite_rolls_cancel(by):
    net = Net()
    x = rolled(net, net.conv("image"), 2, by, 6)
    assert net.place(x).rows.roll == by
    assert net.place(rolled(net, x, 2, 6 - by, 6)).rows.roll == 0


def test_a_part_of_a_rolled_grid_lies_where_its_cells_came_from():
    net = Net()
    x = rolled(net, net.conv("image"), 2, 2, 6)
    assert net.place(net.node("Slice", x, net.ints(1), net.ints(4), net.ints(2))).rows.offset == 1.5 + 3 * 4
    assert net.place(net.node("Slice", x, net.ints(3), net.ints(6), net.ints(2))) is None  # both edges of the image


@pytest.mark.parametrize("how", ["reshape", "depth", "slice"])
@pytest.mark.parametrize("by", [8, 6])
def test_a_rolled_image_cut_into_patches(how, by):
    """The roll stays one where it is a whole number of patches; else a patch holds both edges."""
    net = Net()
    x = rolled(net, "image", 2, by, H)
    if how == "reshape":
        x = net.node("Transpose", net.node("Reshape", x, net.ints(1, 3, 6, 4, 9, 4)), perm=[0, 2, 4, 1, 3, 5])
        x = net.node("MatMul", net.node("Reshape", x, net.ints(1, 54, 48)), net.const(np.ones((48, 7), np.float32)))
    elif how == "depth":
        x = net.node("SpaceToDepth", x, blocksize=4)
    else:
        x = net.node("Slice", x, net.ints(1), net.ints(H), net.ints(2), net.ints(4))
    place = net.place(x)
    if by % 4:
        assert place is None
    else:
        assert (place.rows.roll, place.rows.stride, place.rows.offset) == (2, 4.0, 1.0 if how == "slice" else 1.5)


def test_windows_and_back():
    net = Net()
    x = net.node("Transpose", net.conv("image"), perm=[0, 2, 3, 1])
    x = net.node("Transpose", net.node("Reshape", x, net.ints(1, 2, 3, 3, 3, 5)), perm=[0, 1, 3, 2, 4, 5])
    windows = net.node("Reshape", x, net.ints(6, 9, 5))
    assert net.place(windows) is None
    x = net.node("Transpose", net.node("Reshape", windows, net.ints(1, 2, 3, 3, 3, 5)), perm=[0, 1, 3, 2, 4, 5])
    place = net.place(net.node("Reshape", x, net.ints(1, 6, 9, 5)))
    assert (place.axes, place.grid) == ((1, 2), (6, 9))


def test_patches_cut_by_reshapes():
    net = Net()
    x = net.node("Transpose", net.node("Reshape", "image", net.ints(1, 3, 6, 4, 9, 4)), perm=[0, 2, 4, 3, 5, 1])
    x = net.node("MatMul", net.node("Reshape", x, net.ints(1, 54, 48)), net.const(np.ones((48, 7), np.float32)))
    place = net.place(x)
    assert (place.axes, place.grid, place.rows.stride, place.rows.offset) == ((1,), (6, 9), 4.0, 1.5)


def test_a_residual_carries_the_place_past_a_mixer():
    net = Net()
    x = net.node("Reshape", net.conv("image"), net.ints(1, 5, 54))
    mixed = net.node("MatMul", x, net.const(np.ones((54, 54), np.float32)))
    assert net.place(mixed) is None
    assert net.place(net.node("Add", x, mixed)).grid == (6, 9)


@pytest.mark.parametrize("last", [False, True])
def test_a_sub_pixel_layer_by_reshapes_is_finer(last):
    """Channels made into 2x2 cells of each cell, in either layout."""
    net = Net()
    x = net.conv("image", channels=20)
    if last:
        x = net.node("Reshape", net.node("Transpose", x, perm=[0, 2, 3, 1]), net.ints(1, 6, 9, 2, 2, 5))
        x = net.node("Reshape", net.node("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), net.ints(1, 12, 18, 5))
    else:
        x = net.node("Transpose", net.node("Reshape", x, net.ints(1, 5, 2, 2, 6, 9)), perm=[0, 1, 4, 2, 5, 3])
        x = net.node("Reshape", x, net.ints(1, 5, 12, 18))
    place = net.place(x)
    assert (place.grid, place.rows.stride, place.rows.offset) == ((12, 18), 2.0, 0.5)


@pytest.mark.parametrize("how", [{}, {"strides": [2, 2]}, {"strides": [2, 2], "pads": [1] * 4}])
def test_blocks_folded_beside_one_another_are_finer(how):
    """MobileViTV2: Col2Im of blocks that neither overlap nor are cut off."""
    net = Net(opset=18)
    x = net.node("Reshape", net.conv("image", channels=20), net.ints(1, 20, 54))
    is_plain = how == {"strides": [2, 2]}
    sides = (12, 18) if is_plain else (7, 10) if "pads" not in how else (10, 16)
    place = net.place(net.node("Col2Im", x, net.ints(*sides), net.ints(2, 2), **how))
    if is_plain:
        assert (place.grid, place.rows.stride, place.rows.offset) == ((12, 18), 2.0, 0.5)
    else:
        assert place is None


def test_channels_beside_rows_alone_are_no_finer_rows():
    net = Net()
    x = net.node("Reshape", net.conv("image", channels=10), net.ints(1, 5, 2, 6, 9))
    x = net.node("Reshape", net.node("Transpose", x, perm=[0, 1, 3, 2, 4]), net.ints(1, 5, 12, 9))
    assert net.place(x) is None


@pytest.mark.parametrize("rows", [6, 4])
def test_corners_laid_on_corners_agree_to_half_a_cell(rows):
    """A pyramid as DPT's: the coarser level has its corners where the finer one has them, if it shows the same part."""
    net = Net()
    fine = net.conv("image")
    part = net.node("Slice", fine, net.ints(0), net.ints(rows), net.ints(2))
    coarse = net.conv(part, 5, kernel=3, stride=2, pads=1)
    sizes = net.ints(1, 5, 6, 9)
    wide = net.node("Resize", coarse, "", "", sizes, mode="linear", coordinate_transformation_mode="align_corners")
    assert (net.place(net.node("Add", fine, wide)) is not None) is (rows == 6)


def test_grids_of_other_strides_do_not_agree():
    net = Net()
    fine = net.conv("image", kernel=2, stride=2)
    fine = net.node("Slice", fine, net.ints(0, 0), net.ints(6, 9), net.ints(2, 3))
    assert net.place(net.node("Add", net.conv("image"), fine)) is None


def test_an_unknown_operator_loses_the_place():
    net = Net()
    assert net.place(net.node("CumSum", net.conv("image"), net.const(np.array(1, np.int64)))) is None


@pytest.mark.parametrize("order", ["there and back", "there"])
def test_shuffled_tokens(order):
    net = Net()
    x = net.node("Reshape", net.conv("image"), net.ints(1, 5, 54))
    places = np.random.default_rng(0).permutation(54)
    x = net.node("Gather", x, net.ints(*places), axis=2)
    if order == "there":
        assert net.place(x) is None
    else:
        assert net.place(net.node("Gather", x, net.ints(*np.argsort(places)), axis=2)).grid == (6, 9)


WRITTEN = {  # a transposed convolution and the pads that onnxruntime gives it
    "upper": ({"auto_pad": "SAME_UPPER"}, {"pads": [0, 0, 1, 1]}),
    "lower": ({"auto_pad": "SAME_LOWER"}, {"pads": [1, 1, 0, 0]}),
    "output shape": ({"output_shape": [12, 18]}, {"pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    "upper, output shape": ({"auto_pad": "SAME_UPPER", "output_shape": [12, 18]}, {"pads": [0, 0, 1, 1]}),
}


@pytest.mark.parametrize("way", WRITTEN)
def test_a_transposed_convolution_lies_as_its_runtime_pads_it(way):
    found, results = [], []
    for attributes in WRITTEN[way]:
        net = Net()
        weight = net.const(np.random.default_rng(0).normal(size=(5, 5, 3, 3)).astype(np.float32))
        name = net.node("ConvTranspose", net.conv("image"), weight, strides=[2, 2], **attributes)
        place = net.place(name)
        found.append((place.grid, place.rows.stride, place.rows.offset, place.columns.offset))
        session = ort.InferenceSession(net.model(name).SerializeToString(), providers=["CPUExecutionProvider"])
        image = np.random.default_rng(1).normal(size=(1, 3, H, W)).astype(np.float32)
        results.append(session.run(None, {"image": image})[0])
    np.testing.assert_array_equal(*results)
    assert found[0] == found[1]


@pytest.mark.parametrize(("mode", "offset"), [("SAME_UPPER", 0.5), ("SAME_LOWER", -0.5)])
def test_an_odd_pad_of_a_convolution_stands_on_the_side_that_it_says(mode, offset):
    net = Net()
    weight = net.const(np.ones((5, 3, 4, 4), np.float32))
    place = net.place(net.node("Conv", "image", weight, auto_pad=mode))
    assert (place.grid, place.rows.offset) == ((H, W), offset)


def test_open_sizes_that_are_put_back_one_by_one():
    """Colours picked by an index, of an open batch, as OpenVINO writes it: `[3, N * H * W]` is made of it and back."""
    image = opset.parameter([-1, 3, H, W], np.float32, name="image")
    turned, number = opset.constant([1, 0, 2, 3]), opset.constant(0)
    rows = opset.reshape(opset.transpose(image, turned), opset.constant([0, -1]), special_zero=True)
    rows = opset.gather(rows, opset.constant([2, 1, 0]), number)
    sizes = opset.gather(opset.shape_of(image), opset.constant([0, 2, 3]), number)
    x = opset.reshape(rows, opset.concat([opset.constant([-1]), sizes], 0), special_zero=False)
    x = opset.reshape(opset.transpose(x, turned), opset.constant([0, 3, 0, 0]), special_zero=True)
    view = load(ov.Model([opset.relu(x)], [image]), {}).view()
    assert find_places(view).map_of(view.outputs[0]).grid == (H, W)
