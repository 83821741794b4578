"""Weights inside of an ONNX file stay there: what is read, run and written is the same as if they had been parsed."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_zoo_fixtures.testbed.models import classifier, pooled
from xai_insert import errors, insert, insert_file
from xai_insert.formats.onnx import maps, stored, wire

RNG = np.random.default_rng(0)
LARGE = (64, 96)  # more than `wire.LARGE` bytes in each type below
TYPES = [np.float32, np.float16, np.float64, np.int64, np.int32, np.int16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


def large(dtype=np.float32, name="w"):
    shape = LARGE if np.dtype(dtype).itemsize > 2 else (256, 128)
    return numpy_helper.from_array((100 * RNG.standard_normal(shape)).astype(dtype), name)


def saved(tmp_path, nodes, weights, output="y", kind=TensorProto.FLOAT):
    x = helper.make_tensor_value_info("x", kind, None)
    y = helper.make_tensor_value_info(output, kind, None)
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def identity(tensor):
    return [helper.make_node("Identity", [tensor.name], ["y"])], [tensor]


def only(path):
    """The one stored tensor of a file."""
    (tensor,) = [item for item in stored.tensors(maps.read(path)) if isinstance(item, stored.StoredTensor)]
    return tensor


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_reads_and_is_written_as_it_was(tmp_path, dtype):
    tensor = large(dtype)
    path = saved(tmp_path, *identity(tensor))
    found = only(path)
    np.testing.assert_array_equal(found.numpy(), numpy_helper.to_array(tensor))
    assert found.dtype == tensor.data_type
    assert not found.numpy().flags.writeable
    model = maps.read(path)
    maps.write(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == maps.to_proto(model).SerializeToString()
    assert onnx.load(tmp_path / "again.onnx").graph.initializer[0] == tensor


@pytest.mark.parametrize(("kind", "field"), [(TensorProto.FLOAT, "float_data"), (TensorProto.DOUBLE, "double_data")])
def test_elements_in_their_own_field(tmp_path, kind, field):
    elements = RNG.standard_normal(LARGE).astype(helper.tensor_dtype_to_np_dtype(kind))
    tensor = TensorProto(name="w", dims=LARGE, data_type=kind)
    getattr(tensor, field).extend(elements.ravel())
    path = saved(tmp_path, *identity(tensor))
    np.testing.assert_array_equal(only(path).numpy(), elements)
    maps.write(maps.read(path), tmp_path / "again.onnx")
    (again,) = onnx.load(tmp_path / "again.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(again), elements)


def test_a_place_named_in_so_many_words(tmp_path):
    tensor = large()
    tensor.data_location = TensorProto.DEFAULT
    np.testing.assert_array_equal(only(saved(tmp_path, *identity(tensor))).numpy(), numpy_helper.to_array(tensor))


def test_names_texts_and_unpacked_sizes_are_kept(tmp_path):
    tensor = large()
    tensor.doc_string = "a text"
    path = saved(tmp_path, *identity(tensor))
    unpacked = bytes([wire.DIMS << 3, LARGE[0], wire.DIMS << 3, LARGE[1]])
    packed = bytes([wire.DIMS << 3 | 2, 2, *LARGE])
    content = path.read_bytes()
    path.write_bytes(content.replace(unpacked, packed) if unpacked in content else content.replace(packed, unpacked))
    assert only(path).doc_string == "a text"
    maps.write(maps.read(path), tmp_path / "again.onnx")
    assert onnx.load(tmp_path / "again.onnx").graph.initializer[0] == tensor


def branch(tensor, name):
    made = helper.make_node("Add", ["x", tensor.name], [name])
    return helper.make_graph([made], name, [], [helper.make_empty_tensor_value_info(name)], [tensor])


def control_flow():
    """Weights in a Constant node, in the branches of an If, and as a Constant inside of a branch."""
    first, second, third, fourth = (large(name=f"w{index}") for index in range(4))
    inner = branch(second, "b")
    inner.node.insert(0, helper.make_node("Constant", [], ["c"], value=third))
    inner.node[1].input[0] = "c"
    nodes = [
        helper.make_node("Constant", [], ["k"], value=fourth),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["flag"], to=TensorProto.BOOL),
        helper.make_node("If", ["flag"], ["z"], then_branch=branch(first, "a"), else_branch=inner),
        helper.make_node("Add", ["z", "k"], ["y"]),
    ]
    return nodes, []


def test_subgraphs_and_constant_nodes(tmp_path, monkeypatch):
    path = saved(tmp_path, *control_flow())
    model = maps.read(path)
    found = [item for item in stored.tensors(model) if isinstance(item, stored.StoredTensor)]
    assert len(found) == 4
    maps.write(model, tmp_path / "again.onnx")
    assert onnx.load(tmp_path / "again.onnx") == ir.to_proto(ir.load(path))
    monkeypatch.setattr(stored, "_WORTHWHILE", 0)
    from xai_insert.formats.onnx.runtime import OnnxRunner

    for x in (np.ones(LARGE, np.float32), np.zeros(LARGE, np.float32)):
        wanted = ort.InferenceSession(path).run(None, {"x": x})
        np.testing.assert_array_equal(OnnxRunner(model, path).run({"x": x}), wanted)


def wide(tmp_path, **settings):
    """A classifier with a stored weight, as a file and as a message."""
    model = classifier(pooled("GlobalAveragePool"), **settings)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            elements = numpy_helper.to_array(tensor)
            more = RNG.normal(size=(4000, elements.shape[1])).astype(elements.dtype)
            tensor.CopyFrom(numpy_helper.from_array(more, tensor.name))
        elif tensor.dims[0] == 5:
            tensor.CopyFrom(numpy_helper.from_array(RNG.normal(size=4000).astype(np.float32), tensor.name))
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path, model


@pytest.mark.parametrize("worthwhile", [0, 1 << 40])
@pytest.mark.parametrize("check", [True, False])
def test_an_insertion_is_that_into_the_message(tmp_path, monkeypatch, worthwhile, check):
    from xai_insert import Options

    monkeypatch.setattr(stored, "_WORTHWHILE", worthwhile)
    path, message = wide(tmp_path)
    assert any(isinstance(item, stored.StoredTensor) for item in stored.tensors(maps.read(path)))
    report = insert_file(path, tmp_path / "out.onnx", Options(check=check))
    assert report.output_difference == (0.0 if check else None)
    assert onnx.load(tmp_path / "out.onnx") == insert(message, Options(check=check)).model
    image = RNG.normal(size=(1, 3, 12, 12)).astype(np.float32)
    before, after = (ort.InferenceSession(name).run(None, {"image": image}) for name in (path, tmp_path / "out.onnx"))
    np.testing.assert_array_equal(after[0], before[0])


def test_an_insertion_to_ir_is_that_of_the_file_as_openvino_reads_it(tmp_path, monkeypatch):
    path, _ = wide(tmp_path)
    bins = []
    for worthwhile in (0, 1 << 40):
        monkeypatch.setattr(stored, "_WORTHWHILE", worthwhile)
        insert_file(path, tmp_path / "out.xml")
        bins.append((tmp_path / "out.bin").read_bytes())
    assert bins[0] == bins[1]


def test_a_link_into_another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_WORTHWHILE", 0)
    path, _ = wide(tmp_path)
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "model.onnx"
    link.symlink_to(path)
    assert insert_file(link, tmp_path / "out.onnx").output_difference == 0


def test_the_model_in_memory_does_not_need_its_file(tmp_path):
    path, message = wide(tmp_path)
    model = insert(path).model
    path.write_bytes(b"")
    assert ir.to_proto(model) == insert(message).model


def test_a_file_beyond_what_protobuf_reads(tmp_path):
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(stored.LARGEST + 2)
    with pytest.raises(errors.ModelFileError, match=r"holds 2\.1 at most: export the model with its weights in a file"):
        insert_file(path, tmp_path / "out.onnx")


def test_a_result_beyond_what_protobuf_reads(tmp_path, monkeypatch):
    path, _ = wide(tmp_path)
    monkeypatch.setattr(stored, "LARGEST", path.stat().st_size + 100)
    with pytest.raises(errors.ModelFileError, match=r"the result has .* holds 2\.1 at most"):
        insert_file(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("part", [0.5, 0.9, 0.999])
def test_half_a_file(tmp_path, part):
    path, _ = wide(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(errors.ModelFileError, match="is the file whole"):
        insert_file(path, tmp_path / "out.onnx")


def test_sizes_that_the_content_does_not_have_are_left_to_the_parser(tmp_path):
    tensor = large()
    tensor.dims[0] += 1
    model = maps.read(saved(tmp_path, *identity(tensor)))
    assert not any(isinstance(item, stored.StoredTensor) for item in stored.tensors(model))


def test_messages_inside_of_messages_without_end():
    content = b""
    for _ in range(200):
        for number in (6, 5, 1):
            content = b"".join(bytes(part) for part in wire.length_delimited(number, [content]))
    content = b"".join(bytes(part) for part in wire.length_delimited(7, [content]))
    with pytest.raises(ValueError, match="without end"):
        wire.rewritten(memoryview(content), lambda _start, _end: None, lambda _start, _end: True)
