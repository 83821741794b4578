"""Recipro-CAM by its definition, outside the tool: cut the model at what is masked, mask in NumPy, run the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import openvino.opset13 as opset
from onnx.utils import Extractor

Array = np.ndarray


class Parts:
    """Backbone and head of a plain model, cut at the values named `targets` and `logits`."""

    def __init__(self, model: Any, targets: str | Sequence[str], logits: str) -> None:
        names = [targets] if isinstance(targets, str) else list(targets)
        if isinstance(model, onnx.ModelProto):
            self._cut_onnx(model, names, logits)
        else:
            self._cut_openvino(model, names, logits)

    def _cut_onnx(self, model: onnx.ModelProto, targets: list[str], logits: str) -> None:
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        inferred = onnx.shape_inference.infer_shapes(whole, data_prop=True)
        kinds = {v.name: v.type for v in [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]}
        image = model.graph.input[0].name
        del whole.graph.output[:]
        for name in (*targets, logits):
            whole.graph.output.add(name=name).type.CopyFrom(kinds[name])
        backbone = session(whole)
        head_model = Extractor(inferred).extract_model([image, *targets], [logits])
        head = session(head_model)
        taken = {arg.name for arg in head.get_inputs()}
        self._backbone = lambda x: backbone.run(None, {image: x})
        self._head = lambda x, *f: head.run(
            None, {k: v for k, v in ((image, x), *zip(targets, f, strict=True)) if k in taken}
        )[0]

    def _cut_openvino(self, model: ov.Model, targets: list[str], logits: str) -> None:
        def port(twin: ov.Model, name: str) -> ov.Output:
            for node in twin.get_ordered_ops():
                for index, output in enumerate(node.outputs()):
                    if name in (node.get_friendly_name(), f"{node.get_friendly_name()}.{index}"):
                        return output
            raise KeyError(name)

        twin = model.clone()
        results = [opset.result(port(twin, name)) for name in (*targets, logits)]
        backbone = compiled(ov.Model(results, twin.get_parameters()))
        twin = model.clone()
        sources, result = [port(twin, name) for name in targets], opset.result(port(twin, logits))
        entries = [opset.parameter(source.get_partial_shape(), source.get_element_type()) for source in sources]
        for source, entry in zip(sources, entries, strict=True):
            for reader in source.get_target_inputs():
                reader.replace_source_output(entry.output(0))
        head = compiled(ov.Model([result], [*twin.get_parameters(), *entries]))
        self._backbone = lambda x: [np.array(v) for v in backbone([x]).values()]
        self._head = lambda x, *f: np.array(head([x, *f])[0])

    def values(self, image: Array) -> tuple[list[Array], Array]:
        """What stands at the targets, and `[B, K]` of the whole model."""
        *features, logits = self._backbone(image)
        return features, logits.reshape(len(image), -1)

    def features(self, image: Array) -> list[Array]:
        """What stands at the targets."""
        return self.values(image)[0]

    def feature(self, image: Array) -> Array:
        """The feature map, which is the first target."""
        return self.features(image)[0]

    def logits(self, image: Array) -> Array:
        """`[B, K]` of the whole model."""
        return self.values(image)[1]

    def head(self, image: Array, *features: Array) -> Array:
        """`[B, K]` of the head alone, fed with values for the targets."""
        return self._head(image, *features).reshape(len(image), -1)

    def definition(self, image: Array, grid_axes: Sequence[int]) -> Array:
        """`[B, K, P]`: the logits of the head on the feature map with one position kept, for each position."""
        feature = self.feature(image)
        sizes = [feature.shape[axis] if axis in grid_axes else 1 for axis in range(feature.ndim)]
        maps = []
        for position in range(int(np.prod(sizes))):
            mask = np.zeros(int(np.prod(sizes)), feature.dtype)
            mask[position] = 1
            maps.append(self.head(image, feature * mask.reshape(sizes)))
        return np.stack(maps, axis=-1)


def load(path: Any) -> Any:
    return onnx.load(path) if path.suffix == ".onnx" else ov.Core().read_model(path)


def image_for(model: Any) -> Array:
    if isinstance(model, onnx.ModelProto):
        dims = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
    else:
        dims = [1 if d.is_dynamic else d.get_length() for d in model.inputs[0].partial_shape]
    return np.random.default_rng(11).standard_normal(dims, dtype=np.float32)


def run(model: Any, image: Array) -> dict[str, Array]:
    """All outputs of a model by name, in float32."""
    return runner(model)(image)


def runner(model: Any) -> Callable[[Array], dict[str, Array]]:
    """`run` for many images."""
    if isinstance(model, onnx.ModelProto):
        opened = session(model)
        names = [output.name for output in opened.get_outputs()]
        return lambda image: dict(zip(names, opened.run(None, {opened.get_inputs()[0].name: image}), strict=True))
    network = compiled(model)
    return lambda image: {
        (min(port.get_names()) if port.get_names() else str(index)): np.array(value)
        for index, (port, value) in enumerate(network([image]).items())
    }


def scaled(raw: Array) -> Array:
    """The reference's scaling of each map to bytes."""
    low, high = raw.min((-2, -1), keepdims=True), raw.max((-2, -1), keepdims=True)
    return np.floor(255 * ((raw - low) / np.where(high > low, high - low, 1))).astype(np.uint8)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A quiet session, whose threads sleep while they wait: several workers test on few cores."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def compiled(model: ov.Model) -> ov.CompiledModel:
    """A model on the CPU, in float32."""
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
