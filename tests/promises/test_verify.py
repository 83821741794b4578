"""`--verify`, `--strip` and `--layers`: what becomes of an inserted model in the hands of other tools."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import openvino as ov
import pytest
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from model_zoo_fixtures.testbed import deployed, models, oracle
from model_zoo_fixtures.testbed.commands import invoke
from model_zoo_fixtures.testbed.quick import some
from xai_insert import Options, insert, insert_file
from xai_insert.cli.insert import main
from xai_insert.errors import NotInsertedError
from xai_insert.strip import strip_file
from xai_insert.verify import verify

CASES = {
    "bytes": ("shapes_cnn", {}),
    "scores": ("shapes_cnn", {"output_dtype": "f32"}),
    "best classes and features": ("shapes_cnn", {"top_k": 3, "feature_vector": True}),
    "size": ("shapes_cnn", {"saliency_size": (20, 20)}),
    "activation map": ("shapes_cnn", {"method": "activation-map"}),
    "transformer": ("shapes_vit", {"kernel": "point", "output_dtype": "f32"}),
    "masked runs": ("shapes_vit", {"block": 2, "output_dtype": "f32"}),
    "detector": ("shapes_detector", {}),
    "boxes": ("shapes_two_stage", {"per_box": True}),
    "instances": ("shapes_segmenter", {}),
}


def source(name, suffix):
    return deployed.SHAPES / f"{name}{suffix}"


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("case", some(CASES, "bytes", "detector"))
def test_an_inserted_file_keeps_its_promises(case, suffix, tmp_path):
    name, chosen = CASES[case]
    insert_file(source(name, suffix), tmp_path / f"xai{suffix}", Options(**chosen))
    found = verify(tmp_path / f"xai{suffix}")
    assert found.off == []
    assert (found.outputs_moved, found.map_difference, found.rounding) == (0, 0, 0)
    assert found.correlation == pytest.approx(1)
    assert found.has_metadata
    assert list(found.precision) == ["float32"]
    if suffix == ".onnx":
        assert found.openvino_correlation is None or found.openvino_correlation >= 0.999
        assert (found.openvino_correlation is None) == (case == "boxes")  # on noise the runtimes find other boxes
    assert found.is_marked in (None, suffix == ".xml")


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("case", some(CASES, "bytes", "detector"))
def test_the_plain_model_comes_back(case, suffix, tmp_path):
    name, chosen = CASES[case]
    insert_file(source(name, suffix), tmp_path / f"xai{suffix}", Options(**chosen))
    report = strip_file(tmp_path / f"xai{suffix}", tmp_path / f"plain{suffix}")
    assert report.bytes_after < report.bytes_before
    sizes = [item.dim_value or 1 for item in onnx.load(source(name, ".onnx")).graph.input[0].type.tensor_type.shape.dim]
    images = np.random.default_rng(0).uniform(0, 255, sizes).astype(np.float32)
    if suffix == ".onnx":
        plain, back = (onnx.load(path) for path in (source(name, suffix), tmp_path / "plain.onnx"))
        assert [node.name for node in back.graph.node] == [node.name for node in plain.graph.node]
        assert {item.name for item in back.graph.initializer} == {item.name for item in plain.graph.initializer}
        assert {p.key: p.value for p in back.metadata_props} == {p.key: p.value for p in plain.metadata_props}
    else:
        plain, back = (ov.Core().read_model(path) for path in (source(name, suffix), tmp_path / "plain.xml"))
        assert len(back.get_ops()) == len(plain.get_ops())
        assert "xai_insert" not in (tmp_path / "plain.xml").read_text()
    wanted, found = oracle.run(plain, images), oracle.run(back, images)
    assert list(wanted) == list(found)
    assert all(np.array_equal(wanted[key], found[key]) for key in wanted)
    insert_file(tmp_path / f"plain{suffix}", tmp_path / f"again{suffix}", Options(**chosen))
    assert verify(tmp_path / f"again{suffix}").off == []


def renamed(model):
    """An ONNX model without metadata, in which only inputs and outputs keep their names, as some tools leave it."""
    twin = ir.from_proto(model)
    twin.metadata_props.clear()
    fixed = {*twin.graph.inputs, *twin.graph.outputs}
    for index, node in enumerate(twin.graph.all_nodes()):
        node.name = f"n{index}"
        for value in node.outputs:
            if value not in fixed:
                value.name = f"v{index}_{value.index()}"
    for index, value in enumerate(list(twin.graph.initializers.values())):
        value.name = f"c{index}"
    return ir.to_proto(twin)


@pytest.mark.parametrize("case", ["bytes", "best classes and features", "size", "activation map", "detector"])
def test_names_and_metadata_may_be_gone(case, tmp_path):
    name, chosen = CASES[case]
    model = renamed(insert(onnx.load(source(name, ".onnx")), Options(**chosen)).model)
    found = verify(model)
    assert found.off == []
    assert not found.has_metadata
    onnx.save(model, tmp_path / "renamed.onnx")
    strip_file(tmp_path / "renamed.onnx", tmp_path / "plain.onnx")
    back = onnx.load(tmp_path / "plain.onnx")
    assert len(back.graph.node) == len(onnx.load(source(name, ".onnx")).graph.node)


def test_an_output_of_the_models_own_by_one_of_our_names_stays(tmp_path):
    model = onnx.load(source("shapes_cnn", ".onnx"))
    pooled = next(node.output[0] for node in model.graph.node if node.op_type == "Flatten")
    model.graph.node.append(helper.make_node("Identity", [pooled], ["feature_vector"]))
    model.graph.output.append(helper.make_tensor_value_info("feature_vector", TensorProto.FLOAT, ["batch", 64]))
    onnx.save(insert(model, Options(output="logits")).model, tmp_path / "xai.onnx")
    strip_file(tmp_path / "xai.onnx", tmp_path / "plain.onnx")
    assert [value.name for value in onnx.load(tmp_path / "plain.onnx").graph.output] == ["logits", "feature_vector"]


def test_what_reads_the_map_and_ends_nowhere_goes_too(tmp_path):
    onnx.save(models.classifier(models.CLOSED["global average pool"]), tmp_path / "model.onnx")
    insert_file(tmp_path / "model.onnx", tmp_path / "xai.onnx")
    model = onnx.load(tmp_path / "xai.onnx")
    model.graph.node.append(helper.make_node("Identity", ["saliency_map"], ["nowhere"]))
    onnx.save(model, tmp_path / "xai.onnx")
    strip_file(tmp_path / "xai.onnx", tmp_path / "plain.onnx")
    left = onnx.load(tmp_path / "plain.onnx").graph.node
    assert len(left) == len(onnx.load(tmp_path / "model.onnx").graph.node)


@pytest.mark.long
def test_quantising_without_the_ignored_scope_is_told(tmp_path):
    model = insert(onnx.load(source("shapes_vit", ".onnx")), Options(output_dtype="f32")).model
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    rounded = deployed.quantised(twin, tmp_path / "int8.onnx")
    found = verify(rounded)
    assert found.rounding > 5
    assert found.correlation < 0.99
    assert "round to integers" in found.off[0]
    ignored = [node.name for node in model.graph.node if node.name.startswith("xai/")]
    spared = verify(deployed.quantised(model, tmp_path / "spared.onnx", ignored=ignored))
    assert (spared.rounding, spared.off) == (0, [])


@pytest.mark.parametrize("name", ["shapes_cnn", "shapes_vit"])
def test_half_precision_is_told_and_stands(name):
    model = insert(onnx.load(source(name, ".onnx")), Options(output_dtype="f32")).model
    found = verify(convert_float_to_float16(model, keep_io_types=True))
    assert "float16" in found.precision
    assert found.correlation >= 0.99
    assert found.off == []


def test_another_map_is_told(tmp_path):
    model = insert(onnx.load(source("shapes_cnn", ".onnx"))).model
    last = next(node for node in model.graph.node if "saliency_map" in node.output)
    tail = [helper.make_node("Transpose", [last.input[0]], ["turned"], "turned", perm=[0, 1, 3, 2])]
    last.input[0] = "turned"
    index = list(model.graph.node).index(last)
    nodes = list(model.graph.node)
    nodes[index:index] = tail
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "turned.onnx")
    assert "not that of its definition" in verify(model).off[0]
    result = invoke(main, "--verify", tmp_path / "turned.onnx")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1


def test_a_branch_that_may_run_in_half_precision_is_told(tmp_path):
    insert_file(source("shapes_vit", ".xml"), tmp_path / "xai.xml")
    text = (tmp_path / "xai.xml").read_text()
    mark = '<attribute name="DisablePrecisionConversion"'
    begin = text.index(mark)
    whole = text[begin : text.index("/>", begin) + 2]
    (tmp_path / "xai.xml").write_text(text.replace(f"<rt_info>{whole}</rt_info>", ""))
    assert "has lost the mark" in "".join(verify(tmp_path / "xai.xml").off)


def test_an_inserted_onnx_that_openvino_has_converted(tmp_path):
    insert_file(source("shapes_cnn", ".onnx"), tmp_path / "xai.onnx")
    ov.save_model(ov.convert_model(tmp_path / "xai.onnx"), tmp_path / "xai.xml")
    found = verify(tmp_path / "xai.xml")
    assert found.off == []
    assert found.correlation >= 0.99
    strip_file(tmp_path / "xai.xml", tmp_path / "plain.xml")
    assert "xai_insert" not in (tmp_path / "plain.xml").read_text()


def test_a_plain_model_has_nothing_to_verify_or_strip(tmp_path):
    with pytest.raises(NotInsertedError, match="'logits'"):
        verify(source("shapes_cnn", ".onnx"))
    for arguments in (["--verify"], ["--strip", "-o", tmp_path / "plain.onnx"]):
        result = invoke(main, source("shapes_cnn", ".onnx"), *arguments)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_commands(tmp_path):
    target = tmp_path / "xai.onnx"
    insert_file(source("shapes_cnn", ".onnx"), target)
    result = invoke(main, "--verify", target, "--report", tmp_path / "report.json")
    assert result.exit_code == 0
    assert "predictions identical without the branch" in result.stdout
    assert '"correlation": 1.0' in (tmp_path / "report.json").read_text()
    result = invoke(main, "--strip", target, "-o", tmp_path / "plain.onnx")
    assert result.exit_code == 0
    assert [value.name for value in onnx.load(tmp_path / "plain.onnx").graph.output] == ["logits"]
    for arguments in (
        ["--verify", target, "-o", tmp_path / "x.onnx"],
        ["--verify", target, "--top-k", "3"],
        ["--strip", target],
        ["--layers", target, "--dry-run"],
        ["--strip", target, "-o", target],
    ):
        result = invoke(main, *arguments)
        assert result.exit_code in (1, 2)
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("name", ["shapes_cnn", "shapes_vit"])
def test_every_listed_layer_can_be_a_target(name, suffix, tmp_path):
    result = invoke(main, "--layers", source(name, suffix))
    assert result.exit_code == 0
    layers = [line.split("'")[1] for line in result.stdout.splitlines()[1:]]
    assert len(layers) > 5
    report = insert(Path(source(name, suffix)), Options(target_layer=layers[-1], method="activation-map")).report
    assert report.target["grid"] == (12, 12)


def test_layers_of_a_model_without_any():
    b = models.Builder()
    flat = b.node("Flatten", "image")
    model = b.model(b.linear(flat, 3 * 12 * 12))
    path = Path("unused.onnx")
    assert not path.exists()
    from xai_insert.formats.backend import load
    from xai_insert.locate.classifier import usable_layers

    assert usable_layers(load(model, {}).view(), Options()) == []
