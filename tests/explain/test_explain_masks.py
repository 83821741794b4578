"""Drawing masks of one class: their score is the share of the image that they have."""

import json

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.models import FORMATS, Builder
from xai_insert import Options, insert_file
from xai_insert.cli.explain import main as explain

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
