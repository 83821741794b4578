"""Maps of the best classes alone: those of the model with all maps, named per image."""

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from model_zoo_fixtures.testbed import deployed, oracle
from model_zoo_fixtures.testbed.models import CLOSED, MASKED, as_format, classifier
from xai_insert import Options, errors, insert
from xai_insert.cli.insert import main

KINDS = ["onnx", "openvino"]
K = 3


def best(logits):
    return np.argsort(-logits, axis=1, kind="stable")[:, :K]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", [*CLOSED, *MASKED])
def test_every_head_gives_the_maps_of_its_best_classes(network, kind):
    model = as_format(classifier({**CLOSED, **MASKED}[network]), kind)
    image = np.random.default_rng(4).standard_normal((4, 3, 12, 12), dtype=np.float32)
    whole = oracle.run(insert(model, Options(output_dtype="f32")).model, image)
    found = oracle.run(insert(model, Options(output_dtype="f32", top_k=K)).model, image)
    classes = found["saliency_classes"]
    (logits,) = (value for name, value in whole.items() if name != "saliency_map")
    assert classes.dtype == np.int64
    assert np.array_equal(classes, best(logits.reshape(4, -1)))
    wanted = np.take_along_axis(whole["saliency_map"], classes[:, :, None, None], axis=1)
    np.testing.assert_allclose(found["saliency_map"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
@pytest.mark.parametrize("name", ["shapes_cnn", "shapes_vit"])
def test_trained_models_in_bytes(name, suffix):
    model = deployed.plain(name, suffix)
    images = deployed.scenes(5)
    whole = oracle.run(insert(model).model, images)
    result = insert(model, Options(top_k=K))
    found = oracle.run(result.model, images)
    assert np.array_equal(found["logits"], whole["logits"])
    assert np.array_equal(found["saliency_classes"], best(whole["logits"]))
    wanted = np.take_along_axis(whole["saliency_map"], found["saliency_classes"][:, :, None, None], axis=1)
    # A byte may fall to the other side of a whole number where the order of summation differs.
    assert np.abs(found["saliency_map"].astype(int) - wanted).max() <= 1
    assert result.report.saliency_map["shape"] == (None, K, 12, 12)


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_grid_that_follows_the_image(suffix):
    model = deployed.resized_input(deployed.plain("shapes_cnn", suffix), ["batch", 3, "height", "width"])
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 128, 64)).astype(np.float32)
    whole = oracle.run(insert(model, Options(output_dtype="f32")).model, images)
    found = oracle.run(insert(model, Options(output_dtype="f32", top_k=K)).model, images)
    wanted = np.take_along_axis(whole["saliency_map"], found["saliency_classes"][:, :, None, None], axis=1)
    assert found["saliency_map"].shape == (2, K, 16, 8)
    np.testing.assert_allclose(found["saliency_map"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_more_than_there_are_classes():
    result = insert(deployed.plain("shapes_cnn", ".onnx"), Options(top_k=100))
    assert oracle.run(result.model, deployed.scenes(1))["saliency_map"].shape == (1, 8, 12, 12)


def test_one_map_for_all_classes_has_no_best():
    with pytest.raises(errors.UnsupportedTaskError, match="leave out --top-k"):
        insert(deployed.plain("shapes_cnn", ".onnx"), Options(method="activation-map", top_k=2))


def test_option_and_explanation(tmp_path):
    from xai_insert.cli.explain import main as explain

    goal, images = tmp_path / "new.xml", deployed.SHAPES / "images"
    arguments = [str(deployed.SHAPES / "shapes_cnn.xml"), "-o", str(goal), "--top-k", "2"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    whole = tmp_path / "whole.xml"
    assert CliRunner().invoke(main, [*arguments[:2], str(whole)]).exit_code == 0
    for model in (goal, whole):
        result = CliRunner().invoke(
            explain, [str(model), str(images), "-o", str(tmp_path / model.stem), "--raw", "npy"]
        )
        assert result.exit_code == 0, result.output
    drawn = [sorted(path.relative_to(tmp_path / stem) for path in (tmp_path / stem).rglob("*.npy")) for stem in
             ("new", "whole")]  # fmt: skip
    assert drawn[0] == drawn[1] != []
    for path in drawn[0]:
        new, old = (np.load(tmp_path / stem / path).astype(int) for stem in ("new", "whole"))
        assert np.abs(new - old).max() <= 3  # in the device's default precision


def with_classes(name, rows, bias):
    """A bundled model with another last layer."""
    model = deployed.plain(name, ".onnx")
    stored = {item.name: item for item in model.graph.initializer}
    stored["head.weight"].CopyFrom(numpy_helper.from_array(rows, "head.weight"))
    stored["head.bias"].CopyFrom(numpy_helper.from_array(bias, "head.bias"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = len(rows)
    del model.graph.value_info[:]
    return model


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["shapes_cnn", "shapes_vit"])
def test_as_many_classes_as_imagenet_21k(name, kind):
    rng = np.random.default_rng(0)
    rows, bias = rng.standard_normal((21_843, 64), dtype=np.float32), rng.standard_normal(21_843, dtype=np.float32)
    images = deployed.scenes(2)
    result = insert(as_format(with_classes(name, rows, bias), kind), Options(output_dtype="f32", top_k=5))
    found = oracle.run(result.model, images)
    assert found["saliency_map"].shape == (2, 5, 12, 12)
    assert found["saliency_map"].nbytes == 2 * 5 * 12 * 12 * 4
    classes = found["saliency_classes"]
    assert np.array_equal(classes, np.argsort(-found["logits"], axis=1)[:, :5])
    assert len(np.unique(classes)) > 5
    for image, chosen, maps in zip(images, classes, found["saliency_map"], strict=True):
        few = insert(as_format(with_classes(name, rows[chosen], bias[chosen]), kind), Options(output_dtype="f32")).model
        wanted = oracle.run(few, image[None])["saliency_map"][0]
        np.testing.assert_allclose(maps, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("sizes", [[1, 3, 96, 96], [-1, 3, -1, -1]], ids=str)
def test_the_other_classes_are_computed_nowhere(sizes):
    """In an IR of one size too, whose map follows another one."""
    rng = np.random.default_rng(0)
    rows, bias = rng.standard_normal((1003, 64), dtype=np.float32), rng.standard_normal(1003, dtype=np.float32)
    model = as_format(with_classes("shapes_cnn", rows, bias), "openvino")
    model.reshape(sizes)
    inserted = insert(model, Options(top_k=K)).model
    added = [node for node in inserted.get_ordered_ops() if node.get_friendly_name().startswith("xai/")]
    products = [node.output(0).get_partial_shape() for node in added if node.get_type_name() == "MatMul"]
    assert products
    assert not any(size.is_static and size.get_length() == 1003 for shape in products for size in shape)
