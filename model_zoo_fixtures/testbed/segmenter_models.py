"""Semantic segmenters built by hand, as networks and converters end them, and their class scores by a plain run."""

import numpy as np
import onnx

from model_zoo_fixtures.testbed import models, oracle

K, SIDE = 5, 32


def image(batch=2, side=SIDE):
    return np.random.default_rng(0).standard_normal((batch, 3, side, side)).astype(np.float32)


def head(b, x, classes=K):
    return b.node("Conv", x, b.weight(classes, models.CHANNELS, 1, 1), b.weight(classes))


def enlarged(b, x, times=4.0, mode="linear"):
    scales = b.const(np.array([1, 1, times, times], np.float32))
    return b.node("Resize", x, "", scales, mode=mode, coordinate_transformation_mode="half_pixel")


def coarse(b):
    """A feature at stride 4."""
    return b.node("Relu", b.node("Conv", b.backbone(), b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2]))


def deeplab(b):
    scores = head(b, coarse(b))
    return scores, [enlarged(b, scores)]


def softmaxed(b):
    scores = head(b, coarse(b))
    return scores, [b.node("Softmax", enlarged(b, scores), axis=1)]


def written_softmax(b):
    """As older Keras has it for more than two axes, with channels last."""
    scores = head(b, coarse(b))
    last = b.node("Transpose", enlarged(b, scores), perm=[0, 2, 3, 1])
    powers = b.node("Exp", b.node("Sub", last, b.node("ReduceMax", last, axes=[3], keepdims=1)))
    return scores, [b.node("Div", powers, b.node("ReduceSum", powers, b.const(np.array([3])), keepdims=1))]


def softmax_then_resize(b):
    scores = head(b, coarse(b))
    return scores, [enlarged(b, b.node("Softmax", scores, axis=1))]


def argmax(b, keepdims=0, **last):
    scores = head(b, coarse(b))
    return scores, [b.node("ArgMax", enlarged(b, scores), axis=1, keepdims=keepdims)]


def argmax_of_few(b):
    scores = head(b, coarse(b), 2)
    return scores, [b.node("ArgMax", enlarged(b, scores), axis=1, keepdims=0)]


def argmax_as_float(b):
    scores, (labels,) = argmax(b)
    return scores, [b.node("Cast", labels, to=onnx.TensorProto.FLOAT)]


def argmax_enlarged(b):
    scores = head(b, coarse(b))
    labels = b.node("Cast", b.node("ArgMax", scores, axis=1, keepdims=1), to=onnx.TensorProto.FLOAT)
    return scores, [enlarged(b, labels, mode="nearest")]


def logits_and_labels(b):
    scores = head(b, coarse(b))
    whole = enlarged(b, scores)
    return scores, [b.node("ArgMax", whole, axis=1, keepdims=0), whole]


def channels_last(b):
    scores = head(b, coarse(b))
    return scores, [b.node("Softmax", b.node("Transpose", enlarged(b, scores), perm=[0, 2, 3, 1]), axis=-1)]


def last_channels(b):
    """A head as a product with channels last, as Keras and SegFormer's own code write it."""
    x = b.node("Transpose", coarse(b), perm=[0, 2, 3, 1])
    scores = b.node("Add", b.node("MatMul", x, b.weight(6, K)), b.weight(K))
    return scores, [b.node("Softmax", scores, axis=-1)]


def segformer(b):
    """Raw logits at stride 4."""
    scores = head(b, coarse(b))
    return scores, [scores]


def aspp(b, pool=None):
    """Coarse scores given as they are: each place is joined with the mean of the image, or with what `pool` makes."""
    x = b.node("Conv", coarse(b), b.weight(6, 6, 2, 2), strides=[2, 2])
    pooled = b.node("GlobalAveragePool", x) if pool is None else b.node(pool, x, kernel_shape=[2, 2], strides=[2, 2])
    side = SIDE // 8
    times = float(side) if pool is None else 2.0
    spread = enlarged(b, b.node("Relu", b.node("Conv", pooled, b.weight(6, 6, 1, 1))), times)
    joined = b.node("Concat", b.node("Conv", x, b.weight(6, 6, 1, 1)), spread, axis=1)
    scores = head(b, b.node("Relu", b.node("Conv", joined, b.weight(models.CHANNELS, 12, 1, 1))))
    return scores, [scores]


def unet(b):
    x = b.node("Relu", b.node("ConvTranspose", coarse(b), b.weight(6, 6, 2, 2), strides=[2, 2]))
    x = b.node("Relu", b.node("ConvTranspose", x, b.weight(6, 6, 2, 2), strides=[2, 2]))
    scores = head(b, x)
    return scores, [scores]


def repeated(b, x, axis, sizes):
    """Each cell of an axis twice, as Keras' `UpSampling2D` and `repeat` write it."""
    times = np.ones(5, np.int64)
    times[axis + 1] = 2
    tiled = b.node("Tile", b.node("Unsqueeze", x, b.const(np.array([axis + 1]))), b.const(times))
    return b.node("Reshape", tiled, b.const(np.array(sizes)))


