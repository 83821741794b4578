"""`shapes_cnn` by way of TensorFlow Lite: channels last, quantised by its converter, read by OpenVINO.

    pip install tensorflow
    python -m model_zoo_fixtures.shapes.tflite

Builds the trained network again in Keras, with the weights of `shapes_cnn.onnx`, and writes
`int8/shapes_cnn_tflite.xml`. The tests read that file, so that they do not need TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import openvino as ov
import tensorflow as tf

from model_zoo_fixtures.shapes.dataset import classification_scene
from model_zoo_fixtures.shapes.saving import save

FOLDER = Path(__file__).parent
_CALIBRATION_IMAGES = 100
_SIZE = 96


def build(source: onnx.ModelProto) -> Any:
    """The network in Keras, `[N, 96, 96, 3]` to logits, node for node."""
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in source.graph.initializer}
    for node in source.graph.node:
        if node.op_type == "Constant":
            stored[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    image = tf.keras.Input((_SIZE, _SIZE, 3))
    values: dict[str, Any] = {source.graph.input[0].name: image}
    for node in source.graph.node:
        if node.op_type != "Constant":
            values[node.output[0]] = _layer(node, values, stored)
    return tf.keras.Model(image, values[source.graph.output[0].name])


def _layer(node: onnx.NodeProto, values: dict[str, Any], stored: dict[str, Any]) -> Any:
    x = values[node.input[0]]
    operands = [stored.get(name) for name in node.input[1:]]
    match node.op_type:
        case "Div":
            return tf.keras.layers.Rescaling(1 / operands[0].item())(x)
        case "Sub":
            return tf.keras.layers.Rescaling(1.0, -operands[0].item())(x)
        case "Conv":
            return _convolution(node, x, *operands)
        case "Relu":
            return tf.keras.layers.ReLU()(x)
        case "Add":
            return tf.keras.layers.Add()([x, values[node.input[1]]])
        case "GlobalAveragePool":
            return tf.keras.layers.GlobalAveragePooling2D()(x)
        case "Flatten":
            return x
        case "Gemm":
            return _set(tf.keras.layers.Dense(len(operands[1])), x, operands[0].T, operands[1])
    raise ValueError(f"unexpected {node.op_type}")


def _convolution(node: onnx.NodeProto, x: Any, weight: Any, bias: Any) -> Any:
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if any(attributes["pads"]):
        x = tf.keras.layers.ZeroPadding2D(attributes["pads"][0])(x)
    layer = tf.keras.layers.Conv2D(len(weight), weight.shape[2:], attributes["strides"])
    return _set(layer, x, weight.transpose(2, 3, 1, 0), bias)


def _set(layer: Any, x: Any, *weights: Any) -> Any:
    result = layer(x)
    layer.set_weights(list(weights))
    return result


def _images() -> Iterator[list[np.ndarray]]:
    for seed in range(_CALIBRATION_IMAGES):
        yield [classification_scene(seed).model_input().transpose(0, 2, 3, 1)]


def main() -> None:
    """Write the file."""
    converter = tf.lite.TFLiteConverter.from_keras_model(build(onnx.load(FOLDER / "shapes_cnn.onnx")))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = _images
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with TemporaryDirectory() as folder:
        path = Path(folder, "shapes_cnn.tflite")
        path.write_bytes(converter.convert())
        save(ov.Core().read_model(path), "shapes_cnn_tflite")


if __name__ == "__main__":
    main()
