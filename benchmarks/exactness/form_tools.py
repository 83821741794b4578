"""What people make of an exported model before they deploy it: one maker for each form, see `forms`."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
import openvino as ov
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from benchmarks.exactness.old_sets import Lowered
from model_zoo_fixtures.testbed import deployed

# ruff: noqa: PLC0415 - slow to import, or seldom installed

Array = np.ndarray
Maker = Callable[[Path, Path], Any]
"""Makes a form of the ONNX file at the first path; the second is a file that it may write."""

_LAYERS = frozenset({"Convolution", "FullyConnected", "MatMul", "Pooling", "Eltwise", "Deconvolution"})


def feeds(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    """Smooth random images for the inputs of a plain model."""
    rng = np.random.default_rng(seed)
    weights = {item.name for item in model.graph.initializer}
    made = {}
    for item in model.graph.input:
        if item.name not in weights:
            sizes = [dim.dim_value or 1 for dim in item.type.tensor_type.shape.dim]
            coarse = rng.standard_normal([*sizes[:2], *(-(-side // 16) for side in sizes[2:])])
            fine = np.repeat(np.repeat(coarse, 16, axis=2), 16, axis=3)[..., : sizes[2], : sizes[3]]
            made[item.name] = (fine + 0.3 * rng.standard_normal(sizes)).astype(np.float32)
    return made


def _saved(level: str, model: Path, goal: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(goal)
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return onnx.load(goal)


def _fused(kind: str, half: bool, model: Path, goal: Path) -> Any:
    from onnxruntime.transformers.optimizer import optimize_model

    fused = optimize_model(str(model), model_type=kind, opt_level=0)
    if half:
        fused.convert_float_to_float16(keep_io_types=True)
    fused.save_model_to_file(str(goal))
    return onnx.load(goal)


def _simplified(model: Path, goal: Path) -> Any:
    import onnxsim

    del goal
    return onnxsim.simplify(onnx.load(model))[0]


def _slim(model: Path, goal: Path) -> Any:
    import onnxslim

    del goal
    return onnxslim.slim(onnx.load(model))


def _half(model: Path, goal: Path) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    del goal
    return convert_float_to_float16(onnx.load(model), keep_io_types=True)


def _half_by_converter(model: Path, goal: Path) -> Any:
    from onnxconverter_common.float16 import convert_float_to_float16

    del goal
    return convert_float_to_float16(onnx.load(model), keep_io_types=True)


def calibration(model: Path) -> list[dict[str, Array]]:
    """What quantisers are fed: the arrays of the `.npz` beside the file, for its first input, else random images."""
    beside = model.with_suffix(".npz")
    if not beside.is_file():
        return [feeds(onnx.load(model), seed) for seed in range(4, 8)]
    image = onnx.load(model).graph.input[0].name if model.suffix == ".onnx" else "image"
    return [{image: array} for array in np.load(beside)["arr_0"]]


class _Images(CalibrationDataReader):
    def __init__(self, model: Path) -> None:
        self._feeds = iter(calibration(model))

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def _static(
    form: QuantFormat,
    activations: QuantType,
    per_channel: bool,
    model: Path,
    goal: Path,
    *,
    weights: QuantType = QuantType.QInt8,
    by_onnxruntime: bool = False,
) -> Any:
    """Quantised with calibration; `by_onnxruntime` with its own operators in place of ONNX's."""
    quantize_static(
        model,
        goal,
        _Images(model),
        quant_format=form,
        per_channel=per_channel,
        activation_type=activations,
        weight_type=weights if per_channel else activations,
        extra_options={"UseQDQContribOps": True} if by_onnxruntime else None,
    )
    return onnx.load(goal)


def _dynamic(model: Path, goal: Path) -> Any:
    quantize_dynamic(model, goal)
    return onnx.load(goal)


def _four_bits(form: QuantFormat, model: Path, goal: Path) -> Any:
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    plain = onnx.load(model)
    if form is QuantFormat.QDQ:  # DequantizeLinear knows blocks and four bits from set 21 on
        plain = _other_set(21, model, goal)
    settings = nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, quant_format=form)
    packer = nbits.MatMulNBitsQuantizer(plain, algo_config=settings)
    packer.process()
    return packer.model.model


def _dequantised_weights(model: Path, goal: Path) -> Any:
    """Weights of linear layers in INT8, channel by channel, dequantised where they are read."""
    del goal
    plain = onnx.load(model)
    stored = {item.name: item for item in plain.graph.initializer}
    readers = Counter(name for node in plain.graph.node for name in node.input)
    for node in list(plain.graph.node):
        tensor = stored.get(node.input[1]) if node.op_type in ("MatMul", "Gemm", "Conv") else None
        if tensor is None or readers[tensor.name] > 1:
            continue
        weight = numpy_helper.to_array(tensor)
        axis = weight.ndim - 1 if node.op_type == "MatMul" else 0
        others = tuple(index for index in range(weight.ndim) if index != axis)
        scale = np.maximum(np.abs(weight).max(others, keepdims=True), 1e-9) / 127
        parts = {"bytes": np.rint(weight / scale).astype(np.int8), "scale": scale.reshape(-1).astype(np.float32)}
        names = [f"{tensor.name}_{part}" for part in parts]
        plain.graph.initializer.extend(map(numpy_helper.from_array, parts.values(), names))
        node.input[1] = f"{tensor.name}_float"
        plain.graph.node.insert(0, helper.make_node("DequantizeLinear", names, [node.input[1]], axis=axis))
        plain.graph.initializer.remove(tensor)
    return plain


