"""An inserted IR that is reshaped: the map follows, or the model is refused where it would lie wrongly."""

import numpy as np
import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.testbed import deployed, models, oracle, vector_models
from xai_insert import Options, insert, pipeline

SIZES = ([1, 3, 144, 64], [1, 3, 192, 192], [2, 3, 64, 160], [4, 3, 96, 96])


def fixed(name, shape=(1, 3, 96, 96)):
    model = deployed.plain(name, ".xml")
    model.reshape(list(shape))
    return model


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(
    "chosen", [{}, {"method": "activation-map"}, {"top_k": 2}, {"saliency_size": (9, 7)}, {"feature_vector": True}]
)
def test_the_map_follows(sizes, chosen):
    options = Options(output_dtype="f32", **chosen)
    result = insert(fixed("shapes_cnn"), options)
    assert tuple(result.report.target["grid"]) == (12, 12)
    assert None not in result.report.saliency_map["shape"]
    result.model.reshape(sizes)
    wanted = insert(fixed("shapes_cnn", sizes), options).model
    image = np.random.default_rng(0).uniform(0, 255, sizes).astype(np.float32)
    a, b = (oracle.run(model, image) for model in (wanted, result.model))
    assert {name: array.shape for name, array in a.items()} == {name: array.shape for name, array in b.items()}
    for name, array in a.items():
        np.testing.assert_allclose(b[name], array, rtol=0, atol=1e-5 * np.abs(array).max())


BY_RUNS_AND_DERIVATIVES = [{"form": "masked"}, *({"method": name} for name in ("hirescam", "grad-cam", "layercam"))]


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("chosen", [{}, {"top_k": 2}, *BY_RUNS_AND_DERIVATIVES], ids=str)
def test_another_batch_and_sides_that_are_no_whole_number_of_strides(chosen, kind, tmp_path):
    b = models.Builder(size=(24, 27), batch=1)
    follows_as_afresh(
        models.with_reader(b.model(unpadded(b)), kind, tmp_path), ([1, 3, 33, 49], [3, 3, 41, 32]), chosen
    )


def unpadded(b):
    """A grid that leaves out a margin: n pixels give `(n - 3) // 4` cells, 5 of 24 and 6 of 27."""
    x = b.node("Relu", b.node("Conv", "image", b.weight(6, 3, 3, 3), strides=[2, 2]))
    x = b.node("Relu", b.node("Conv", x, b.weight(6, 6, 3, 3), strides=[2, 2]))
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 6)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_head_of_convolutions_runs_for_as_many_masks_as_there_are_cells(kind, tmp_path):
    """Several masks at once, which have sizes that are not known before the model is loaded."""
    b = models.Builder(size=(16, 24), batch=1)
    x = b.node("Relu", b.node("Conv", b.backbone(), b.weight(6, models.CHANNELS, 3, 3), pads=[1] * 4))
    model = b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 6))
    chosen = {"form": "masked", "target_layer": b.nodes[3].name}
    follows_as_afresh(models.with_reader(model, kind, tmp_path), ([1, 3, 17, 31], [2, 3, 24, 16]), chosen)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_masks_of_sides_that_are_open_from_the_start(kind):
    """One set of weights, and the definition in NumPy: the scores of the head on one cell alone."""
    b = models.Builder(size=("height", "width"))
    coarse = b.node("AveragePool", b.backbone(), kernel_shape=[8, 8], strides=[8, 8])
    model = b.model(b.linear(b.node("Flatten", b.node("GlobalMaxPool", coarse)), models.CHANNELS), coarse)
    inserted = insert(models.as_format(model, kind), Options(output_dtype="f32", form="masked", output="gemm8_0")).model
    weight, bias = (onnx.numpy_helper.to_array(item) for item in model.graph.initializer[-2:])
    for sizes in ([2, 3, 32, 64], [1, 3, 80, 48]):
        image = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
        found = oracle.run(inserted, image)
        wanted = np.einsum("nchw,kc->nkhw", np.maximum(found[coarse], 0), weight) + bias[:, None, None]
        np.testing.assert_allclose(found["saliency_map"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def clip_network(size=(8, 16, 16)):
    """Clips `[1, 3, T, H, W]`, a feature of half the frames, rows and columns, and one place of it for each pool."""
    b = models.Builder(batch=1)
    x = b.node("Relu", b.node("Conv", "clip", b.weight(6, 3, 3, 3, 3), pads=[1] * 6, strides=[2] * 3))
    x = b.node("Relu", b.node("Conv", x, b.weight(6, 6, 3, 3, 3), pads=[1] * 6))
    clip = onnx.helper.make_tensor_value_info("clip", onnx.TensorProto.FLOAT, [1, 3, *size])
    return b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 6), inputs=[clip])


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("chosen", [{}, {"saliency_size": (5, 7)}, {"method": "hirescam"}, {"form": "masked"}], ids=str)
def test_clips_of_other_frames_rows_and_columns(chosen, kind, tmp_path):
    given = models.with_reader(clip_network(), kind, tmp_path)
    follows_as_afresh(given, ([1, 3, 8, 24, 32], [2, 3, 12, 16, 16], [1, 3, 9, 17, 15]), chosen)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("reference", ["self", "input", "classes"])
