"""Exports that declare an open batch and have a batch of one written into a layer: the map is that of one image."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.fused_models import RAW, WANTED, Net, images, transformer
from xai_insert import Options, errors, insert


def fixed_targets(model):
    """The same with 1 for the batch in all that it is reshaped to."""
    targets = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for tensor in model.graph.initializer:
        if tensor.name in targets:
            sizes = numpy_helper.to_array(tensor).copy()
            sizes[0] = 1
            tensor.CopyFrom(numpy_helper.from_array(sizes, tensor.name))
    return model


def pooled(sizes=(0, 8), between=None):
    n = Net()
    x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[8, 8], pads=[1] * 4))
    for target in between or ():
        x = n("Reshape", x, n.const(np.array(target)))
    if between:
        x = n("Relu", n("Conv", x, n.const(n.draw(8, 8, 3, 3)), pads=[1] * 4))
    flat = n("Reshape", n("GlobalAveragePool", x), n.const(np.array(sizes)))
    return n.model(n("Gemm", flat, n.const(n.draw(8, 7)), n.const(n.draw(7))))


def with_class_token(sizes):
    """A transformer whose class token is stored for one image."""
    model = transformer()
    token = next(node for node in model.graph.node if node.op_type == "Expand")
    model.graph.node.remove(token)
    concat = next(node for node in model.graph.node if token.output[0] in node.input)
    concat.input[:] = [token.input[0] if name == token.output[0] else name for name in concat.input]
    return fixed_targets(model) if sizes else model


BAKED = {
    "flattened": (lambda: pooled((1, 8)), pooled),
    "flattened, the rest inferred": (lambda: pooled((1, -1)), pooled),
    "reshaped before the map": (
        lambda: pooled((0, 8), [(1, 4, 2, 8, 8), (1, 8, 8, 8)]),
        lambda: pooled(between=[(0, 8, 8, 8)]),
    ),
    "heads and tokens": (lambda: fixed_targets(transformer()), transformer),
    "class token": (lambda: with_class_token(sizes=False), transformer),
    "class token, heads and tokens": (lambda: with_class_token(sizes=True), transformer),
}


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", BAKED)
def test_a_batch_of_one_under_an_open_one(name, kind):
    if (name, kind) == ("flattened, the rest inferred", "openvino"):
        pytest.skip("OpenVINO runs it for two images too, and gives the scores of none")
    baked, plain = (make() for make in BAKED[name])
    wanted, found = insert(plain, WANTED), insert(models.as_format(baked, kind), RAW)
    assert (found.report.method, found.report.form) == (wanted.report.method, "closed form")
    assert found.report.output_difference == 0
    assert "one image at a time, since" in found.report.reason
    image = images()[:1]
    a, b = (oracle.run(result.model, image)["saliency_map"] for result in (wanted, found))
    assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


def test_a_batch_among_the_channels_for_a_time_stays_open():
    model = pooled(between=[(1, -1, 8, 8), (-1, 8, 8, 8)])
    result = insert(model, RAW)
    assert "one image at a time" not in result.report.reason
    assert oracle.run(result.model, images())["saliency_map"].shape == (2, 7, 8, 8)
    onnx.checker.check_model(result.model)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_open_sides_of_a_model_of_one_size(kind):
    """As exporters leave them open for a transformer too, whose positions are stored."""
    model = transformer()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.ClearField("dim_value")
    with pytest.raises(errors.CheckFailedError, match=r"224 was taken .* --input-shape x:1,3,SIZE,SIZE"):
        insert(models.as_format(model, kind), RAW)
    found = insert(models.as_format(model, kind), Options(output_dtype="f32", input_shapes={"x": (1, 3, 64, 64)}))
    assert found.report.form == "closed form"


@pytest.mark.parametrize("kind", models.FORMATS)
def test_windows_that_are_divided_out_of_the_batch_again(kind):
    """As RF-DETR's backbone, which counts the images by dividing the windows: an IR does not tell what is left."""
    b = models.Builder(batch="N", size=(16, 16))
    width = models.CHANNELS
    x = b.node("Relu", b.node("Conv", "image", b.weight(width, 3, 2, 2), strides=[2, 2]))
    split = b.node("Reshape", x, b.const(np.array([-1, width, 2, 4, 2, 4])))
    rows = b.node("Transpose", split, perm=[0, 2, 4, 3, 5, 1])
    windows = b.node("MatMul", b.node("Reshape", rows, b.const(np.array([-1, 16, width]))), b.weight(width, width))
    many = b.node("Cast", b.node("Shape", windows, end=1), to=onnx.TensorProto.FLOAT)
    count = b.node("Floor", b.node("Div", many, b.const(np.array([4], np.float32))))
    count = b.node("Cast", count, to=onnx.TensorProto.INT64)
    sizes = b.node("Concat", count, b.const(np.array([2, 2, 4, 4])), b.node("Shape", windows, start=2), axis=0)
    back = b.node("Transpose", b.node("Reshape", windows, sizes), perm=[0, 1, 3, 2, 4, 5])
    whole = b.node("Concat", count, b.const(np.array([8, 8, width])), axis=0)
    feature = b.node("Transpose", b.node("Reshape", back, whole), perm=[0, 3, 1, 2])
    scores = b.node("Conv", feature, b.weight(5, width, 3, 3), pads=[1] * 4)
    plain = b.model(b.node("ArgMax", scores, axis=1), scores)
    result = insert(models.as_format(plain, kind), Options(output_dtype="f32"))
    pixels = np.random.default_rng(3).standard_normal((3, 3, 16, 16)).astype(np.float32)
    assert result.report.saliency_map["shape"] == (None, 5, 8, 8)
    np.testing.assert_allclose(
        oracle.run(result.model, pixels)["saliency_map"], oracle.run(plain, pixels)[scores], atol=1e-5
    )
