"""Model files from unknown sources: what they name outside their folder, and sizes that nothing backs, are refused."""

import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import models
from xai_insert import Options, errors, insert, insert_file
from xai_insert.explain.errors import ImageFileError
from xai_insert.explain.files import read_image

PACKAGE = Path(errors.__file__).parent


@pytest.fixture
def folder(tmp_path):
    (folder := tmp_path / "models").mkdir()
    return folder


def external(folder, location, *, name="model.onnx", **entries):
    """A model whose first weight is said to lie at `location`; what it needs is in `weights.data` beside it."""
    model = models.classifier(models.CLOSED["global average pool"])
    tensor = model.graph.initializer[0]
    (folder / "weights.data").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": str(location), **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


def refused(path, match, output="out.onnx", options=None):
    before = {item: item.is_file() and item.read_bytes() for item in path.parent.rglob("*")}
    with pytest.raises(errors.XaiInsertError, match=match):
        insert_file(path, path.parent / output, options)
    assert {item: item.is_file() and item.read_bytes() for item in path.parent.rglob("*")} == before


def test_external_weights_beside_the_model(folder):
    report = insert_file(external(folder, "weights.data"), folder / "out.onnx")
    assert report.output_difference == 0
    (folder / "deeper").mkdir()
    os.rename(folder / "weights.data", folder / "deeper" / "weights.data")
    path = external(folder, "deeper/weights.data")
    (folder / "weights.data").unlink()
    assert insert_file(path, folder / "out.onnx").output_difference == 0


OUTSIDE = ["../secret", "deeper/../../secret", "/etc/passwd", "..\\secret", "C:\\secret", "\\\\host\\share\\secret", ""]


@pytest.mark.parametrize("output", ["out.onnx", "out.xml"])
@pytest.mark.parametrize("location", OUTSIDE)
def test_weights_outside_the_folder(folder, location, output):
    (folder / "deeper").mkdir()
    (folder.parent / "secret").write_bytes(bytes(10_000))
    refused(external(folder, location), "outside the model's folder|name no file|not readable", output)


@pytest.mark.parametrize("output", ["out.onnx", "out.xml"])
@pytest.mark.parametrize("what", ["file", "folder", "chain"])
def test_links_out_of_the_folder(folder, what, output):
    (outside := folder.parent / "outside").mkdir()
    (outside / "weights.data").write_bytes(bytes(10_000))
    path = external(folder, "linked" if what != "folder" else "linked/weights.data")
    if what == "file":
        (folder / "linked").symlink_to(outside / "weights.data")
    elif what == "folder":
        (folder / "linked").symlink_to(outside)
    else:
        (folder / "linked").symlink_to("second")
        (folder / "second").symlink_to("../outside/weights.data")
    refused(path, "by way of a link|not readable", output)


def test_links_inside_the_folder_are_followed(folder):
    path = external(folder, "linked")
    (folder / "linked").symlink_to("weights.data")
    assert insert_file(path, folder / "out.onnx").output_difference == 0


def test_a_link_to_itself(folder):
    path = external(folder, "linked")
    (folder / "linked").symlink_to("linked")
    refused(path, "cannot be found|not readable")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(folder):
    path = external(folder, "pipe")
    os.mkfifo(folder / "pipe")
    with pytest.raises(errors.ModelFileError, match="no plain file"):
        insert_file(path, folder / "out.onnx")


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"offset": 10**6}, "is the file whole"),
        ({"offset": -8}, "is the file whole|not readable"),
        ({"length": 4}, "is the file whole"),
        ({"offset": 2**62}, "is the file whole"),
        ({"offset": "x"}, "not readable"),
    ],
)
def test_offsets_beyond_the_external_file(folder, entries, match):
    refused(external(folder, "weights.data", **entries), match)


