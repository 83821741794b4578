"""ViT Recipro-CAM equals its definition, computed outside the tool, for the forms in which transformers come."""

import numpy as np
import onnxruntime as ort
import openvino.opset13 as opset
import pytest
from onnx import TensorProto, helper
from openvino._offline_transformations import apply_moc_transformations

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.projections import PROJECTED, projected
from model_zoo_fixtures.testbed.transformer_models import (
    CLOSED,
    GRID,
    READERS,
    attention,
    bare_block,
    class_and_mean,
    embed,
    mlp,
    norm,
    parted,
    pool,
    pooled_first,
    reading,
    token_labels,
    tokens_first,
    transformer,
    weights,
)
from xai_insert import Options, errors, insert
from xai_insert.graph.einsum import as_product

TOLERANCE = 1e-5


def stacked_attentions(b, x, tokens):
    """Two attentions side by side, each behind a norm of its own, summed as a stack."""
    first = b.const(np.array([0]))
    both = [b.node("Unsqueeze", attention(b, norm(b, x), tokens), first) for _ in range(2)]
    summed = b.node("ReduceSum", b.node("Concat", *both, axis=0), first, keepdims=0)
    x = b.node("Add", x, summed)
    return b.node("Add", x, mlp(b, norm(b, x)))


def streams(b):
    """CaiT with a head that reads patches: class token and patches are joined for the attentions only."""
    first, patches = parted(b, embed(b, 1))
    for _ in range(2):
        joined = norm(b, b.node("Concat", first, patches, axis=1))
        first = b.node("Add", first, attention(b, joined, 25, class_only=True))
        first = b.node("Add", first, mlp(b, norm(b, first)))
    return token_labels(b, norm(b, b.node("Concat", first, patches, axis=1)))


def assert_is_definition(model, batch, prefix, kernel="gaussian", method="vit-recipro-cam", loud=1, first=False):
    options = {"kernel": kernel} if method == "vit-recipro-cam" else {}
    result = insert(model, Options(output_dtype="f32", **options))
    assert result.report.form == "closed form", result.report.reason
    assert result.report.method == method
    assert result.report.target["grid"] == GRID
    x = np.random.default_rng(3).standard_normal((batch, 3, 8, 12)).astype(np.float32) * loud
    outputs = oracle.run(result.model, x)
    parts = oracle.Parts(model, result.report.target["masked"], result.report.logits["name"])
    tokens, beside = parts.features(x), (1, 1) if first else (1,)
    assert {array.shape[::-1][1:] for array in tokens} == {(batch, prefix + 24) if first else (prefix + 24, batch)}
    masked = [[array * row.reshape(-1, *beside) for array in tokens] for row in weights(prefix, kernel)]
    expected = np.stack([parts.head(x, *arrays) for arrays in masked], axis=-1)
    got = outputs["saliency_map"].reshape(expected.shape)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE * np.abs(expected).max())
    assert np.ptp(expected, axis=-1).min() > 1e-4, "the network is degenerate, so the comparison says nothing"
    for name, value in oracle.run(model, x).items():
        np.testing.assert_allclose(outputs[name], value, atol=1e-6 * np.abs(value).max())


@pytest.mark.parametrize(
    "equation",
    ["btnh,bsnh->bnts", "bsnh,btnh->bnts", "bnts,bsnh->btnh", "abc,cd->abd", "abc,bd->acd", "ij,jk->ik", "ij,ik->kj",
     "bn,bnd->bd", "bnd,bd->bn", "...ij,...kj->...ik", "i...j,...jk->...ik"],
)  # fmt: skip
@pytest.mark.parametrize("hidden", ["c", "ab"])
def test_an_einsum_is_a_product_between_transposes(equation, hidden):
    """`hidden` is what an ellipsis stands for."""
    rng = np.random.default_rng(0)
    sizes = dict(zip("abcdhijknst", range(2, 13), strict=True))
    parts = equation.replace("...", hidden).split("->")[0].split(",")
    arrays = [rng.standard_normal([sizes[label] for label in part]) for part in parts]
    found = as_product(equation, [array.ndim for array in arrays])
    left, right = reversed(arrays) if found.swapped else arrays
    left, right = left.transpose(found.left), right.transpose(found.right)
    product = (left[..., None, :] @ right)[..., 0, :] if found.is_row else left @ right
    product = product.transpose(found.result)
    np.testing.assert_allclose(product, np.einsum(equation, *arrays), rtol=1e-12)


