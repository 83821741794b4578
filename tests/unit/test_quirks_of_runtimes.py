"""What runtimes do to a model because a branch reads it, and what their readers do not tell."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import openvino as ov
import openvino.opset13 as opset
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from model_zoo_fixtures.testbed import deployed, models, oracle
from xai_insert import Options, errors, insert
from xai_insert.formats.onnx.shapes import infer
from xai_insert.formats.openvino.view import build_view

RAW = Options(output_dtype="f32")
C = 16


def model(nodes, weights, inputs, outputs, version):
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in values.items()]
        for values in (inputs, outputs)
    )
    stored = [numpy_helper.from_array(np.asarray(content), name) for name, content in weights.items()]
    graph = helper.make_graph([helper.make_node(*node[:3], **node[3]) for node in nodes], "g", inputs, outputs, stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10)
    onnx.checker.check_model(made)
    return made


def convnext(version):
    """A residual block that computes with the channels last, and a head that does so too."""
    rng = np.random.default_rng(0)
    shapes = {"w": (C, 3, 4, 4), "up": (C, 2 * C), "down": (2 * C, C), "head": (C, 5)}
    weights = {name: (1.5 * rng.standard_normal(s) / np.sqrt(s[0])).astype(np.float32) for name, s in shapes.items()}
    weights |= {"gamma": np.full((1, C, 1, 1), 0.7, np.float32), "one": np.ones(C, np.float32)}
    weights |= {
        "axes": np.array([-1, -2]),
        "flat": np.array([1, C]),
        "up_b": weights["up"][0],
    }
    weights["down_b"] = weights["down"][1]
    last, first = {"perm": [0, 2, 3, 1]}, {"perm": [0, 3, 1, 2]}
    nodes = [
        ("Conv", ["image", "w"], ["x"], {"strides": [4, 4]}),
        ("Transpose", ["x"], ["x_last"], last),
        ("LayerNormalization", ["x_last", "one"], ["normed"], {}),
        ("MatMul", ["normed", "up"], ["wide"], {}),
        ("Add", ["wide", "up_b"], ["shifted"], {}),
        ("Relu", ["shifted"], ["kept"], {}),
        ("MatMul", ["kept", "down"], ["narrow"], {}),
        ("Add", ["narrow", "down_b"], ["narrow_last"], {}),
        ("Transpose", ["narrow_last"], ["narrow_first"], first),
        ("Mul", ["narrow_first", "gamma"], ["scaled"], {}),
        ("Add", ["scaled", "x"], ["sum"], {}),
        ("ReduceMean", ["sum", "axes"], ["mean"], {"keepdims": 1}),
        ("Transpose", ["mean"], ["mean_last"], last),
        ("LayerNormalization", ["mean_last", "one"], ["head_normed"], {}),
        ("Transpose", ["head_normed"], ["head_first"], first),
        ("Reshape", ["head_first", "flat"], ["vector"], {}),
        ("Gemm", ["vector", "head"], ["logits"], {}),
    ]
    return model(nodes, weights, {"image": [1, 3, 32, 32]}, {"logits": [1, 5]}, version)


def image(seed=0):
    return np.random.default_rng(seed).standard_normal((1, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("version", [18, 23])
def test_transposes_of_the_branch_leave_the_rounding_of_a_half_model_alone(version):
    plain = convert_float_to_float16(convnext(version), keep_io_types=True)
    new = insert(plain, RAW)
    assert new.report.form == "closed form"
    assert np.array_equal(oracle.run(new.model, image())["logits"], oracle.run(plain, image())["logits"])
    wanted = oracle.run(insert(convnext(version), RAW).model, image())["saliency_map"]
    assert np.allclose(oracle.run(new.model, image())["saliency_map"], wanted, rtol=0, atol=0.01 * abs(wanted).max())


@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("version", [18, 23])
def test_quantisers_before_the_branch_load(kind, version, tmp_path):
    path = tmp_path / "quantised.onnx"
    quantize_static(
        convnext(version),
        path,
        deployed.Calibration(map(image, range(2, 5))),
        quant_format=QuantFormat.QDQ,
        activation_type=kind,
    )
    new = insert(onnx.load(path), RAW)
    assert new.report.form == "closed form"
    assert new.report.output_difference == 0
    wanted = oracle.run(insert(convnext(version), RAW).model, image())["saliency_map"]
    found = oracle.run(new.model, image())["saliency_map"]
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.95


def test_sizes_of_a_free_batch_where_openvino_cannot_read_the_model(tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((48, 3, 8, 8)).astype(np.float32),
        "codes": rng.integers(-8, 8, (48, 8)).astype(np.int8),
        "scale": np.ones((2, 8), np.float32),  # blocks of 32 that 48 is no multiple of
    }
    weights |= {name: np.array(value) for name, value in (("zero", [0]), ("first", [2]), ("rest", [-1]))}
    nodes = [
        ("Conv", ["image", "w"], ["x"], {"strides": [8, 8]}),
        ("Shape", ["x"], ["sizes"], {}),
        ("Slice", ["sizes", "zero", "first"], ["kept"], {}),
        ("Concat", ["kept", "rest"], ["target"], {"axis": 0}),
        ("Reshape", ["x", "target"], ["columns"], {}),
        ("Transpose", ["columns"], ["tokens"], {"perm": [0, 2, 1]}),
        ("DequantizeLinear", ["codes", "scale"], ["weight"], {"axis": 0, "block_size": 32}),
        ("MatMul", ["tokens", "weight"], ["y"], {}),
    ]
    made = model(nodes, weights, {"image": ["b", 3, 32, 32]}, {"y": ["b", 16, 8]}, 21)
    assert ort.InferenceSession(made.SerializeToString()).run(None, {"image": image()})[0].shape == (1, 16, 8)
    onnx.save(made, tmp_path / "model.onnx")
    with pytest.raises(RuntimeError):
        ov.Core().read_model(tmp_path / "model.onnx")
    shapes = infer(ir.from_proto(made), {}).shapes
    assert shapes["tokens"] == (None, 16, 48)
    assert shapes["columns"] == (None, 48, 16)


@pytest.mark.parametrize("kind", ["nf4", "i4", "u4", "f8e4m3", "f8e5m2", "bf16", "f16"])
def test_weights_that_numpy_has_no_type_for(kind):
    numbers = np.array([[0, 1, -1], [1, 0, 1]], np.float32)
    numbers = np.abs(numbers) if kind == "u4" else numbers
    codes = opset.constant(numbers, dtype=getattr(ov.Type, kind))
    scale = opset.constant(np.array([[0.5], [3]], np.float16))
    weight = opset.convert(opset.multiply(opset.convert(codes, "f16"), scale), "f32")
    x = opset.parameter([1, 3], np.float32)
    graph = build_view(ov.Model([opset.matmul(x, weight, False, True)], [x], "m"))
    (product,) = (node for node in graph.nodes if node.type == "MatMul")
    assert np.array_equal(product.read(1).elements(), numbers * [[0.5], [3]])


def normal_floats(plain, *, decompressed):
    """The linear layers of an IR with weights of NF4, or with the numbers that they stand for."""
    for node in plain.get_ordered_ops():
        source = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if source is None or source.get_type_name() != "Constant":
            continue
        weight = source.get_data(dtype=np.float32)
        scale = np.abs(weight).max(axis=1, keepdims=True).astype(np.float16)
        codes = opset.constant(weight / scale, dtype=ov.Type.nf4)
        new = opset.constant(codes.get_data(dtype=np.float32) * scale.astype(np.float32))
        if not decompressed:
            new = opset.convert(opset.multiply(opset.convert(codes, "f16"), opset.constant(scale)), "f32")
        node.input(1).replace_source_output(new.output(0))
    plain.validate_nodes_and_infer_types()
    return plain


@pytest.mark.parametrize("name", ["shapes_cnn", "shapes_vit"])
def test_a_model_of_normal_floats_has_the_map_of_its_numbers(name):
    new = insert(normal_floats(deployed.plain(name, ".xml"), decompressed=False), RAW)
    wanted = insert(normal_floats(deployed.plain(name, ".xml"), decompressed=True), RAW)
    assert new.report.form == wanted.report.form == "closed form"
    a, b = (oracle.run(result.model, deployed.scenes(1))["saliency_map"] for result in (new, wanted))
    assert np.allclose(a, b, rtol=0, atol=1e-4 * abs(b).max())


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_a_window_that_onnxruntime_counts_and_leaves_out_is_named(kind):
    """11 cells and one of padding on each side, by twos: the seventh window begins in the padding."""

    def network(b):
        x = b.node("Relu", b.node("Conv", "image", b.weight(6, 3, 3, 3), pads=[1] * 4))
        x = b.node(kind, x, kernel_shape=[2, 2], strides=[2, 2], pads=[1] * 4, ceil_mode=1)
        x = b.node("Relu", b.node("Conv", x, b.weight(6, 6, 3, 3), pads=[1] * 4))
        return b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 6)

    with pytest.raises(errors.CheckFailedError, match=rf"last window of the pool '{kind}_2'.*ceil_mode=False"):
        insert(models.classifier(network, size=(11, 11)))
    assert insert(models.classifier(network, size=(10, 10))).report.target["grid"] == (6, 6)


@pytest.mark.parametrize("ends", ["scores", "labels", "inside"])
def test_the_tail_of_a_model_is_read_without_a_copy(ends):
    """OpenVINO computes it in float32 anyway; a copy parts what is read before another linear layer."""
    b = models.Builder(size=(16, 16))
    scores = b.node("Relu", b.node("Conv", b.backbone(), b.weight(5, models.CHANNELS, 1, 1), b.weight(5)))
    scales = b.const(np.array([1, 1, 2, 2], np.float32))
    last = {
        "scores": lambda: scores,
        "labels": lambda: b.node("ArgMax", scores, axis=1, keepdims=0),
        "inside": lambda: b.node("Resize", scores, "", scales, mode="linear"),
    }[ends]()
    plain = models.as_format(b.model(last), "openvino")
    inserted = insert(plain, Options(method="class-score-map")).model
    added = {node.get_type_name() for node in inserted.get_ordered_ops() if node.get_friendly_name()[:4] == "xai/"}
    assert ("GroupConvolution" in added) is (ends == "inside")
    images = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    for precision in ("f32", "bf16"):
        ways = {"INFERENCE_PRECISION_HINT": precision}
        before, after = (ov.Core().compile_model(item, "CPU", ways)([images]) for item in (plain, inserted))
        np.testing.assert_array_equal(before[0], after[0])


@pytest.mark.parametrize("takes", [False, True])
def test_an_if_that_hands_its_value_on_is_no_obstacle(takes):
    """As TorchScript's `squeeze` is written; which branch is taken follows from a rank, and tells no sizes itself."""
    rng = np.random.default_rng(0)
    image = opset.parameter([-1, 3, -1, -1], np.float32, name="image")
    weight = rng.standard_normal((C, 3, 3, 3), np.float32)
    feature = opset.relu(opset.convolution(image, weight, [2, 2], [1, 1], [1, 1], [1, 1]))
    rank = opset.shape_of(opset.shape_of(feature))
    branch = opset.if_op(opset.equal(rank, np.array([4 if takes else 3], np.int64)).output(0))
    bodies = []
    for is_other in (takes, not takes):
        given = opset.parameter([-1, C, -1, -1], np.float32)
        flat = opset.reshape(given, np.array([0, -1], np.int64), True)
        bodies.append((ov.Model([flat if not is_other else given], [given]), given))
    branch.set_then_body(bodies[0][0])
    branch.set_else_body(bodies[1][0])
    branch.set_input(feature.output(0), bodies[0][1], bodies[1][1])
    branch.set_output(bodies[0][0].get_results()[0], bodies[1][0].get_results()[0])
    pooled = opset.reduce_mean(branch, np.array([2, 3], np.int64), keep_dims=False)
    scores = opset.matmul(pooled, rng.standard_normal((C, 5), np.float32), False, False)
    plain = ov.Model([scores], [image], "m")
    result = insert(plain, RAW)
    assert (result.report.form, result.report.output_difference) == ("closed form", 0)
    assert "If" in {node.get_type_name() for node in result.model.get_ordered_ops()}
    assert len(plain.get_results()) == 1


