"""Images in tiles, laid out otherwise, of several sizes, of many bands, warped: maps in NumPy, or why there is none."""

import numpy as np
import onnx
import openvino as ov
import openvino.opset13 as opset
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.models import CHANNELS, CLASSES, Builder
from xai_insert import Options, errors, insert

RNG = np.random.default_rng(3)


def mapped(model, kind, **feeds):
    """Report and map of a model whose features are the scores' only source."""
    result = insert(models.as_format(model, kind), Options(output_dtype="f32"))
    if kind == "onnx":
        outputs = oracle.session(result.model).run(["saliency_map"], feeds)[0]
    else:
        outputs = np.array(oracle.compiled(result.model)(feeds)["saliency_map"])
    return result.report, outputs


def of_mean(feature, weight, bias):
    """Recipro-CAM of a linear layer behind the mean over a grid, `[B, K, h, w]`, of features `[B, C, h, w]`."""
    return np.einsum("bchw,kc->bkhw", feature, weight) / feature[0, 0].size + bias[:, None, None]


def convolved(image, weight):
    """A convolution whose windows lie side by side, rectified."""
    side = weight.shape[-1]
    blocks = image.reshape(*image.shape[:2], image.shape[2] // side, side, image.shape[3] // side, side)
    return np.maximum(np.einsum("bcirjs,ocrs->boij", blocks, weight), 0)


def stored(model, *shapes):
    """Weights of these shapes, in order."""
    arrays = [onnx.numpy_helper.to_array(item) for item in model.graph.initializer]
    return [next(array for array in arrays if array.shape == shape) for shape in shapes]


def unfolded(b, x, axis, size, side):
    """`Tensor.unfold(axis, side, side)` as the older exporter writes it: slices, turned and stacked one by one."""
    rank = 4 if axis == 2 else 5
    perm = [*(index for index in range(rank) if index != axis), axis]
    pieces = []
    for start in range(0, size, side):
        piece = b.node("Slice", x, *(b.const(np.array([n])) for n in (start, start + side, axis)))
        pieces.append(b.node("Unsqueeze", b.node("Transpose", piece, perm=perm), b.const(np.array([axis]))))
    return b.node("Concat", *pieces, axis=axis)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_tiles_that_are_cut_one_by_one(kind):
    b = Builder(size=(32, 24), batch=1)
    x = unfolded(b, unfolded(b, "image", 2, 32, 8), 3, 24, 8)  # [1, 3, rows, columns, 8, 8]
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 3, 1, 4, 5]), b.const(np.array([-1, 3, 8, 8])))
    x = b.node("Relu", b.node("Conv", x, b.weight(CHANNELS, 3, 4, 4), strides=[4, 4]))
    x = b.node("Reshape", b.node("GlobalAveragePool", x), b.const(np.array([1, 12, CHANNELS])))
    model = b.model(b.linear(b.node("ReduceMean", x, axes=[1], keepdims=0), CHANNELS))
    image = RNG.standard_normal((1, 3, 32, 24)).astype(np.float32)
    report, found = mapped(model, kind, image=image)
    convolution, weight, bias = stored(model, (CHANNELS, 3, 4, 4), (CLASSES, CHANNELS), (CLASSES,))
    feature = convolved(image, convolution)
    cells = found.shape[2:]
    assert cells in ((8, 6), (4, 3))  # of the cells, or of the tiles
    assert report.place == "blocks"
    mean = feature.reshape(1, CHANNELS, cells[0], 8 // cells[0], cells[1], 6 // cells[1]).mean((3, 5))
    np.testing.assert_allclose(found, of_mean(mean, weight, bias), atol=1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(("bands", "size"), [(32, (16, 16)), (40, (24, 32))])
def test_many_bands(bands, size, kind):
    """Of spectral cameras, also where a side would be few enough for channels."""
    b = Builder(size=size, channels=bands)
    weight = b.weight(CHANNELS, bands, 4, 4, scale=0.1)
    x = b.node("Relu", b.node("Conv", b.node("Mul", "image", b.const(np.float32(0.5))), weight, strides=[4, 4]))
    model = b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), CHANNELS))
    image = RNG.standard_normal((2, bands, *size)).astype(np.float32)
    report, found = mapped(model, kind, image=image)
    convolution, weight, bias = stored(model, (CHANNELS, bands, 4, 4), (CLASSES, CHANNELS), (CLASSES,))
    np.testing.assert_allclose(found, of_mean(convolved(image / 2, convolution), weight, bias), atol=1e-5)
    assert report.place == "blocks"