def test_likeness_of_embeddings_follows(reference, kind, tmp_path):
    rng, width = np.random.default_rng(0), vector_models.WIDTH
    fed = {"reference": rng.standard_normal((2, width)).astype(np.float32)} if reference == "input" else {}
    if reference == "classes":
        np.save(tmp_path / "rows.npy", rng.standard_normal((4, width)).astype(np.float32))
        options = Options(output_dtype="f32", class_embeddings=tmp_path / "rows.npy")
    else:
        options = Options(output_dtype="f32", reference=reference)
    model, read = models.with_reader(vector_models.model_of(size=(12, 12), batch=1), kind, tmp_path)
    inserted, plain = read(insert(model, options).model), read(model)
    images = {plain.input(0).any_name: rng.standard_normal((2, 3, 20, 28)).astype(np.float32)}
    plain.reshape(images["image"].shape)
    inserted.reshape({name: array.shape for name, array in (images | fed).items()})
    a, b = (oracle.compiled(item)(images | fed)["saliency_map"] for item in (insert(plain, options).model, inserted))
    assert np.ptp(a) > 0
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())


def follows_as_afresh(given, shapes, chosen):
    """An inserted model of other sizes has the map, within 1e-5, of inserting into the plain one of those sizes."""
    (model, read), options = given, Options(output_dtype="f32", **chosen)
    inserted, before = read(insert(model, options).model), read(model)
    for sizes in shapes:
        plain, reshaped = before.clone(), inserted.clone()
        plain.reshape(sizes)
        reshaped.reshape(sizes)
        image = np.random.default_rng(0).uniform(-1, 1, sizes).astype(np.float32)
        a, b = (oracle.run(item, image)["saliency_map"] for item in (insert(plain, options).model, reshaped))
        assert a.shape == b.shape
        assert np.ptp(a) > 0
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())


def test_it_is_told_by_the_output_of_the_reshaped_model():
    model = insert(fixed("shapes_cnn")).model
    assert list(model.output("saliency_map").shape) == [1, 8, 12, 12]
    model.get_parameters()[0].set_layout(ov.Layout("NCHW"))
    ov.set_batch(model, 3)
    assert list(model.output("saliency_map").shape) == [3, 8, 12, 12]


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("shapes_vit", {}), ("shapes_vit", {"block": 2}), ("shapes_vit", {"method": "activation-map"})],
    ids=["closed form", "masked runs", "activation map"],
)
def test_tokens_of_another_grid_are_refused_while_loading(name, chosen):
    """144 tokens may be 18 by 8, which the model, but not the map, takes for 12 by 12."""
    plain, inserted = fixed(name), insert(fixed(name), Options(**chosen)).model
    plain.reshape([1, 3, 144, 64])
    with pytest.raises(RuntimeError):
        inserted.reshape([1, 3, 144, 64])
    inserted.reshape([2, 3, 96, 96])
    assert inserted.output("saliency_map").shape[0] == 2


@pytest.mark.parametrize("sizes", [[1, 3, 128, 128], [1, 3, 96, 112], [1, 3, 48, 96]], ids=str)
def test_a_transformer_that_takes_no_other_number_of_tokens_is_no_loss(sizes):
    """Its positions are stored, so the plain model cannot be given another size either."""
    plain = fixed("shapes_vit")
    inserted = insert(plain).model
    for model in (plain, inserted):
        with pytest.raises(RuntimeError):
            model.reshape(sizes)


@pytest.mark.parametrize(
    "network",
    [
        models.pooled("GlobalAveragePool"),
        models.pooled("GlobalMaxPool"),
        models.channels_last,
        models.hidden_convolution,
        models.average_and_maximum(joined=True),
        models.generalised_mean,
    ],
)
def test_heads_of_all_kinds_follow(network):
    model = models.as_format(models.classifier(network, batch=1), "openvino")
    options = Options(output_dtype="f32", output=None)
    try:
        plain = model.clone()
        plain.reshape([1, 3, 8, 18])
    except RuntimeError:
        pytest.skip("the plain model takes one size")
    inserted = insert(model, options).model
    wanted = insert(plain, options).model
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 18)).astype(np.float32)
    try:
        inserted.reshape([1, 3, 8, 18])
    except RuntimeError:
        pytest.fail("the plain model takes the size")
    a, b = (oracle.run(item, image)["saliency_map"] for item in (wanted, inserted))
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("network", [models.flattened, models.grid_convolution])
def test_heads_of_one_size_fail_as_the_plain_model_does(network):
    model = models.as_format(models.classifier(network, batch=1), "openvino")
    inserted = insert(model, Options(output_dtype="f32")).model
    for item in (model, inserted):
        with pytest.raises(RuntimeError):
            item.reshape([1, 3, 10, 18])


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("shapes_cnn", {"method": "hirescam"}),
        ("shapes_cnn", {"method": "input-x-gradient"}),
        ("shapes_vit", {"method": "legrad"}),
        ("shapes_detector", {}),
        ("shapes_segmenter", {}),
    ],
    ids=str,
)
def test_the_batch_is_free(name, chosen):
    plain = deployed.plain(name, ".xml")
    sizes = [1, *list(plain.input(0).partial_shape)[1:]]
    plain.reshape(sizes)
    model = insert(plain, Options(output_dtype="f32", **chosen)).model
    images = np.random.default_rng(0).uniform(0, 255, [2, *model.input(0).shape[1:]]).astype(np.float32)
    alone = [oracle.run(model, images[index : index + 1])["saliency_map"] for index in range(2)]
    model.reshape([2, *sizes[1:]])
    np.testing.assert_allclose(
        oracle.run(model, images)["saliency_map"], np.concatenate(alone), rtol=0, atol=2e-5 * np.abs(alone).max()
    )