@pytest.mark.parametrize("kind", models.FORMATS)
def test_scores_of_tokens_that_are_joined_in_place_are_read_right(kind):
    """OpenVINO merges a transpose and a reshape of what a Concat reads into another layout, and reads it wrongly."""
    side, classes, b = 32, 5, models.Builder(size=(32, 32), batch=1)
    scores, boxes, x = [], [], "image"
    for level, step in enumerate((4, 2)):
        width = 3 if level == 0 else C
        x = b.node("Relu", b.node("Conv", x, b.weight(C, width, step, step), strides=[step, step]))

        rows = b.node("Reshape", x, b.const(np.array([1, C, -1])))
        tokens = b.node("Transpose", rows, perm=[0, 2, 1])
        scores.append(b.node("MatMul", tokens, b.weight(C, classes)))
        offsets = b.node("Reshape", b.node("Conv", x, b.weight(4, C, 1, 1)), b.const(np.array([1, 4, -1])))
        boxes.append(b.node("Mul", b.node("Transpose", offsets, perm=[0, 2, 1]), b.const(np.float32(step))))
    joined = b.node("Sigmoid", b.node("Concat", *scores, axis=1))
    model = b.model(b.node("Concat", *boxes, axis=1), joined)
    images = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in scores)
    found = oracle.run(copy, images)
    fine, rough = (found[name][0].T.reshape(classes, n, n) for name, n in zip(scores, (8, 4), strict=True))
    mean = (fine.reshape(classes, 4, 2, 4, 2).mean((2, 4)) + rough) / 2  # of half the size: the mean of two by two
    shares = np.exp(mean) / np.exp(mean).sum(0)
    result = insert(models.as_format(model, kind), Options(output_dtype="f32", num_classes=classes))
    maps = oracle.run(result.model, images)["saliency_map"]
    np.testing.assert_allclose(maps[0], shares, atol=1e-5)