@pytest.mark.parametrize("kind", models.FORMATS)
def test_as_many_channels_as_rows(kind):
    """The model's first layer tells which axis is of channels, not the sizes."""
    b = Builder(size=(16, 16), channels=16)
    x = b.node("Transpose", "image", perm=[0, 3, 1, 2])
    x = b.node("Relu", b.node("Conv", x, b.weight(CHANNELS, 16, 4, 4, scale=0.1), strides=[4, 4]))
    model = b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), CHANNELS))
    image = RNG.standard_normal((2, 16, 16, 16)).astype(np.float32)
    report, found = mapped(model, kind, image=image)
    convolution, weight, bias = stored(model, (CHANNELS, 16, 4, 4), (CLASSES, CHANNELS), (CLASSES,))
    wanted = of_mean(convolved(image.transpose(0, 3, 1, 2), convolution), weight, bias)
    assert report.place == "blocks"
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_inputs_of_several_sizes_that_meet_before_the_last_map(kind):
    """A camera and a smaller thermal image: one map of both, for the first."""
    b = Builder(size=(16, 24))
    one = b.node("Relu", b.node("Conv", "image", b.weight(CHANNELS, 3, 4, 4), strides=[4, 4]))
    two = b.node("Relu", b.node("Conv", "warmth", b.weight(CHANNELS, 1, 2, 2), strides=[2, 2]))
    both = b.node("Relu", b.node("Conv", b.node("Concat", one, two, axis=1), b.weight(CHANNELS, 2 * CHANNELS, 1, 1)))
    sizes = {"image": ["N", 3, 16, 24], "warmth": ["N", 1, 8, 12]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sizes.items()]
    scores = b.linear(b.node("Flatten", b.node("GlobalAveragePool", both)), CHANNELS)
    model = b.model(scores, inputs=inputs)
    feeds = {name: RNG.standard_normal((2, *shape[1:])).astype(np.float32) for name, shape in sizes.items()}
    report, found = mapped(model, kind, **feeds)
    shapes = ((CHANNELS, 3, 4, 4), (CHANNELS, 1, 2, 2), (CHANNELS, 2 * CHANNELS, 1, 1), (CLASSES, CHANNELS), (CLASSES,))
    first, second, mix, weight, bias = stored(model, *shapes)
    joined = np.concatenate([convolved(feeds["image"], first), convolved(feeds["warmth"], second)], axis=1)
    assert report.place == "blocks"
    np.testing.assert_allclose(found, of_mean(convolved(joined, mix), weight, bias), atol=1e-5)


def warped(b):
    grid = b.const(RNG.uniform(-1, 1, (1, models.SIDE, models.SIDE, 2)).astype(np.float32))
    b.nodes.append(helper.make_node("GridSample", ["image", grid], ["warped"], name="undistort"))
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone("warped"))), CHANNELS)


def frames(b):
    mean = b.node("ReduceMean", b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), axes=[0], keepdims=1)
    return b.linear(mean, CHANNELS)


def flipped_views(b):
    back = [b.const(np.array([number])) for number in (-1, -(2**63) + 1, 3, -1)]
    both = b.node("Concat", "image", b.node("Slice", "image", *back), axis=0)
    scores = b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone(both))), CHANNELS)
    apart = b.node("Reshape", scores, b.const(np.array([2, -1, CLASSES])))
    return b.node("ReduceMean", apart, axes=[0], keepdims=0)


@pytest.mark.parametrize(
    ("network", "batch", "said"),
    [
        (flipped_views, 1, "stand side by side in one batch"),
        (warped, 1, "not known where GridSample 'undistort' puts it"),
        (frames, 4, "1 maps for 4 images, which have their answer together"),
    ],
)
def test_what_is_in_the_way_is_named(network, batch, said):
    with pytest.raises(errors.XaiInsertError, match=said) as caught:
        insert(models.classifier(network, batch=batch))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("padding", ["valid", "same_upper"])
def test_patches_that_openvino_cuts_out(padding):
    """A transformer's patches as `tf.image.extract_patches` gives them, read as tokens."""
    patch, step, width = 8, 6, 5
    image = opset.parameter([-1, 3, 20, 32], np.float32, name="image")
    patches = opset.extract_image_patches(image, [patch] * 2, [step] * 2, [1, 1], padding)
    rows, columns = (size.get_length() for size in list(patches.output(0).partial_shape)[2:])
    last = opset.transpose(patches, [0, 2, 3, 1])
    tokens = opset.reshape(last, [-1, rows * columns, 3 * patch * patch], special_zero=False)
    embed = RNG.standard_normal((3 * patch * patch, width)).astype(np.float32)
    weight = RNG.standard_normal((width, CLASSES)).astype(np.float32)
    feature = opset.relu(opset.matmul(tokens, embed, False, False))
    logits = opset.matmul(opset.reduce_mean(feature, [1], False), weight, False, False)
    model = ov.Model([opset.result(logits, name="logits"), opset.result(last)], [image], "net")
    picture = RNG.standard_normal((2, 3, 20, 32)).astype(np.float32)
    cut = np.array(oracle.compiled(model)(picture)[1])
    plain = ov.Model([opset.result(logits, name="logits")], [image], "net")
    result = insert(plain, Options(output_dtype="f32"))
    found = np.array(oracle.compiled(result.model)(picture)["saliency_map"])
    wanted = of_mean(np.maximum(cut @ embed, 0).transpose(0, 3, 1, 2), weight.T, np.zeros(CLASSES, np.float32))
    assert (result.report.place, found.shape) == ("blocks", (2, CLASSES, rows, columns))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(("axis", "is_kept"), [(1, True), (2, False)])
def test_rows_that_openvino_shuffles_are_no_grid(axis, is_kept):
    """ShuffleChannels deals out the elements of whatever axis it is given; behind attention no block would tell."""
    image = opset.parameter([1, 3, 16, 16], np.float32, name="image")
    weight = RNG.standard_normal((8, 3, 2, 2)).astype(np.float32)
    feature = opset.relu(opset.convolution(image, weight, [2, 2], [0, 0], [0, 0], [1, 1]))
    mixed = opset.shuffle_channels(feature, axis, 2)
    logits = opset.matmul(opset.reduce_mean(mixed, [2, 3], False), np.ones((8, CLASSES), np.float32), False, False)
    target = insert(ov.Model([opset.result(logits, name="logits")], [image], "net")).report.target
    assert target["name"] == (mixed if is_kept else feature).get_friendly_name()
