"""What the check finds where one image is given the map of another in its batch; such faults are planted here."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import detector_models, instance_models, models, query_models
from model_zoo_fixtures.testbed.deployed import plain
from xai_insert import Options, errors, insert
from xai_insert.formats.onnx.surgeon import OnnxSurgeon
from xai_insert.formats.openvino.surgeon import OpenVINOSurgeon


def segmenter(batch="N"):
    b = models.Builder(size=(32, 32), batch=batch)
    scores = b.node("Conv", b.backbone(), b.weight(5, 6, 1, 1), b.weight(5))
    scales = b.const(np.array([1, 1, 2, 2], np.float32))
    return b.model(b.node("ArgMax", b.node("Resize", scores, "", scales, mode="linear"), axis=1, keepdims=0))


def boxes():
    net = detector_models.Net(anchors_first=False, exclusive=False, decoded="xyxy", reported="xyxy", report="rows")
    return net.model


TASKS = {
    "semantic": (segmenter, {}),
    "boxes": (boxes, {"per_box": True}),
    "masks": (lambda: instance_models.yolo("locations", None), {}),
    "queries": (lambda: query_models.Net("dense", "scores").model, {"per_box": True}),
    "a derivative": (lambda: models.classifier(models.CLOSED["mean"], batch="N"), {"method": "hirescam"}),
}
FAULTS = {
    "that of the first": lambda op, x: op.slice(x, 0, 0, 1),
    "that of the last": lambda op, x: op.slice(x, 0, -1, 1 << 30),
    "the greatest": lambda op, x: op.reduce(x, "max", (0,)),
}


def planted(monkeypatch, fault):
    """Surgeons whose maps are all of one image."""
    for surgeon in (OnnxSurgeon, OpenVINOSurgeon):
        add = surgeon.add_output

        def add_output(self, value, name, dtype, shape, add=add):
            if name.startswith("saliency_map"):
                nothing = self.ops.mul(value, self.ops.constant(np.float32(0)))
                value = self.ops.add(nothing, FAULTS[fault](self.ops, value))
            return add(self, value, name, dtype, shape)

        monkeypatch.setattr(surgeon, "add_output", add_output)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", TASKS)
def test_maps_of_another_image_are_found(name, fault, kind, monkeypatch):
    build, more = TASKS[name]
    model, options = models.as_format(build(), kind), Options(output_dtype="f32", **more)
    insert(model, options)
    planted(monkeypatch, fault)
    with pytest.raises(errors.CheckFailedError, match="in a batch of two images"):
        insert(model, options)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("fault", FAULTS)
def test_they_are_found_in_a_fixed_batch(fault, kind, monkeypatch):
    model, options = models.as_format(segmenter(3), kind), Options(output_dtype="f32")
    insert(model, options)
    planted(monkeypatch, fault)
    with pytest.raises(errors.CheckFailedError, match="in a batch of two images or more"):
        insert(model, options)


def test_a_batch_of_one_has_no_other_image(monkeypatch):
    planted(monkeypatch, "that of the first")
    assert insert(segmenter(batch=1), Options(output_dtype="f32")).report.check == "done"


def test_a_map_that_takes_one_image_alone_is_found(monkeypatch):
    """It does not run on two, although the predictions do."""
    add = OnnxSurgeon.add_output

    def add_output(self, value, name, dtype, shape):
        return add(self, self.ops.reshape(value, [1, *shape[1:]]), name, dtype, shape)

    monkeypatch.setattr(OnnxSurgeon, "add_output", add_output)
    with pytest.raises(errors.CheckFailedError, match="on a batch of two images the inserted model does not run"):
        insert(segmenter(), Options(output_dtype="f32"))


def test_bytes_are_compared_to_a_level():
    assert insert(segmenter()).report.check == "done"
    assert insert(plain("shapes_cnn", ".onnx")).report.check == "done"
