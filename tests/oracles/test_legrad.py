"""LeGrad beside central differences by every single weight of attention, in a transformer written in NumPy."""

import numpy as np
import onnx
import onnxruntime
import pytest

from model_zoo_fixtures.testbed import models, oracle
from xai_insert import Options, errors, insert, plan_insertion

KINDS = pytest.mark.parametrize("kind", models.FORMATS)
BATCH, HEADS, WIDTH, BLOCKS, GRID = 2, 2, 8, 3, 3
DEEP = WIDTH // HEADS
STEP = 1e-5


class Transformer:
    """Blocks of attention and a gate, of weights that are the same for the graph and for NumPy."""

    def __init__(self, reads_token):
        rng = np.random.default_rng(4)
        draw = lambda *shape: rng.normal(0, 0.5, shape).astype(np.float32)  # noqa: E731
        self.prefix = int(reads_token)
        self.tokens = GRID * GRID + self.prefix
        self.patch, self.token = draw(WIDTH, 3, 4, 4), draw(1, 1, WIDTH)
        names = ("query", "key", "value", "out", "up")
        self.blocks = [{name: draw(WIDTH, WIDTH) for name in names} for _ in range(BLOCKS)]
        self.scale, self.head = np.abs(draw(WIDTH)) + 0.5, draw(WIDTH, models.CLASSES)

    def graph(self):
        b = models.Builder(batch=BATCH)
        x = b.node("Conv", "image", b.const(self.patch), strides=[4, 4])
        x = b.node("Transpose", b.node("Reshape", x, b.const(np.array([BATCH, WIDTH, -1]))), perm=[0, 2, 1])
        if self.prefix:
            x = b.node("Concat", b.const(np.repeat(self.token, BATCH, axis=0)), x, axis=1)
        for weights in self.blocks:
            split = b.const(np.array([BATCH, self.tokens, HEADS, DEEP]))
            n = self._norm(b, x)
            q, k, v = (
                b.node("Transpose", b.node("Reshape", b.node("MatMul", n, b.const(weights[name])), split), perm=perm)
                for name, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
            )
            shares = b.node("Softmax", b.node("MatMul", q, k), axis=-1)
            o = b.node("Transpose", b.node("MatMul", shares, v), perm=[0, 2, 1, 3])
            o = b.node("Reshape", o, b.const(np.array([BATCH, self.tokens, WIDTH])))
            x = b.node("Add", x, b.node("MatMul", o, b.const(weights["out"])))
            x = b.node("Add", x, b.node("Tanh", b.node("MatMul", self._norm(b, x), b.const(weights["up"]))))
        n = self._norm(b, x)
        read = (
            b.node("Gather", n, b.const(np.array(0)), axis=1)
            if self.prefix
            else b.node("ReduceMean", n, axes=[1], keepdims=0)
        )
        return b.model(b.node("MatMul", read, b.const(self.head)))

    def _norm(self, b, x):
        return b.node("LayerNormalization", x, b.const(self.scale), axis=-1)

    def scores(self, image, read, change=None, growth=1.0):
        """Scores of the head on the output of block `read`.

        `change` is added to the attention of that block, and what it attends multiplied by `growth`.
        """
        norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * self.scale  # noqa: E731
        heads = lambda x: x.reshape(*x.shape[:2], HEADS, DEEP).transpose(0, 2, 1, 3)  # noqa: E731
        patches = image.reshape(len(image), 3, GRID, 4, GRID, 4).transpose(0, 2, 4, 1, 3, 5)
        x = patches.reshape(len(image), GRID * GRID, -1) @ self.patch.reshape(WIDTH, -1).T.astype(float)
        if self.prefix:
            x = np.concatenate([np.broadcast_to(self.token, (len(x), 1, WIDTH)), x], axis=1)
        for index, weights in enumerate(self.blocks[: read + 1]):
            n = norm(x) * (growth if index == read else 1.0)
            q, k, v = (heads(n @ weights[name]) for name in ("query", "key", "value"))
            powers = np.exp(q @ k.swapaxes(2, 3))
            shares = powers / powers.sum(-1, keepdims=True)
            if index == read and change is not None:
                shares = shares + change
            o = (shares @ v).transpose(0, 2, 1, 3).reshape(*x.shape[:2], WIDTH)
            x = x + o @ weights["out"]
            x = x + np.tanh(norm(x) @ weights["up"])
        n = norm(x)
        return (n[:, 0] if self.prefix else n.mean(1)) @ self.head

    def legrad(self, image, classes, blocks):
        """`[K, h, w]` for one image."""
        size = HEADS * self.tokens**2
        changes = STEP * np.eye(size).reshape(size, HEADS, self.tokens, self.tokens)
        total = np.zeros((len(classes), self.tokens))
        for read in range(BLOCKS - blocks, BLOCKS):
            images = np.repeat(image[None].astype(float), size, axis=0)
            both = [self.scores(images, read, sign * changes)[:, classes] for sign in (1, -1)]
            slopes = ((both[0] - both[1]) / (2 * STEP)).T.reshape(-1, HEADS, self.tokens, self.tokens)
            total += np.maximum(slopes, 0).mean(axis=(1, 2))
        return total[:, self.prefix :].reshape(-1, GRID, GRID)