@pytest.mark.parametrize("where", ["subgraph", "attribute", "function"])
def test_weights_outside_the_folder_anywhere(folder, where):
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    (folder.parent / "secret").write_bytes(bytes(8))
    model = models.classifier(models.CLOSED["global average pool"])
    constant = helper.make_node("Constant", [], ["far"], value=tensor)
    if where == "attribute":
        model.graph.node.append(constant)
    elif where == "function":
        function = model.functions.add(name="f", domain="own", output=["far"], node=[constant])
        function.opset_import.add(domain="", version=17)
        model.opset_import.add(domain="own", version=1)
    else:
        body = helper.make_graph([constant], "body", [], [helper.make_tensor_value_info("far", TensorProto.FLOAT, [1])])
        model.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], then_branch=body, else_branch=body))
        model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    refused(folder / "model.onnx", "outside the model's folder|not readable")


def sized(folder, dims, *, of="image"):
    model = models.classifier(models.CLOSED["global average pool"], batch=1)
    if of == "image":
        for axis, size in enumerate(dims):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
        del model.graph.value_info[:]
    else:
        model.graph.initializer[0].dims[:] = dims
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize("output", ["out.onnx", "out.xml"])
@pytest.mark.parametrize("dims", [[1, 3, 10**6, 10**6], [1, 3, 12, 10**12], [10**9, 3, 12, 12]])
def test_an_image_of_a_trillion_elements(folder, dims, output):
    refused(sized(folder, dims), "out of proportion|cannot", output)


def test_a_weight_of_a_trillion_elements(folder):
    refused(sized(folder, [6, 3, 10**6, 10**6], of="weight"), "would take")


@pytest.mark.parametrize("of", ["image", "weight"])
def test_negative_sizes(folder, of):
    refused(sized(folder, [1, 3, -4, 12], of=of), "negative size")


@pytest.mark.parametrize("output", ["out.onnx", "out.xml"])
def test_an_operator_set_of_the_far_future(folder, output):
    """OpenVINO's reader would count down from its version."""
    model = models.classifier(models.CLOSED["global average pool"])
    model.opset_import[0].version = 2**40
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    refused(folder / "model.onnx", "operator set", output, Options(check=False))


@pytest.fixture
def ir(folder):
    """Rewrites the XML of a good IR and gives its path."""
    model = models.classifier(models.CLOSED["global average pool"])
    ov.save_model(ov.Core().read_model(model.SerializeToString()), folder / "model.xml", compress_to_fp16=False)

    def rewrite(pattern, replacement):
        text = (folder / "model.xml").read_text()
        changed = re.sub(pattern, replacement, text, count=1)
        assert changed != text
        (folder / "model.xml").write_text(changed)
        return folder / "model.xml"

    return rewrite


@pytest.mark.parametrize(
    ("pattern", "replacement", "match"),
    [
        ('offset="0"', 'offset="1000000000000"', "which have"),
        ('offset="0"', 'offset="-8"', "negative"),
        ('(Const"[^>]*>\\s*<data[^>]*) size="[0-9]+"', r'\1 size="99999999999999999999"', "which have"),
        ('(Const"[^>]*>\\s*<data[^>]*) size="[0-9]+"', r'\1 size="-1"', "negative"),
        ('(Const"[^>]*>\\s*<data[^>]*) shape="[^"]*"', r'\1 shape="1000000, 1000000"', "does not fit"),
        ('(Const"[^>]*>\\s*<data[^>]*) shape="[^"]*"', r'\1 shape="-6, 3, 3, 3"', "negative"),
        ('offset="0"', 'offset="nan"', "lacks a number"),
        ('shape="\\?,3,12,12"', 'shape="1,3,1000000,1000000"', "out of proportion|cannot"),
        ("<net ", '<!DOCTYPE net [<!ENTITY a "aaaa">]><net ', "document type"),
        ("<net ", '<!DOCTYPE net SYSTEM "file:///etc/passwd"><net ', "document type"),
        ("</net>", "<rt_info>" * 5000 + "</rt_info>" * 5000 + "</net>", "nested"),
        ("</net>", "", "no well-formed XML"),
    ],
)
def test_irs_that_are_refused(ir, pattern, replacement, match):
    refused(ir(pattern, replacement), match, "out.xml")


