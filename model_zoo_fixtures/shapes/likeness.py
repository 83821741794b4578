"""Models without classes, of the bundled transformer: an embedding of images, and one of images and prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 64
CLASSIFIER = Path(__file__).with_name("shapes_vit.onnx")


def shape_embedding() -> onnx.ModelProto:
    """What the head of the classifier reads, of length one: `image` to `embedding` `[N, D]`."""
    model = onnx.load(CLASSIFIER)
    head = model.graph.node.pop()
    kept = {name for node in model.graph.node for name in node.input}
    for stored in [item for item in model.graph.initializer if item.name not in kept]:
        model.graph.initializer.remove(stored)
    model.graph.node.append(helper.make_node("LpNormalization", [head.input[0]], ["embedding"], axis=1, p=2))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH]))
    return model


def class_directions() -> np.ndarray:
    """What speaks for each class against the others, `[8, D]`, in the place of embeddings of prompts."""
    weights = {item.name: item for item in onnx.load(CLASSIFIER).graph.initializer}
    rows = numpy_helper.to_array(weights["head.weight"])
    centred: np.ndarray = rows - rows.mean(0)
    return centred


def shape_prompts() -> onnx.ModelProto:
    """Images and prompts, as CLIP compares them: `image` and `words` `[P, 1]`, 0 to 7, to `logits_per_image`."""
    model = shape_embedding()
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(class_directions(), "words/table"))
    graph.initializer.append(numpy_helper.from_array(np.float32(100), "scale"))
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "words/axis"))
    graph.node.extend(
        [
            helper.make_node("Gather", ["words/table", "words"], ["words/each"]),
            helper.make_node("Squeeze", ["words/each", "words/axis"], ["words/one"]),
            helper.make_node("LpNormalization", ["words/one"], ["words/embedding"], axis=1, p=2),
            helper.make_node("Transpose", ["words/embedding"], ["words/columns"], perm=[1, 0]),
            helper.make_node("MatMul", ["embedding", "words/columns"], ["product"]),
            helper.make_node("Mul", ["product", "scale"], ["logits_per_image"]),
        ]
    )
    graph.input.append(helper.make_tensor_value_info("words", TensorProto.INT64, ["prompts", 1]))
    graph.output.insert(0, helper.make_tensor_value_info("logits_per_image", TensorProto.FLOAT, ["batch", "prompts"]))
    return model