def _other_set(version: int, model: Path, goal: Path) -> Any:
    del goal
    return onnx.version_converter.convert_version(onnx.load(model), version)


def _old_set(version: int, model: Path, goal: Path) -> Any:
    return Lowered(_saved("ORT_ENABLE_BASIC", model, goal), version).model()


def _set_15(model: Path, goal: Path) -> Any:
    """Raised by onnx's converter from set 10 where there is LayerNormalization: down from 17 it leaves none."""
    is_normal = any(node.op_type == "LayerNormalization" for node in onnx.load(model).graph.node)
    return onnx.version_converter.convert_version(_old_set(10, model, goal) if is_normal else onnx.load(model), 15)


def newest_set() -> int:
    """The newest operator set of ONNX that the installed onnxruntime runs."""
    for version in range(onnx.defs.onnx_opset_version(), 0, -1):
        value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [onnx.ValueInfoProto()])
        graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # of a set that is not officially released: try the one before
            continue
        return version
    raise RuntimeError("onnxruntime runs no operator set")


def _listed(ir_version: int, model: Path, goal: Path) -> Any:
    """Weights that are inputs as well, which IR version 3 demands."""
    del goal
    plain = onnx.load(model)
    plain.ir_version = ir_version
    weights = plain.graph.initializer
    plain.graph.input.extend(helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in weights)
    return plain