def test_entity_expansion(ir):
    """The billion laughs: nine levels of ten entities each."""
    entities = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    path = ir("<net ", f"<!DOCTYPE net [{entities}]><net ")
    path.write_text(path.read_text().replace('name="image"', 'name="&a9;"'))
    refused(path, "document type", "out.xml")


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("command", ["insert", "explain"])
def test_commands_leave_nothing_at_home(folder, command, suffix):
    """There onnxruntime and OpenVINO keep a number of this computer, for the usage data that they send home."""
    (home := folder / "home").mkdir()
    model = models.classifier(models.CLOSED["global average pool"], batch=1, size=(16, 16))
    onnx.save(model, folder / "model.onnx")
    ov.save_model(models.as_format(model, "openvino"), folder / "model.xml", compress_to_fp16=False)
    cv2.imwrite(str(folder / "image.png"), np.zeros((16, 16, 3), np.uint8))
    more = {"insert": ["-o", folder / f"out{suffix}"], "explain": [folder / "image.png", "-o", folder / "pictures"]}
    environment = {key: text for key, text in os.environ.items() if key not in ("CI", "ORT_DISABLE_TELEMETRY")}
    done = subprocess.run(
        [sys.executable, "-m", f"xai_insert.cli.{command}", folder / f"model{suffix}", *more[command]],
        env={**environment, "HOME": str(home)}, cwd=PACKAGE.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not [path for path in home.rglob("*") if path.is_file()]


GIVE_UP = """
import sys
from pathlib import Path
from xai_insert import Options, check, errors, insert_file
check._MOST_SECONDS = 0.3
try:
    insert_file(Path(sys.argv[1]), Path(sys.argv[2]), Options(output=sys.argv[3]))
except errors.TimeLimitError as err:
    print(err, flush=True)
"""


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_loop_without_end_is_broken_off(folder, suffix):
    """In a process of its own: OpenVINO's thread stays in the loop, and would keep a processor from all later tests."""
    b = models.Builder(batch=1)
    x = b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), models.CHANNELS)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Relu", ["x"], ["y"])],
        "body",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("i", 7, []), ("go", 9, []), ("x", 1, [1, 5]))],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("still", 9, []), ("y", 1, [1, 5]))],
    )
    model = b.model(x)
    model.graph.initializer.append(helper.make_tensor("trips", TensorProto.INT64, [], [2**62]))
    model.graph.initializer.append(helper.make_tensor("always", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("Loop", ["trips", "always", x], ["looped"], body=body))
    model.graph.output.append(helper.make_tensor_value_info("looped", TensorProto.FLOAT, [1, 5]))
    onnx.save(model, folder / "model.onnx")
    if suffix == ".xml":
        ov.save_model(ov.Core().read_model(folder / "model.onnx"), folder / "model.xml", compress_to_fp16=False)
    command = [sys.executable, "-c", GIVE_UP, folder / f"model{suffix}", folder / f"out{suffix}", x]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PACKAGE.parent) as process:
        said = process.stdout.readline()
        process.kill()
    assert "did not finish" in said


def test_a_model_that_holds_too_much_can_still_be_inserted_unchecked():
    model = models.classifier(models.CLOSED["global average pool"], batch=1, size=(20_000, 20_000))
    with pytest.raises(errors.CheckFailedError, match="out of proportion"):
        insert(model)
    assert insert(model, Options(check=False)).report.target["grid"] == (10_000, 10_000)


def test_nothing_is_unpickled_or_evaluated():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"\bimport (pickle|marshal|shelve|joblib)|\b(eval|exec|os\.system)\(|shell=True", text), (
            path
        )
        assert not re.search(r"allow_pickle\s*=\s*True|mktemp\(|/tmp", text), path
        for call in re.findall(r"np\.load\([^)]*\)", text):
            assert "allow_pickle=False" in call or "allow_pickle" not in call, path


def test_an_image_that_unpacks_to_gigabytes(tmp_path):
    """A PNG of a few hundred bytes that says it has 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ImageFileError, match=r"bomb|pixels"):
        read_image(tmp_path / "bomb.png")