def repeats(b):
    """A U-Net that repeats its cells, with channels last, and joins them to finer ones."""
    fine, rough = SIDE // 2, SIDE // 4
    x = b.node("Transpose", coarse(b), perm=[0, 2, 3, 1])
    x = repeated(b, repeated(b, x, 1, [-1, fine, rough, 6]), 2, [-1, fine, fine, 6])
    joined = b.node("Concat", b.node("Transpose", x, perm=[0, 3, 1, 2]), b.backbone(), axis=1)
    scores = head(b, b.node("Relu", b.node("Conv", joined, b.weight(models.CHANNELS, 12, 3, 3), pads=[1] * 4)))
    return scores, [scores]


def lraspp(b):
    """Scores of two levels, added."""
    low = head(b, b.node("Conv", "image", b.weight(6, 3, 4, 4), strides=[4, 4]))
    high = enlarged(b, head(b, b.node("Conv", coarse(b), b.weight(6, 6, 2, 2), strides=[2, 2])), 2.0)
    scores = b.node("Add", high, low)
    return scores, [enlarged(b, scores)]


def sub_pixels(b):
    """Scores made of channels by reshapes, as an IR has a pixel shuffle."""
    shape = [b.const(np.array(sizes)) for sizes in ([0, K, 2, 2, SIDE // 4, SIDE // 4], [0, K, SIDE // 2, SIDE // 2])]
    x = b.node("Transpose", b.node("Reshape", head(b, coarse(b), 4 * K), shape[0]), perm=[0, 1, 4, 2, 5, 3])
    scores = b.node("Reshape", x, shape[1])
    return scores, [b.node("Softmax", scores, axis=1)]


def depth_to_space(b):
    """Scores at half the resolution, made of channels by the operator for it, and given as they are."""
    scores = b.node("DepthToSpace", head(b, coarse(b), 4 * K), blocksize=2, mode="CRD")
    return scores, [scores]


def rows_of_places(b):
    """As Keras has it: a softmax in each row of `[N, h * w, K]`."""
    scores = head(b, coarse(b))
    last = b.node("Transpose", enlarged(b, scores), perm=[0, 2, 3, 1])
    return scores, [b.node("Softmax", b.node("Reshape", last, b.const(np.array([-1, SIDE * SIDE, K]))), axis=-1)]


def rows_of_four(b):
    """As many classes as a box has numbers."""
    scores = head(b, coarse(b), 4)
    last = b.node("Transpose", enlarged(b, scores), perm=[0, 2, 3, 1])
    return scores, [b.node("Softmax", b.node("Reshape", last, b.const(np.array([-1, SIDE * SIDE, 4]))), axis=-1)]


def beside_sizes(b):
    """With the sizes of a layer among the outputs, as TensorFlow's resizes leave them there."""
    scores, given = softmaxed(b)
    return scores, [*given, b.node("Slice", b.node("Shape", scores), *(b.const(np.array([n])) for n in (2, 4, 0)))]


def columns_of_places(b):
    scores = head(b, coarse(b))
    columns = b.node("Reshape", enlarged(b, scores), b.const(np.array([0, K, -1])))
    return scores, [b.node("Softmax", b.node("Transpose", columns, perm=[0, 2, 1]), axis=-1)]


def rows_of_all_images(b):
    """A softmax of a matrix, as TensorFlow's first versions had it."""
    scores = head(b, coarse(b))
    last = b.node("Transpose", enlarged(b, scores), perm=[0, 2, 3, 1])
    shares = b.node("Softmax", b.node("Reshape", last, b.const(np.array([-1, K]))), axis=-1)
    return scores, [b.node("Reshape", shares, b.const(np.array([-1, SIDE * SIDE, K])))]


NETWORKS = {
    item.__name__: item
    for item in (
        deeplab, softmaxed, softmax_then_resize, argmax, argmax_of_few, argmax_as_float, argmax_enlarged,
        logits_and_labels, channels_last, last_channels, segformer, aspp, unet, lraspp, sub_pixels, depth_to_space,
        rows_of_places, columns_of_places, rows_of_all_images, repeats, rows_of_four, beside_sizes,
        written_softmax,
    )
}  # fmt: skip
LAST = {"last_channels"}


def build(name, **more):
    b = models.Builder(size=(SIDE, SIDE), **more)
    scores, outputs = NETWORKS[name](b)
    return b.model(*outputs), scores


def raw_scores(model, name, scores, images):
    """The scores by a run of the plain model that gives them too, `[B, K, h, w]`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if scores not in [item.name for item in copy.graph.output]:
        copy.graph.output.extend([onnx.helper.make_empty_tensor_value_info(scores)])
    found = oracle.run(copy, images)[scores]
    return found.transpose(0, 3, 1, 2) if name in LAST else found
