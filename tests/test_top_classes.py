"""Maps of the best classes alone: those of the model with all maps, named per image."""

import numpy as np
import openvino as ov
import openvino.opset13 as opset
import pytest
from click.testing import CliRunner

from tests import deployed, oracle
from tests.models import CLOSED, MASKED, as_format, classifier
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


def test_loops_in_the_backbone_of_an_ir_survive():
    model = as_format(classifier(CLOSED["global average pool"]), "openvino")
    relu = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Relu")
    inner = opset.parameter(relu.output(0).get_partial_shape(), ov.Type.f32)
    halved = opset.multiply(inner, np.float32(0.5))
    body = ov.Model([opset.result(opset.constant(np.array(True))), opset.result(halved)], [inner], "body")
    loop = opset.loop(opset.constant(np.array(2, np.int64)), opset.constant(np.array(True)))
    loop.set_function(body)
    loop.set_special_body_ports([-1, 0])
    readers = relu.output(0).get_target_inputs()
    loop.set_merged_input(inner, relu.output(0), body.get_results()[1].output(0))
    quartered = loop.get_iter_value(body.get_results()[1].output(0), -1)
    for reader in readers:
        reader.replace_source_output(quartered)
    model.validate_nodes_and_infer_types()
    image = np.random.default_rng(4).standard_normal((2, 3, 12, 12), dtype=np.float32)
    plain = oracle.run(model, image)
    result = insert(model, Options(output_dtype="f32"))
    found = oracle.run(result.model, image)
    assert result.report.form == "closed form"
    assert sum(node.get_type_name() == "Loop" for node in result.model.get_ordered_ops()) == 1
    for name, value in plain.items():
        assert np.array_equal(found[name], value)