@pytest.mark.parametrize(
    "equation",
    ["bij,bjk", "bij->bji", "ii,ij->ij", "bij,bjk,bkl->bil", "b...,b...->b", "bij,bij->bij", "bij,bij->b",
     "abij,jkl->abikl", "bij,bjk->bi", "bij,bkj->bijk", "...ij,jk->...ik"],
)  # fmt: skip
@pytest.mark.parametrize("ranks", [(None, None), (3, 2)])
def test_an_einsum_that_is_more_or_less_than_a_product(equation, ranks):
    assert as_product(equation, ranks) is None


@pytest.mark.parametrize("kind", models.FORMATS)
def test_keys_and_values_that_are_bounded_far_above_noise(kind):
    """What the model says of noise does not tell that they bend where images of 0 to 255 have them."""
    network = transformer(last=bare_block, bound=20)
    assert_is_definition(models.as_format(models.classifier(network, size=(8, 12)), kind), 2, 1, loud=40)


def prefix_of(name):
    return 5 if name == "registers" else 2 if name.startswith("distilled") else 1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", CLOSED)
def test_closed_form_is_the_definition(name, kind, batch):
    model = models.as_format(models.classifier(CLOSED[name], size=(8, 12)), kind)
    assert_is_definition(model, batch, prefix_of(name))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_einsums_of_the_model_stay_as_they_are(kind):
    model = models.as_format(models.classifier(CLOSED["einsum"], size=(8, 12)), kind)
    assert_is_definition(model, 2, 1)
    result = insert(model).model
    if kind == "onnx":
        before, after = ([node.SerializeToString() for node in m.graph.node] for m in (model, result))
        assert set(before) <= set(after)
        assert not any(node.op_type == "Einsum" for node in result.graph.node if node.name.startswith("xai/"))
    else:
        before, after = (
            {n.get_friendly_name(): n.get_type_name() for n in m.get_ordered_ops()} for m in (model, result)
        )
        assert before.items() <= after.items()


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("kernel", ["gaussian", "point"])
@pytest.mark.parametrize("kind", models.FORMATS)
def test_tokens_before_the_images(kind, kernel, batch):
    """The last block was passed over for the tokens before the first one, without a word."""
    model = models.as_format(models.classifier(tokens_first(), size=(8, 12), batch=batch), kind)
    assert_is_definition(model, 1 if batch == 1 else 3, 1, kernel, first=True)


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_mean_of_tokens_before_the_images(kind, batch):
    """`nn.TransformerEncoder` behind a convolution, say: the map before it was explained."""
    model = models.as_format(models.classifier(pooled_first, size=(8, 12), batch=batch), kind)
    assert_is_definition(model, 1 if batch == 1 else 3, 0, kernel="point", method="recipro-cam", first=True)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("method", ["vit-recipro-cam", "legrad", "hirescam", "grad-cam"])
def test_tokens_before_the_images_and_a_head_that_reads_patches(kind, method):
    model = models.as_format(models.classifier(tokens_first(class_and_mean), size=(8, 12)), kind)
    report = insert(model, Options(method=method)).report
    assert report.place == "blocks"
    assert report.target["shape"][0] == 25
    assert report.map_difference < 0.01


@pytest.mark.parametrize(("begin", "begin_mask"), [(0, 0), (-25, 0), (7, 1)])
def test_class_token_taken_by_a_slice_that_drops_its_axis(begin, begin_mask):
    """As OpenVINO reads `tokens[:, 0]` of TensorFlow."""
    model = models.as_format(models.classifier(CLOSED["plain"], size=(8, 12)), "openvino")
    gathers = [node for node in model.get_ordered_ops() if node.get_type_name() == "Gather"]
    (gather,) = (node for node in gathers if node.get_output_partial_shape(0).rank.get_length() == 2)
    row = opset.strided_slice(
        gather.input_value(0), np.array([0, begin]), np.array([0, 99]), np.array([1, 1]),
        begin_mask=[1, begin_mask], end_mask=[1, 0], shrink_axis_mask=[0, 1],
    )  # fmt: skip
    for reader in gather.output(0).get_target_inputs():
        reader.replace_source_output(row.output(0))
    model.validate_nodes_and_infer_types()
    assert_is_definition(model, 2, 1)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", ["plain", "key norm"])
def test_point_kernel(name, kind):
    model = models.as_format(models.classifier(CLOSED[name], size=(8, 12)), kind)
    assert_is_definition(model, 2, 1, kernel="point")