def strided(b):
    """Strides of a large kernel, of pools with and without pads, of a residual that reads one cell in four; groups."""
    x = b.node("Relu", b.node("Conv", "image", b.weight(4, 3, 5, 5, scale=0.2), pads=[2] * 4, strides=[2, 2]))
    x = b.node("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    main = b.node("Conv", x, b.weight(6, 4, 3, 3), pads=[1] * 4, strides=[2, 2])
    x = b.node("Relu", b.node("Add", main, b.node("Conv", x, b.weight(6, 4, 1, 1), strides=[2, 2])))
    x = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    return b.node("Relu", b.node("Conv", x, b.weight(6, 3, 3, 3), group=2, pads=[1] * 4))


def unpadded_strides(b):
    x = b.node("MaxPool", "image", kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("Relu", b.node("Conv", x, b.weight(6, 3, 3, 2), strides=[2, 1]))
    x = b.node("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    return b.node("Relu", b.node("Conv", x, b.weight(6, 6, 3, 3), strides=[3, 2], pads=[0, 1, 1, 0]))


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("chosen", [{"method": "input-x-gradient"}, {"method": "layercam", "target_layer": "-2"}])
@pytest.mark.parametrize("network", [strided, unpadded_strides])
def test_derivatives_through_strides_follow(network, chosen, kind, tmp_path, monkeypatch):
    """Of another size the map is that of the derivative that is written for that size alone."""
    b = models.Builder(size=(64, 48), batch=1)
    x = b.node("GlobalAveragePool", network(b))
    model, read = models.with_reader(b.model(b.linear(b.node("Flatten", x), 6)), kind, tmp_path)
    options = Options(output_dtype="f32", top_k=2, **chosen)
    inserted, before = read(insert(model, options).model), read(model)
    monkeypatch.setattr(pipeline, "opened_sizes", lambda *_, **__: None)
    for sizes in ([1, 3, 64, 48], [1, 3, 61, 83], [2, 3, 94, 55]):
        plain, reshaped = before.clone(), inserted.clone()
        plain.reshape(sizes)
        reshaped.reshape(sizes)
        image = np.random.default_rng(0).uniform(-1, 1, sizes).astype(np.float32)
        a, b = (oracle.run(item, image)["saliency_map"] for item in (insert(plain, options).model, reshaped))
        assert np.ptp(a) > 0
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())


def turned(b):
    """A grid whose rows run backwards, which the map is turned back from by a list of all rows."""
    limits = [b.const(np.array([number])) for number in (-1, -1000, 2, -1)]
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.node("Slice", b.backbone(), *limits))), 6)


def test_a_map_that_is_turned_back_is_for_one_size():
    model = models.as_format(models.classifier(turned, batch=1), "openvino")
    inserted = insert(model, Options(output_dtype="f32")).model
    model.reshape([1, 3, 24, 12])
    with pytest.raises(RuntimeError):
        inserted.reshape([1, 3, 24, 12])


@pytest.mark.parametrize("name", ["shapes_vit", "shapes_detector"])
def test_an_onnx_file_that_openvino_gives_another_size_is_refused_while_loading(name, tmp_path):
    """Its sizes are those of the file, as they are for onnxruntime; the batch stays free."""
    plain = deployed.plain(name, ".onnx")
    for dim, size in zip(
        plain.graph.input[0].type.tensor_type.shape.dim[2:],
        deployed.plain(name, ".xml").input(0).partial_shape[2:],
        strict=True,
    ):
        dim.dim_value = size.get_length()
    onnx.save(insert(plain).model, tmp_path / "xai.onnx")
    model = ov.Core().read_model(tmp_path / "xai.onnx")
    height, width = (size.get_length() for size in model.input(0).partial_shape[2:])
    with pytest.raises(RuntimeError):
        model.clone().reshape([1, 3, 2 * height, width])
    model.reshape([2, 3, height, width])
    assert model.output("saliency_map").shape[0] == 2
    image = np.random.default_rng(0).uniform(0, 255, (2, 3, height, width)).astype(np.float32)
    a, b = (oracle.run(item, image)["saliency_map"] for item in (insert(plain).model, model))
    assert np.abs(a.astype(int) - b).max() <= 1
