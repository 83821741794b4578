"""Files of other kinds: refused in one line that says how to export, or converted by OpenVINO's own readers."""

import sys
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import models, oracle
from xai_insert import Options, errors, insert, insert_file
from xai_insert.cli.insert import main
from xai_insert.verify import verify

NAMES = {
    "model.pt": "torch.onnx.export",
    "model.pth": "torch.onnx.export",
    "model.h5": "keras",
    "model.keras": "keras",
    "model.engine": "ONNX file that it was built from",
    "model.mlmodel": "converted from",
    "model.zip": "unpack it",
    "model.ort": "ONNX file that it was converted from",
    "model.json": "FLAGS_enable_pir_api=0",
    "model.pdiparams": "give the .pdmodel",
    "model.txt": "unknown kind of model",
}
CONTENTS = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
    "archive": (b"PK\x03\x04rest", "zip archive"),
    "page": (b"<!DOCTYPE html><html></html>", "web page"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_kind_is_refused_with_the_way_out(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"anything")
    with pytest.raises(errors.ModelFileError, match=NAMES[name]) as found:
        insert_file(path, tmp_path / "out.xml")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_content_that_is_no_model_is_named(tmp_path, kind, suffix):
    content, message = CONTENTS[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(errors.ModelFileError, match=message):
        insert_file(path, tmp_path / "out.xml")


def test_what_openvino_converts_becomes_an_ir(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x00" * 64)
    with pytest.raises(errors.ModelFileError, match=r"ends in \.xml"):
        insert_file(path, tmp_path / "out.onnx")
    with pytest.raises(errors.ModelFileError, match="OpenVINO cannot read the file"):
        insert_file(path, tmp_path / "out.xml")


def frozen(rng):
    """A TensorFlow graph as text: convolution, mean over the grid, linear layer."""

    def const(name, *sizes):
        dims = " ".join(f"dim {{ size: {size} }}" for size in sizes)
        numbers = " ".join(f"float_val: {number}" for number in rng.standard_normal(int(np.prod(sizes))))
        tensor = f"tensor {{ dtype: DT_FLOAT tensor_shape {{ {dims} }} {numbers} }}"
        return node(name, "Const", [], f'{kind("dtype")} attr {{ key: "value" value {{ {tensor} }} }}')

    def kind(key, value="DT_FLOAT"):
        return f'attr {{ key: "{key}" value {{ type: {value} }} }}'

    def node(name, op, inputs, attributes):
        operands = " ".join(f'input: "{operand}"' for operand in inputs)
        return f'node {{ name: "{name}" op: "{op}" {operands} {attributes} }}'

    sizes = " ".join(f"dim {{ size: {size} }}" for size in (1, 16, 16, 3))
    axes = "tensor { dtype: DT_INT32 tensor_shape { dim { size: 2 } } int_val: 1 int_val: 2 }"
    shape = f'attr {{ key: "shape" value {{ shape {{ {sizes} }} }} }}'
    strides = 'attr { key: "strides" value { list { i: 1 i: 2 i: 2 i: 1 } } }'
    padding = 'attr { key: "padding" value { s: "SAME" } }'
    return "\n".join(
        [
            node("image", "Placeholder", [], f"{kind('dtype')} {shape}"),
            const("w", 3, 3, 3, 8),
            node("conv", "Conv2D", ["image", "w"], f"{kind('T')} {strides} {padding}"),
            node("relu", "Relu", ["conv"], kind("T")),
            node("axes", "Const", [], f'{kind("dtype", "DT_INT32")} attr {{ key: "value" value {{ {axes} }} }}'),
            node("pool", "Mean", ["relu", "axes"], f"{kind('T')} {kind('Tidx', 'DT_INT32')}"),
            const("l", 8, 5),
            node("logits", "MatMul", ["pool", "l"], kind("T")),
        ]
    )


def test_a_tensorflow_graph_has_the_map_of_its_ir(tmp_path):
    path = tmp_path / "frozen.pbtxt"
    path.write_text(frozen(np.random.default_rng(0)))
    report = insert_file(path, tmp_path / "out.xml", Options(output_dtype="f32"))
    assert report.output_difference == 0
    wanted = insert(ov.Core().read_model(path), Options(output_dtype="f32")).model
    image = np.random.default_rng(1).standard_normal((1, 16, 16, 3)).astype(np.float32)
    a, b = (oracle.run(model, image) for model in (wanted, ov.Core().read_model(tmp_path / "out.xml")))
    assert np.allclose(a["saliency_map"], b["saliency_map"], rtol=0, atol=1e-5 * abs(a["saliency_map"]).max())


PADDLE = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes" / "paddle" / "tiny.pdmodel"
PADDLE_SCORES = [0.1855609566, 0.2862192988, -0.3697157502, 0.0256680101, 0.3308178186]
"""What Paddle gave for the image below, see `model_zoo_fixtures/shapes/paddle_classifier.py`."""


def test_a_paddle_file_has_the_map_that_its_weights_define(tmp_path):
    """The score of a class where the mean is of one cell alone."""
    insert_file(PADDLE, tmp_path / "out.xml", Options(output_dtype="f32"))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32)
    model = ov.Core().read_model(tmp_path / "out.xml")
    named = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    target = named[model.get_rt_info(["xai_insert", "target"]).value]
    model.add_outputs([target.output(0)])
    found = [np.array(value) for value in oracle.compiled(model)([image]).values()]
    np.testing.assert_allclose(found[0][0], PADDLE_SCORES, rtol=1e-5)
    weight, bias = (
        next(node.get_data() for node in named.values() if node.get_type_name() == "Constant" and fits(node.get_data()))
        for fits in (lambda data: data.shape == (8, 5), lambda data: data.size == 5)
    )
    wanted = np.einsum("nchw,ck->nkhw", found[2], weight) / found[2][0, 0].size + bias.reshape(1, 5, 1, 1)
    np.testing.assert_allclose(found[1], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_the_command_says_it_in_one_line(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"anything")
    result = CliRunner().invoke(main, [str(path), "-o", str(tmp_path / "out.onnx")])
    assert result.exit_code in (1, 2)
    assert "torch.onnx.export" in result.output
    assert "Traceback" not in result.output


def field(number, content):
    """A field of a protocol buffer: bytes, text or a number."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number):
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def saved(rng):
    """A TensorFlow saved model with its weights in the graph: convolution, mean over the grid, linear layer."""

    def attributes(**found):
        return b"".join(field(5, field(1, name) + field(2, content)) for name, content in found.items())

    def shape(*sizes):
        return b"".join(field(2, field(1, size)) for size in sizes)

    def node(name, op, inputs, found):
        return field(1, field(1, name) + field(2, op) + b"".join(field(3, part) for part in inputs) + found)

    def const(name, array):
        kind = 1 if array.dtype == np.float32 else 3
        tensor = field(1, kind) + field(2, shape(*array.shape)) + field(4, array.tobytes())
        return node(name, "Const", [], attributes(dtype=field(6, kind), value=field(8, tensor)))

    def signature(name, sizes):
        info = field(1, f"{name}:0") + field(2, 1) + field(3, shape(*sizes))
        return field(1, name) + field(2, info)

    floats = attributes(T=field(6, 1))
    strides = field(1, field(3, b"".join(map(varint, (1, 2, 2, 1)))))
    graph = [
        node("image", "Placeholder", [], attributes(dtype=field(6, 1), shape=field(7, shape(1, 16, 16, 3)))),
        const("w", rng.standard_normal((3, 3, 3, 8)).astype(np.float32)),
        node("conv", "Conv2D", ["image", "w"], floats + attributes(strides=strides, padding=field(2, "SAME"))),
        node("relu", "Relu", ["conv"], floats),
        const("axes", np.array([1, 2], np.int32)),
        node("pool", "Mean", ["relu", "axes"], floats + attributes(Tidx=field(6, 3))),
        const("l", rng.standard_normal((8, 5)).astype(np.float32)),
        node("logits", "MatMul", ["pool", "l"], floats),
    ]
    ends = field(1, signature("image", (1, 16, 16, 3))) + field(2, signature("logits", (1, 5)))
    signatures = field(1, "serving_default") + field(2, ends + field(3, "tensorflow/serving/predict"))
    meta = field(1, field(4, "serve")) + field(2, b"".join(graph)) + field(5, signatures)
    return field(1, 1) + field(2, meta)


@pytest.mark.parametrize("given", ["saved", "saved/saved_model.pb"])
def test_the_folder_of_a_saved_model_becomes_an_ir(given, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(saved(np.random.default_rng(0)))
    report = insert_file(tmp_path / given, tmp_path / "out.xml", Options(output_dtype="f32"))
    assert (report.output_difference, report.form) == (0, "closed form")
    image = np.random.default_rng(1).standard_normal((1, 16, 16, 3)).astype(np.float32)
    found = oracle.run(ov.Core().read_model(tmp_path / "out.xml"), image)
    assert found["saliency_map"].shape == (1, 5, 8, 8)
    with pytest.raises(errors.ModelFileError, match=r"ends in \.xml"):
        insert_file(tmp_path / given, tmp_path / "out.onnx")
    result = CliRunner().invoke(main, [str(tmp_path / given), "-o", str(tmp_path / "again.xml")])
    assert result.exit_code == 0, result.output
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.ModelFileError, match="not a plain file"):
        insert_file(tmp_path / "empty", tmp_path / "out.xml")


def extended(*, decodes=False):
    """A classifier with an operator of onnxruntime-extensions: behind the scores, or one that decodes a file."""
    b = models.Builder(batch=1)
    logits = b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), models.CHANNELS)
    model = b.model(logits)
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    if decodes:
        model.graph.node.insert(0, helper.make_node("DecodeImage", ["file"], ["image"], domain="ai.onnx.contrib"))
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("file", TensorProto.UINT8, ["bytes"]))
        return model, logits
    model.graph.node.append(helper.make_node("NegPos", [logits], ["below", "above"], domain="ai.onnx.contrib"))
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 5]) for n in ("below", "above"))
    return model, logits


def test_operators_of_onnxruntime_extensions_are_kept(monkeypatch):
    model, logits = extended()
    monkeypatch.setitem(sys.modules, "onnxruntime_extensions", None)
    with pytest.raises(errors.CheckFailedError, match="pip install onnxruntime-extensions"):
        insert(model, Options(output=logits))
    inserted = insert(model, Options(output=logits, check=False)).model
    assert [node.SerializeToString() for node in model.graph.node if node.domain] == [
        node.SerializeToString() for node in inserted.graph.node if node.domain
    ]


def test_they_run_where_it_is_installed():
    pytest.importorskip("onnxruntime_extensions")
    model, logits = extended()
    report = insert(model, Options(output=logits)).report
    assert report.output_difference == 0
    assert report.place == "blocks"


def test_a_model_that_decodes_its_image_itself_keeps_that_part(tmp_path):
    """The map is that of the model behind it; the library is not needed, nor is it here."""
    model, _ = extended(decodes=True)
    onnx.save(model, tmp_path / "model.onnx")
    report = insert_file(tmp_path / "model.onnx", tmp_path / "xai.onnx", Options(output_dtype="f32"))
    assert (report.output_difference, report.place) == (0, "blocks")
    inserted = onnx.load(tmp_path / "xai.onnx")
    onnx.checker.check_model(inserted)
    assert inserted.graph.input == model.graph.input
    assert inserted.graph.node[: len(model.graph.node)] == model.graph.node
    images = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
    behind = onnx.ModelProto()
    behind.CopyFrom(inserted)
    del behind.graph.node[0]
    behind.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 12, 12]))
    b = models.Builder(batch=1)
    alone = b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), models.CHANNELS))
    wanted = oracle.run(insert(alone, Options(output_dtype="f32")).model, images)
    for name, array in oracle.run(behind, images).items():
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=1e-6)
    assert not verify(tmp_path / "xai.onnx").off


def test_a_decoded_image_that_is_read_by_others_is_refused_with_the_way_out():
    model, logits = extended(decodes=True)
    model.graph.node[0].output.append("raw")
    model.graph.node.append(helper.make_node("Identity", ["raw"], ["picture"]))
    model.graph.output.append(helper.make_tensor_value_info("picture", TensorProto.UINT8, None))
    with pytest.raises(errors.NotVisionModelError, match="'file' may be the bytes of an image file"):
        insert(model, Options(output=logits))
