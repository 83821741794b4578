"""The work that a report names, counted by hand, and what it says of the maps of the best classes alone."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_zoo_fixtures.testbed.models import FORMATS, as_format
from xai_insert import Options, plan_insertion

CHANNELS, SIDE = 6, 8
CELLS = SIDE * SIDE
SCALE = 2 * CHANNELS * CELLS  # each element of the features once, by a factor


def classifier(classes, batch=1):
    """A convolution, a mean and a linear layer."""
    rng = np.random.default_rng(0)
    stored = {"kernel": (CHANNELS, 3, 3, 3), "weight": (classes, CHANNELS), "bias": (classes,)}
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["x"], pads=[1] * 4),
        helper.make_node("Relu", ["x"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(rng.normal(size=sizes).astype(np.float32), name) for name, sizes in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", FORMATS)
def test_work_is_one_product_for_each_class_and_cell(kind, batch):
    def work(count, **options):
        return plan_insertion(as_format(classifier(count, batch), kind), Options(**options))

    every = work(60)
    assert every.mflops == pytest.approx((2 * CELLS * CHANNELS * 60 + SCALE) / 1e6, abs=1e-3)
    few = (2 * CELLS * CHANNELS * 5 + SCALE) / 1e6
    assert every.cheaper["mflops"] == pytest.approx(few, abs=1e-3)
    assert (every.cheaper["option"], every.cheaper["bytes_per_image"]) == ("--top-k 5", 5 * CELLS)
    assert "cheaper  --top-k 5: 0.0 MFLOPs, 320 bytes per image" in every.text()
    chosen = work(60, top_k=5)
    assert chosen.mflops == pytest.approx(few, abs=1e-3)
    assert chosen.saliency_map["bytes_per_image"] == 5 * CELLS
    assert not chosen.cheaper
    assert not work(40).cheaper
    assert not work(60, classes=(3, 8)).cheaper
    masked = work(60, form="masked")
    assert masked.cheaper["mflops"] == masked.mflops
