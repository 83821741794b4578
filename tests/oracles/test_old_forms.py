"""Old ONNX files: weights listed as inputs, operator sets 7 to 10, IR versions 3 (ONNX) and 10 (OpenVINO)."""

import re

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.models import as_format
from model_zoo_fixtures.testbed.old_models import Old, classifier, detector, image
from xai_insert import Options, errors, insert, insert_file
from xai_insert.formats.onnx.model import load_model

RAW = Options(output_dtype="f32")
WANTED = Options(output_dtype="f32", check=False)  # of the plain twin
SETS = [7, 8, 9, 10]


@pytest.mark.parametrize("build", [classifier, detector])
@pytest.mark.parametrize("opset", [9, 13])
def test_weights_that_are_listed_as_inputs_are_constants(build, opset):
    plain, listed = build(opset), build(opset, listed=True)
    wanted, new = insert(plain, WANTED), insert(listed, RAW)
    assert new.report.method == wanted.report.method
    assert new.report.form == wanted.report.form
    assert [value.name for value in new.model.graph.input] == [value.name for value in listed.graph.input]
    found = oracle.run(new.model, image())
    for name, array in oracle.run(wanted.model, image()).items():
        assert np.allclose(found[name], array, rtol=0, atol=1e-5 * abs(array).max())


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"saliency_size": (16, 16)}])
@pytest.mark.parametrize("opset", SETS)
def test_a_classifier_of_an_old_operator_set_has_the_map_of_a_newer_one(opset, options):
    chosen = Options(output_dtype="f32", **options)
    wanted, new = insert(classifier(13), chosen), insert(classifier(opset), chosen)
    assert new.report.output_difference == 0
    found = oracle.run(new.model, image())
    for name, array in oracle.run(wanted.model, image()).items():
        assert np.allclose(found[name], array, rtol=0, atol=1e-5 * abs(array).max())
    onnx.checker.check_model(new.model)


@pytest.mark.parametrize("opset", SETS)
def test_a_detector_of_an_old_operator_set_has_the_map_of_a_newer_one(opset):
    wanted, new = insert(detector(13), WANTED), insert(detector(opset), RAW)
    assert new.report.method == "det-class-probability-map"
    assert new.report.output_difference == 0
    a, b = (oracle.run(result.model, image())["saliency_map"] for result in (wanted, new))
    assert np.allclose(a, b, rtol=0, atol=1e-5 * abs(a).max())


def test_a_file_of_ir_version_3_is_raised_and_keeps_its_predictions():
    model = classifier(7, listed=True, ir_version=3)
    new = insert(model, RAW)
    assert new.report.output_difference == 0
    assert new.model.ir_version >= 4
    onnx.checker.check_model(new.model)
    assert [value.name for value in new.model.graph.input] == ["image"]


def changed_operations(opset):
    """Every operation whose form changed between operator sets 7 and 11."""
    b = Old(opset)
    x = b.conv("image", 3, 4)
    x = b.node("BatchNormalization", x, *(b.const(np.full(4, n, np.float32)) for n in (1.5, 0.1, 0.2, 0.7)))
    x = b.node("Clip", x, min=-0.8, max=0.9)
    y = b.node("Pad", x, pads=[0, 0, 1, 2, 0, 0, 3, 0], value=0.5)
    if opset < 9:
        up = [b.node("Upsample", y, scales=[1.0, 1.0, 2.0, 1.5], mode=mode) for mode in ("nearest", "linear")]
    else:
        kind = "Upsample" if opset == 9 else "Resize"
        up = [
            b.node(kind, y, b.const(np.array([1, 1, *by], np.float32)), mode=mode)
            for mode in ("nearest", "linear")
            for by in [(2.0, 1.5)] + [(0.4, 0.7)] * (opset == 10)
        ]
    means = [b.node("GlobalAveragePool", b.node("Mul", value, value)) for value in up]
    x = b.node("Flatten", b.node("Concat", b.node("Clip", y, max=0.3), y, axis=1))
    if opset < 10:
        cut = b.node("Slice", x, starts=[7], ends=[900], axes=[1])
        b.node("TopK", cut, outputs=["best", "places"], k=5)
    else:
        cut = b.node("Slice", x, *(b.const(np.array([n])) for n in (7, 900, 1, 2)))
        b.node("TopK", cut, b.const(np.array([5])), outputs=["best", "places"])
    outputs = {"best": [1, 5]} | {name: ["a", "b", "c", "d"] for name in (*up, *means)}
    return b.model(outputs)


@pytest.mark.parametrize("opset", SETS)
def test_what_is_raised_computes_the_same(opset):
    model = changed_operations(opset)
    loaded = load_model(model, {})
    assert loaded.native.opset_imports[""] == 11
    before = ort.InferenceSession(model.SerializeToString()).run(None, {"image": image()})
    raised = loaded.result_like(model)
    onnx.checker.check_model(raised)
    after = ort.InferenceSession(raised.SerializeToString()).run(None, {"image": image()})
    for a, b in zip(before, after, strict=True):
        assert np.array_equal(a, b)


def test_an_operator_set_before_7_is_refused_in_a_word():
    model = classifier(13)
    model.opset_import[0].version = 6
    with pytest.raises(errors.ModelFileError, match="operator set 6, wanted 7 or later"):
        insert(model)


def old_ir(folder, version):
    """A classifier as IR, with outputs of several types, its header saying `version`."""
    b = Old(13)
    x = b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", b.conv("image", 3, 8, 4))))
    logits = b.node("Gemm", x, b.weight(5, 8), b.weight(5), transB=1)
    b.node("ArgMax", logits, outputs=["best"], axis=1, keepdims=0)
    model = b.model({logits: [1, 5]})
    model.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, [1]))
    path = folder / f"version{version}.xml"
    ov.save_model(as_format(model, "openvino"), path, compress_to_fp16=False)
    path.write_text(re.sub(r'(<net [^>]*version=")11"', rf'\g<1>{version}"', path.read_text(), count=1))
    return path


def test_ir_version_10_keeps_the_types_of_its_outputs_and_gives_bytes(tmp_path):
    plain, output = old_ir(tmp_path, 10), tmp_path / "out.xml"
    report = insert_file(plain, output)
    assert report.output_difference == 0
    core = ov.Core()
    before, after = (core.compile_model(path, "CPU") for path in (plain, output))
    assert [p.element_type for p in after.outputs[:2]] == [p.element_type for p in before.outputs]
    assert after.output("saliency_map").element_type == ov.Type.u8
    wanted = insert(core.read_model(old_ir(tmp_path, 11))).model
    newer = core.compile_model(wanted, "CPU")(image())["saliency_map"]
    assert np.array_equal(after(image())["saliency_map"], newer)


@pytest.mark.parametrize("version", [3, 7])
def test_older_irs_are_refused_in_a_word(tmp_path, version):
    with pytest.raises(errors.ModelFileError, match=f"version {version}, of OpenVINO before 2020"):
        insert_file(old_ir(tmp_path, version), tmp_path / "out.xml")
