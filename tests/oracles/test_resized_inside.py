"""Images of any size that the model makes of one: the map is that of the model behind, and lies over all of them."""

import numpy as np
import onnx
import pytest

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.models import CHANNELS, Builder
from model_zoo_fixtures.testbed.transformer_models import GRID, transformer
from xai_insert import Options, errors, insert

SIZE = (24, 32)


def mean(b):
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), CHANNELS)


def flattened(b):
    return b.linear(b.node("Flatten", b.backbone()), CHANNELS * SIZE[0] * SIZE[1] // 4)


def attended(b):
    rows = b.node("Reshape", b.backbone(), b.const(np.array([0, CHANNELS, -1])))
    tokens = b.node("Transpose", rows, perm=[0, 2, 1])
    shares = b.node("Softmax", b.node("MatMul", tokens, b.weight(CHANNELS, 1)), axis=1)
    return b.linear(b.node("ReduceMean", b.node("Mul", tokens, shares), axes=[1], keepdims=0), CHANNELS)


def scaled(b):
    """Scores times the height of the image as it was given, which no constant is."""
    bounds = (b.const(np.array([number])) for number in (2, 3, 0))
    return b.node("Mul", mean(b), b.node("Cast", b.node("Slice", b.node("Shape", "given"), *bounds), to=1))


HEADS = {"mean": mean, "flattened": flattened, "attended": attended, "transformer": transformer()}


def build(head, size, *, inside):
    """The model with the resize in it, as `interpolate(size=...)` and Keras' `Resizing` write it, or that behind it."""
    b = Builder(size=size)
    if not inside:
        return b.model(head(b))
    batch = b.node("Slice", b.node("Shape", "given"), *(b.const(np.array([number])) for number in (0, 2, 0)))
    sizes = b.node("Concat", batch, b.const(np.array(size)), axis=0)
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    b.nodes.append(onnx.helper.make_node("Resize", ["given", "", "", sizes], ["image"], name="resize", **how))
    given = onnx.helper.make_tensor_value_info("given", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])
    return b.model("image" if head is None else head(b), inputs=[given])


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", HEADS)
def test_the_map_is_that_of_the_model_behind(name, kind):
    size = (2 * GRID[0], 2 * GRID[1]) if name == "transformer" else SIZE
    small = build(None, size, inside=True)
    whole, behind = (build(HEADS[name], size, inside=inside) for inside in (True, False))
    for dtype in ("f32", "u8"):
        options = Options(output_dtype=dtype)
        made, plain = (insert(models.as_format(item, kind), options) for item in (whole, behind))
        assert (made.report.place, made.report.saliency_map["rectangle"]) == ("blocks", None)
        assert made.report.form == plain.report.form
        for sides in ((24, 32), (60, 41)):
            images = np.random.default_rng(0).standard_normal((2, 3, *sides)).astype(np.float32)
            given = next(iter(oracle.run(small, images).values()))
            found, wanted = oracle.run(made.model, images), oracle.run(plain.model, given)["saliency_map"]
            np.testing.assert_allclose(found.pop("saliency_map"), wanted, atol=1 if dtype == "u8" else 1e-4)
            for output, array in oracle.run(models.as_format(whole, kind), images).items():
                np.testing.assert_array_equal(found[output], array)


def test_numbers_of_the_size_that_was_given_are_not_written_as_constants():
    model = models.as_format(build(scaled, SIZE, inside=True), "openvino")
    with pytest.raises(errors.TargetNotFoundError, match="--input-shape"):
        insert(model)
    result = insert(build(scaled, SIZE, inside=True), Options(output_dtype="f32"))
    images = np.random.default_rng(0).standard_normal((1, 3, 48, 64)).astype(np.float32)
    plain = insert(build(mean, SIZE, inside=True), Options(output_dtype="f32"))
    found, wanted = (oracle.run(item.model, images)["saliency_map"] for item in (result, plain))
    np.testing.assert_allclose(found, 48 * wanted, rtol=1e-4, atol=1e-3)
