"""Models that contradict themselves, as the fuzzer found them: each is refused in words of ours."""

import numpy as np
import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.testbed import detector_models, models
from xai_insert import Options, errors, insert, insert_file
from xai_insert.graph.proportion import require_moderate_map

CHANNELS = models.CHANNELS


def test_a_grid_without_channels():
    """The mean over channels, then over the grid: the map before both is on every path."""
    b = models.Builder()
    features = b.backbone()
    grid = b.node("ReduceMean", features, axes=[1], keepdims=0)
    mean = b.node("ReduceMean", grid, axes=[1, 2], keepdims=0)
    scores = b.linear(b.node("Unsqueeze", mean, b.const([1])), 1)
    assert insert(b.model(scores)).report.target["name"] == features


def test_a_detector_whose_boxes_lie_in_an_empty_batch(tmp_path):
    """A reshape that means by 0 what is written, no box, instead of the batch."""
    net = detector_models.Net(anchors_first=False, exclusive=False, decoded="xyxy", reported="xyxy", report="rows")
    ov.save_model(models.as_format(net.model, "openvino"), tmp_path / "model.xml", compress_to_fp16=False)
    layers = (tmp_path / "model.xml").read_text().split("<layer ")
    last = max(number for number, layer in enumerate(layers) if 'special_zero="true"' in layer)
    layers[last] = layers[last].replace('special_zero="true"', 'special_zero="false"')
    (tmp_path / "model.xml").write_text("<layer ".join(layers))
    with pytest.raises(errors.AmbiguousModelError, match="none of its channels moved a score"):
        insert(tmp_path / "model.xml", Options(per_box=True))


def test_a_value_that_nothing_gives():
    """A node in the middle is gone."""
    net = detector_models.Net(anchors_first=False, exclusive=False, decoded="xyxy", reported="xyxy", report="lists")
    gone = next(node for node in net.model.graph.node if node.op_type == "Transpose")
    net.model.graph.node.remove(gone)
    with pytest.raises(errors.ModelFileError, match="which nothing gives"):
        insert(net.model)


def test_an_output_that_nothing_gives():
    """The last node is gone, the output it gave is still declared."""
    net = detector_models.Net(anchors_first=False, exclusive=False, decoded="xyxy", reported="xyxy", report="lists")
    del net.model.graph.node[-1]
    with pytest.raises(errors.ModelFileError, match="given by no node"):
        insert(net.model)


def test_a_transpose_of_more_axes_than_there_are():
    model = models.classifier(models.CLOSED["channels last"])
    next(node for node in model.graph.node if node.op_type == "Transpose").attribute[0].ints.append(-1)
    with pytest.raises(errors.ModelFileError, match="orders 4 axes"):
        insert(model)


@pytest.mark.parametrize("name", [b"ReduceMean_5", b"reducemean5_0"])
def test_names_that_are_no_text(tmp_path, name):
    content = models.classifier(models.CLOSED["mean"]).SerializeToString()
    assert name in content
    (tmp_path / "model.onnx").write_bytes(content.replace(name, name[:-1] + b"\x80"))
    with pytest.raises(errors.ModelFileError, match=r"is no text|is damaged|not readable"):
        insert(tmp_path / "model.onnx")


def test_an_axis_named_twice():
    """Runtimes take it for one."""
    model = models.classifier(models.CLOSED["mean"])
    before = insert(model)
    next(node for node in model.graph.node if node.op_type == "ReduceMean").attribute[0].ints[:] = [2, 3, -1]
    after = insert(model)
    assert after.report.target == before.report.target
    assert after.report.map_difference == before.report.map_difference


@pytest.mark.parametrize("options", [Options(), Options(check=False)], ids=["check", "no check"])
def test_a_detector_that_declares_a_huge_batch_is_not_run(options):
    """Its parts are found by running it, with the check or without."""
    model, _ = detector_models.raw_detector()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 65_537
    with pytest.raises(errors.CheckFailedError, match="out of proportion"):
        insert(model, options)


def test_a_grid_far_finer_than_the_image():
    """A padding of a million rows around an image of twelve."""
    model = models.classifier(models.CLOSED["mean"])
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    next(item for item in conv.attribute if item.name == "pads").ints[0] = 1 << 20
    with pytest.raises(errors.CheckFailedError, match="weights and inputs"):
        insert(model)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_rows_that_are_no_images_are_refused(kind):
    """A quarter of the map is read by each row, as when a text's characters or tiles of the image are classified."""

    def network(b):
        rows = b.node("Reshape", b.backbone(), b.const(np.array([-1, 54])))
        return b.linear(rows, 54)

    model = models.as_format(models.classifier(network), kind)
    with pytest.raises(errors.CheckFailedError, match="4 maps for 1 images"):
        insert(model)


def test_classes_declared_by_the_billion():
    """Runtimes go by what is computed."""
    model = models.classifier(models.CLOSED["global average pool"], batch=1)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2**31 - 1
    assert insert(model, Options(check=False)).report.logits["classes"] == models.CLASSES


def test_a_map_of_billions_of_elements():
    with pytest.raises(errors.ModelFileError, match="would have 77,309,411,292 elements"):
        require_moderate_map((1, 2**31 - 1, 6, 6))


def test_an_operator_without_its_operands(tmp_path):
    model = models.classifier(models.CLOSED["mean"])
    del model.graph.node[-1].input[:]
    with pytest.raises(errors.ModelFileError, match="has no operand 0"):
        insert(model, Options(check=False))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(errors.ModelFileError, match="operands and has 0"):
        insert(tmp_path / "model.onnx", Options(check=False))


def test_metadata_that_are_no_text(tmp_path):
    """Of a model that is written as an IR, whose reader hands on the bytes as they are."""
    model = models.classifier(models.CLOSED["mean"])
    model.metadata_props.add(key="a key", value="some text")
    content = model.SerializeToString().replace(b"some text", b"some \xff\xff\xff\xff")
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(errors.ModelFileError, match="is no text"):
        insert_file(tmp_path / "model.onnx", tmp_path / "out.xml")


def test_a_window_of_another_rank():
    """Without the check, nothing runs it."""
    model = models.classifier(models.CLOSED["window"])
    pool = next(node for node in model.graph.node if node.op_type == "AveragePool")
    next(item for item in pool.attribute if item.name == "kernel_shape").ints.pop()
    with pytest.raises(errors.ModelFileError, match="other rank"):
        insert(model, Options(check=False))


def test_a_number_without_its_byte(tmp_path):
    model = models.classifier(models.CLOSED["mean"])
    next(item for item in model.graph.initializer if not item.dims or item.dims[0] < 9).raw_data = b""
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(errors.ModelFileError, match="the file holds 0 of it"):
        insert(tmp_path / "model.onnx", Options(check=False))
