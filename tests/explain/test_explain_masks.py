"""Drawing masks of one class, whose score is their share of the image; and models that tell their best class alone."""

import json

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.models import CHANNELS, FORMATS, Builder
from xai_insert import Options, insert_file
from xai_insert.cli.explain import main as explain
from xai_insert.explain.explainer import Explainer

MASK = Options(method="class-score-map")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("is_probability", [False, True], ids=["scores", "probabilities"])
def test_the_score_of_a_mask_is_its_share(is_probability, kind, tmp_path):
    b = Builder(size=(16, 24))
    scaled = b.node("Mul", b.node("Sub", "image", b.const(np.float32(128))), b.const(np.float32(0.01)))
    scores = b.node("Conv", scaled, b.weight(1, 3, 1, 1))
    mask = b.node("Sigmoid", scores) if is_probability else scores
    model = b.model(mask)
    onnx.save(model, tmp_path / "plain.onnx")
    file = tmp_path / f"new.{'onnx' if kind == 'onnx' else 'xml'}"
    insert_file(tmp_path / "plain.onnx", file, MASK)
    picture = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    done = CliRunner().invoke(explain, [str(file), str(tmp_path / "a.png"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    (record,) = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    found = oracle.run(model, picture.transpose(2, 0, 1)[None].astype(np.float32))[mask]
    share = (found > (0.5 if is_probability else 0)).mean()
    assert 0 < share < 1
    assert record["maps"][0]["score"] == pytest.approx(share, abs=1e-6)


def test_a_best_class_alone_is_no_score(tmp_path):
    b = Builder()
    scores = b.node("Softmax", b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), CHANNELS))
    b.nodes.append(onnx.helper.make_node("TopK", [scores, b.const(np.array([1]))], ["confidence", "label"]))
    model = b.model("confidence", "label")
    model.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, tmp_path / "plain.onnx")
    insert_file(tmp_path / "plain.onnx", tmp_path / "new.onnx")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((12, 12, 3), np.uint8))
    done = CliRunner().invoke(explain, [str(tmp_path / "new.onnx"), str(tmp_path / "a.png"), "-o", str(tmp_path / "o")])
    assert done.exit_code == 1
    assert "its best class alone has to give the scores as well" in done.output


@pytest.mark.parametrize("kind", FORMATS)
def test_reasons_of_regions_are_each_of_their_own_scale(kind, tmp_path):
    """They are means over regions: on one scale, those of a large region would be as good as empty."""
    b = Builder(size=(16, 24))
    scores = b.node("Conv", b.backbone(), b.weight(3, CHANNELS, 1, 1))
    onnx.save(b.model(b.node("Softmax", scores, axis=1)), tmp_path / "plain.onnx")
    file = tmp_path / f"new.{'onnx' if kind == 'onnx' else 'xml'}"
    insert_file(tmp_path / "plain.onnx", file, Options(method="seg-recipro-cam", output_dtype="f32", check=False))
    picture = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)
    (found,) = Explainer(file, mean=128, scale=60).explain([picture])
    drawn = [item for item in found.found.scaled(found.found.chosen, "shared") if np.ptp(item.values)]
    assert len(drawn) > 1
    for item in drawn:
        assert item.span == pytest.approx((item.values.min(), item.values.max()))
        assert not item.is_shared