@pytest.mark.parametrize("kind", models.FORMATS)
def test_static_batch_of_one(kind):
    model = models.as_format(models.classifier(CLOSED["fused projection"], size=(8, 12), batch=1), kind)
    assert_is_definition(model, 1, 1)


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("kind", models.FORMATS)
def test_attentions_behind_norms_of_their_own(kind, batch):
    model = models.as_format(models.classifier(transformer(last=stacked_attentions), size=(8, 12), batch=batch), kind)
    report = insert(model).report
    assert report.form == "closed form", report.reason
    assert report.map_difference < TOLERANCE


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_pool_with_a_learned_query_keeps_patches_one_by_one(kind, prefix):
    model = models.as_format(models.classifier(pool(prefix), size=(8, 12)), kind)
    assert_is_definition(model, 3, prefix, kernel="point", method="recipro-cam")


def assert_is_masked_where_it_should(model, hooked, images=2):
    """`hooked` builds the same network with a factor "mask" on what the definition masks."""
    b = models.Builder(size=(8, 12))
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 25, 1])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 12])
    network = b.model(hooked(b), inputs=[image, mask])
    session = ort.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(3).standard_normal((images, 3, 8, 12)).astype(np.float32)
    runs = [session.run(None, {"image": x, "mask": row.reshape(1, -1, 1)})[0] for row in weights(1)]
    expected = np.stack(runs, axis=-1)
    got = oracle.run(model, x)["saliency_map"].reshape(expected.shape)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE * np.abs(expected).max())
    assert np.ptp(expected, axis=-1).min() > 1e-4


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", READERS)
def test_patches_that_the_head_reads_are_masked_on_the_residual_branch_too(name, kind):
    model = models.as_format(models.classifier(reading(*READERS[name]), size=(8, 12)), kind)
    result = insert(model, Options(output_dtype="f32"))
    assert (result.report.method, result.report.form) == ("vit-recipro-cam", "masked runs")
    assert len(result.report.target["masked"]) == 2
    assert_is_masked_where_it_should(result.model, reading(*READERS[name], mask="mask"))


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("form", ["closed", "masked"])
@pytest.mark.parametrize("name", PROJECTED)
def test_what_is_masked_stands_before_the_projections(name, form, kind, batch):
    """Of Einsums, a residual of the block before was masked, without a word; of turned scores, insertion failed."""
    model = models.as_format(models.classifier(projected(name), size=(8, 12), batch=batch), kind)
    result = insert(model, Options(output_dtype="f32", form=form))
    assert result.report.form == {"closed": "closed form", "masked": "masked runs"}[form], result.report.reason
    assert_is_masked_where_it_should(result.model, projected(name, mask="mask"), 1 if batch == 1 else 3)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_residual_branch_that_cannot_be_masked_is_refused(kind):
    model = models.as_format(models.classifier(streams, size=(8, 12)), kind)
    with pytest.raises(errors.TargetNotFoundError, match="no single value holds the tokens at the entry"):
        insert(model, Options(method="vit-recipro-cam"))


def test_a_product_that_transposes_the_key():
    model = models.as_format(models.classifier(CLOSED["plain"], size=(8, 12)), "openvino")
    apply_moc_transformations(model, cf=False)
    assert any(node.get_attributes().get("transpose_b") for node in model.get_ordered_ops())
    assert_is_definition(model, 3, 1)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_an_earlier_block_runs_masked(kind):
    model = models.as_format(models.classifier(CLOSED["plain"], size=(8, 12)), kind)
    report = insert(model, Options(block=2)).report
    assert report.form == "masked runs"
    assert report.map_difference < TOLERANCE


@pytest.mark.parametrize("kind", models.FORMATS)
def test_too_many_blocks_are_refused(kind):
    model = models.as_format(models.classifier(CLOSED["plain"], size=(8, 12)), kind)
    with pytest.raises(errors.TargetNotFoundError, match="found 2 blocks"):
        insert(model, Options(block=3))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_activation_map_leaves_the_prefix_out(kind):
    model = models.as_format(models.classifier(CLOSED["registers"], size=(8, 12)), kind)
    result = insert(model, Options(method="activation-map", output_dtype="f32"))
    x = np.random.default_rng(3).standard_normal((2, 3, 8, 12)).astype(np.float32)
    parts = oracle.Parts(model, result.report.target["name"], result.report.logits["name"])
    expected = parts.feature(x)[:, 5:].mean(-1).reshape(2, *GRID)
    np.testing.assert_allclose(oracle.run(result.model, x)["saliency_map"], expected, atol=1e-5)