@KINDS
@pytest.mark.parametrize("reads_token", [True, False])
@pytest.mark.parametrize("options", [{}, {"top_k": 2, "block": 1}, {"classes": (4, 0), "block": 2}])
def test_legrad_is_the_derivative_by_every_weight_of_attention(options, reads_token, kind):
    network = Transformer(reads_token)
    image = np.random.default_rng(0).standard_normal((BATCH, 3, models.SIDE, models.SIDE)).astype(np.float32)
    result = insert(models.as_format(network.graph(), kind), Options(method="legrad", output_dtype="f32", **options))
    assert result.report.output_difference < 1e-6
    outputs = oracle.run(result.model, image)
    maps, classes = outputs["saliency_map"], outputs["saliency_classes"]
    scores = network.scores(image.astype(float), BLOCKS - 1)
    if "classes" not in options:
        np.testing.assert_array_equal(classes, np.argsort(-scores, axis=1)[:, : classes.shape[1]])
    for item in range(BATCH):
        wanted = network.legrad(image[item], classes[item], options.get("block", BLOCKS))
        np.testing.assert_allclose(maps[item], wanted, atol=1e-5 * wanted.max())


def test_what_has_no_such_blocks_is_refused():
    with pytest.raises(errors.TargetNotFoundError, match="LeGrad wants a transformer"):
        plan_insertion(models.classifier(models.CLOSED["global average pool"]), Options(method="legrad"))
    with pytest.raises(errors.TargetNotFoundError, match=r"--block 4 wants as many .* found 3"):
        plan_insertion(Transformer(True).graph(), Options(method="legrad", block=4))


@KINDS
def test_hirescam_of_tokens_is_that_of_what_their_norm_gives(kind):
    """A norm takes no notice of the size of a token: by what it reads, derivative times token would be nothing."""
    network = Transformer(True)
    model = models.as_format(network.graph(), kind)
    image = np.random.default_rng(0).standard_normal((BATCH, 3, models.SIDE, models.SIDE)).astype(np.float32)
    result = insert(model, Options(method="hirescam", classes=(1, 3), output_dtype="f32"))
    maps = oracle.run(result.model, image)["saliency_map"]
    for patch in range(GRID * GRID):
        growth = np.eye(network.tokens)[1 + patch][:, None] * STEP
        both = [network.scores(image.astype(float), BLOCKS - 1, growth=1 + sign * growth) for sign in (1, -1)]
        slopes = (both[0] - both[1])[:, [1, 3]] / (2 * STEP)
        np.testing.assert_allclose(maps[:, :, patch // GRID, patch % GRID], slopes, atol=1e-4 * np.abs(maps).max())


def test_a_layer_that_a_norm_alone_reads_is_refused():
    graph = Transformer(True).graph()
    entry = [node.output[0] for node in graph.graph.node if node.op_type == "Add"][2 * BLOCKS - 3]
    with pytest.raises(errors.CheckFailedError, match="right angles"):
        insert(graph, Options(method="hirescam", target_layer=entry))


def test_the_last_norm_stays_merged_with_the_sum_before_it(tmp_path):
    """Where onnxruntime merges them, another reader of the sum would move the predictions in their last digits."""
    plain = Transformer(reads_token=True).graph()
    merged = []
    for model in (plain, insert(plain, Options(method="legrad")).model):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options)
        nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
        merged.append([node.output[0] for node in nodes if node.op_type == "SkipLayerNormalization"])
    assert merged[0]
    assert set(merged[0]) <= set(merged[1])
