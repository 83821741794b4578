"""Detectors whose scores are more than their last layers: no map that leaves classes, levels or a product out."""

import numpy as np
import openvino as ov
import pytest

from model_zoo_fixtures.testbed.detection_oracle import definition
from model_zoo_fixtures.testbed.small_detectors import GRID, SIDE, Small, run
from xai_insert import Options, insert
from xai_insert.errors import UnsupportedTaskError
from xai_insert.probe.squashed import fall_together

IMAGE = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
EMBEDDING = 12


def unit(net, value, axis):
    return net.op("Div", value, net.op("ReduceL2", value, axes=[axis], keepdims=1))


def cosines(net, feature, vectors):
    """The cosine of every place with every vector, as PyTorch's own function writes it."""
    one = net.op("Unsqueeze", unit(net, feature, 1), net.constant(np.array([1])))
    other = net.constant(vectors[None, :, :, None, None])
    return net.op("ReduceSum", net.op("Mul", one, other), net.constant(np.array([2])), keepdims=0)


def detector(score, levels=2):
    """Rows of boxes and squashed scores; what `score` makes of each level's feature, and the level's number."""
    net, rows, scores = Small(), [], []
    for number in range(levels):
        if number:
            net.coarser()
        scores.append(score(net, number))
        boxes = net.op("Add", net.op("Exp", net.rows(net.head(4))), net.constant(net.centres(GRID >> number)))
        rows.append(net.op("Concat", boxes, net.op("Sigmoid", net.rows(scores[-1])), axis=2))
    net.boxes = net.op("Concat", *rows, axis=1)
    return net.model(net.op("Identity", net.boxes)), scores


def vectors(net, classes):
    made = net.rng.normal(size=(classes, EMBEDDING)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("equation", ["bchw,bkc->bkhw", "bkc,bchw->bkhw", "bchw,kc->bhwk"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_products_with_embeddings_written_as_an_einsum_are_the_scores(equation, scale, kind):
    """As YOLO-World's; normalised embeddings are no classes."""

    def score(net, _):
        embeddings = vectors(net, 5)
        stored = net.constant(embeddings[None] if "bkc" in equation else embeddings)
        operands = [unit(net, net.head(EMBEDDING), 1), stored]
        product = net.op("Einsum", *(operands[::-1] if equation.startswith("bkc") else operands), equation=equation)
        if equation.endswith("k"):
            product = net.op("Transpose", product, perm=[0, 3, 1, 2])
        return net.op("Mul", product, net.constant(np.float32(scale)))

    model, scores = detector(score)
    wanted = definition(run(model, scores, IMAGE), [1, 1], 5)
    options = Options(output_dtype="f32")
    if kind == "onnx":
        (found,) = run(insert(model, options).model, ["saliency_map"], IMAGE)
    else:
        made = insert(ov.Core().read_model(model.SerializeToString()), options).model
        found = ov.Core().compile_model(made, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(IMAGE)["saliency_map"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("scale", [1.0, 8.0, 30.0])
def test_channels_of_which_several_scores_are_made_are_no_classes(classes, scale):
    def score(net, _):
        return net.op("Mul", cosines(net, net.head(EMBEDDING), vectors(net, classes)), net.constant(np.float32(scale)))

    with pytest.raises(UnsupportedTaskError, match=r"several (layers or )?channels"):
        insert(detector(score)[0])


def test_a_level_whose_scores_come_from_elsewhere_is_not_left_out():
    def score(net, number):
        return cosines(net, net.head(EMBEDDING), vectors(net, 5)) if number == 1 else net.head(5)

    with pytest.raises(UnsupportedTaskError, match=r"16 of the 80 rows of scores in"):
        insert(detector(score)[0])


def test_scores_that_are_products_of_scores_are_no_classes():
    """Of a tree, as YOLO9000's: what a child scores is multiplied by what its parent does."""
    net = Small()
    head = net.op("Sigmoid", net.rows(net.head(5)))
    parents, children = (net.pick(head, labels) for labels in ([0, 0, 1], [2, 3, 4]))
    model = net.model(net.op("Concat", net.pick(head, [0, 1]), net.op("Mul", parents, children), axis=2))
    with pytest.raises(UnsupportedTaskError, match="each made of several channels"):
        insert(model)


def softmax(logits):
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


@pytest.mark.parametrize("count", [2, 3, 9])
def test_shares_of_a_softmax_fall_together(count):
    rng = np.random.default_rng(count)
    logits, weights = rng.normal(size=count), rng.normal(size=count)
    first = np.eye(count)[0]
    weights[0], weights[1:] = 1, -np.abs(weights[1:])

    def squash(numbers):
        return 1 / (1 + np.exp(-numbers))

    assert fall_together(softmax(logits), softmax(logits + 12 * first), lambda push: softmax(logits + push * first))
    assert not fall_together(squash(logits), squash(logits + weights), lambda push: squash(logits + push * weights))