def _in_functions(model: Path, goal: Path) -> Any:
    """The layers in model-local functions, each of which calls two others."""
    del goal
    plain = onnx.load(model)
    graph = plain.graph
    runs: list[list[onnx.NodeProto]] = [[]]
    for node in graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            runs += [[node], []]
        else:
            runs[-1].append(node)
            if len(runs[-1]) == 8:
                runs.append([])
    left = [item.name for item in graph.output] + [name for run in runs for node in run for name in _read(node)]
    needed = Counter(left)
    nodes = []
    for index, run in enumerate(run for run in runs if run):
        if len(run) == 1:
            nodes += run
        else:
            halves = [run[: len(run) // 2], run[len(run) // 2 :]]
            calls = [_function(plain, half, f"part_{index}_{k}", needed) for k, half in enumerate(halves)]
            nodes.append(_function(plain, calls, f"block_{index}", needed))
    del graph.node[:]
    del graph.value_info[:]
    graph.node.extend(nodes)
    plain.opset_import.append(helper.make_opsetid("local", 1))
    plain.ir_version = max(plain.ir_version, 8)
    return plain


def _read(node: onnx.NodeProto) -> Iterable[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _read(inner)
        yield from (item.name for item in attribute.g.output)


def _function(model: onnx.ModelProto, nodes: list[onnx.NodeProto], name: str, needed: Counter[str]) -> onnx.NodeProto:
    made = [output for node in nodes for output in node.output if output]
    inside = Counter(value for node in nodes for value in _read(node))
    inputs = [value for value in dict.fromkeys(v for node in nodes for v in _read(node)) if value and value not in made]
    outputs = [value for value in made if needed[value] > inside[value]]
    imports = [*model.opset_import]
    if not any(item.domain == "local" for item in imports):
        imports.append(helper.make_opsetid("local", 1))
    function = helper.make_function("local", name, inputs, outputs, nodes, imports)
    model.functions.append(function)
    for value in inputs:  # its readers inside are one reader now, which counts as before
        needed[value] -= inside[value] - 1
    return helper.make_node(name, inputs, outputs, domain="local", name=name)


def _ir(compressed: bool, model: Path, goal: Path) -> Any:
    network = ov.Core().read_model(model) if model.suffix == ".xml" else ov.convert_model(model)
    ov.save_model(network, goal.with_suffix(".xml"), compress_to_fp16=compressed)
    return ov.Core().read_model(goal.with_suffix(".xml"))


def _ir_10(model: Path, goal: Path) -> Any:
    """IR version 10, in place of 11 in the header."""
    _ir(False, model, goal)
    path = goal.with_suffix(".xml")
    text = re.sub(r'(<net [^>]*version=")11"', r'\g<1>10"', path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    return ov.Core().read_model(path)


def _images(model: Path, *, by_name: bool) -> Any:
    import nncf

    given = calibration(model)
    return nncf.Dataset(given if by_name else [list(feed.values()) for feed in given])


def _nncf(mode: str | None, model: Path, goal: Path) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    chosen = None if mode is None else nncf.QuantizationMode[mode]
    return nncf.quantize(_ir(False, model, goal), _images(model, by_name=False), subset_size=9, mode=chosen)


def _nncf_onnx(model: Path, goal: Path) -> Any:
    import nncf

    del goal
    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(onnx.load(model), _images(model, by_name=True), subset_size=9)


def _nncf_weights(mode: str, model: Path, goal: Path) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    extra = {} if mode.startswith("INT8") else {"ratio": 1.0, "group_size": -1, "all_layers": True}
    return nncf.compress_weights(_ir(False, model, goal), mode=nncf.CompressWeightsMode[mode], **extra)


BEFORE: Mapping[str, Maker] = {
    "ONNX": lambda model, goal: onnx.load(model),
    "saved, basic": partial(_saved, "ORT_ENABLE_BASIC"),
    "saved, extended": partial(_saved, "ORT_ENABLE_EXTENDED"),
    "saved, all": partial(_saved, "ORT_ENABLE_ALL"),
    **{f"fused as {kind}": partial(_fused, kind, False) for kind in ("vit", "clip", "swin")},
    "fused as vit, float16": partial(_fused, "vit", True),
    "onnxsim": _simplified,
    "onnxslim": _slim,
    **{f"set {version}": partial(_old_set, version) for version in (7, 8, 9, 10)},
    "set 15": _set_15,
    **{f"set {version}": partial(_other_set, version) for version in (21, 23)},
    "newest set": lambda model, goal: _other_set(newest_set(), model, goal),
    "weights as inputs": partial(_listed, 8),
    "ONNX IR 3": partial(_listed, 3),
    "nested functions": _in_functions,
    "float16": _half,
    "float16 by onnxconverter": _half_by_converter,
    "QDQ": partial(_static, QuantFormat.QDQ, QuantType.QUInt8, True),
    "QDQ, signed": partial(_static, QuantFormat.QDQ, QuantType.QInt8, True),
    **{
        f"QDQ of onnxruntime{name}": partial(
            _static, QuantFormat.QDQ, activations, True, weights=weights, by_onnxruntime=True
        )
        for name, activations, weights in (
            ("", QuantType.QUInt8, QuantType.QInt8),
            (", 16 bits", QuantType.QUInt16, QuantType.QInt8),
            (", weights in 4 bits", QuantType.QUInt8, QuantType.QInt4),
        )
    },
    "QOperator": partial(_static, QuantFormat.QOperator, QuantType.QUInt8, False),
    "QOperator, by channel": partial(_static, QuantFormat.QOperator, QuantType.QUInt8, True),
    "dynamic": _dynamic,
    "4 bits": partial(_four_bits, QuantFormat.QOperator),
    "4 bits, dequantised": partial(_four_bits, QuantFormat.QDQ),
    "8 bits, dequantised": _dequantised_weights,
    "NNCF on ONNX": _nncf_onnx,
    "ONNX read by OpenVINO": lambda model, goal: ov.Core().read_model(model),
    "IR": partial(_ir, False),
    "IR, float16 weights": partial(_ir, True),
    "IR version 10": _ir_10,
    "NNCF": partial(_nncf, None),
    "NNCF, FP8": partial(_nncf, "FP8_E4M3"),
    **{f"NNCF, weights {mode}": partial(_nncf_weights, mode) for mode in ("INT8_ASYM", "INT8_SYM", "INT4_SYM", "NF4")},
}
"""Forms of the plain model, that are inserted into."""

AFTER: Mapping[str, Maker] = {
    **{f"then {name}": BEFORE[name] for name in ("saved, basic", "saved, extended", "saved, all")},
    **{f"then {name}": BEFORE[name] for name in ("onnxsim", "onnxslim", "float16", "newest set")},
    "then read by OpenVINO": BEFORE["ONNX read by OpenVINO"],
    "then saved as IR": BEFORE["IR"],
    "then saved as IR, float16 weights": BEFORE["IR, float16 weights"],
}
"""What is made of the inserted ONNX file."""

FLOATS = frozenset(BEFORE) - {name for name in BEFORE if re.search("float16|QDQ|QOperator|dynamic|bits|NNCF", name)} | {
    name for name in AFTER if "float16" not in name
}
"""Forms with the weights of the plain export, in float32: their maps are to be the same to 1e-5."""


def kernels(model: Any, folder: Path) -> Counter[str]:
    """Integer kernels that the runtime makes of the model's own layers, by kind."""
    if isinstance(model, onnx.ModelProto):
        return deployed.integer_kernels(model, folder)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: str(value.value) for key, value in node.get_rt_info().items()}
        is_own = not node.get_friendly_name().startswith("xai/")
        if is_own and info.get("runtimePrecision") in ("u8", "i8") and info["layerType"] in _LAYERS:
            found[info["layerType"]] += 1
    return found
