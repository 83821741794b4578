"""Options that were set and do nothing for the model are refused, with their names and the method in force."""

import json

import onnx
import pytest
from click.testing import CliRunner

from model_zoo_fixtures.testbed import detector_models, instance_models, models
from model_zoo_fixtures.testbed.deployed import SHAPES
from model_zoo_fixtures.testbed.transformer_models import CLOSED, pool
from xai_insert import Options, errors, insert, plan_insertion
from xai_insert.cli.insert import main
from xai_insert.cli.worker import Job, Worker, run_here


def pooled():
    return models.classifier(models.CLOSED["global average pool"])


def vit():
    return models.classifier(CLOSED["plain"], size=(8, 12))


def attention_pool():
    return models.classifier(pool(1), size=(8, 12))


def raw_detector():
    return detector_models.raw_detector()[0]


def segmenter():
    return instance_models.listed("pasted")


def two_stage():
    return onnx.load(SHAPES / "shapes_two_stage.onnx")


UNUSED = [
    (pooled, {"kernel": "point"}, "--kernel", "recipro-cam"),
    (pooled, {"block": 3}, "--block", "recipro-cam"),
    (pooled, {"score_threshold": 0.5}, "--score-threshold", "recipro-cam"),
    (pooled, {"num_classes": 7}, "--num-classes", "recipro-cam"),
    (pooled, {"kernel": "point", "block": 2}, "--block and --kernel", "recipro-cam"),
    (pooled, {"given": ("kernel",)}, "--kernel", "recipro-cam"),
    (vit, {"num_classes": 7}, "--num-classes", "vit-recipro-cam"),
    (vit, {"method": "activation-map", "kernel": "point"}, "--kernel", "activation-map"),
    (attention_pool, {"kernel": "point"}, "--kernel", "recipro-cam"),
    (attention_pool, {"block": 2}, "--block", "recipro-cam"),
    (raw_detector, {"num_classes": 4, "top_k": 3}, "--top-k", "det-class-probability-map"),
    (raw_detector, {"num_classes": 4, "score_threshold": 0.5}, "--score-threshold", "det-class-probability-map"),
    (two_stage, {"num_classes": 7}, "--num-classes", "activation-map"),
    (segmenter, {"kernel": "point"}, "--kernel", "instance-masks"),
    (segmenter, {"top_k": 2}, "--top-k", "instance-masks"),
]


def named(part):
    return getattr(part, "__name__", None) or str(part)


@pytest.mark.parametrize(("make", "options", "flags", "method"), UNUSED, ids=named)
def test_what_does_nothing_is_refused(make, options, flags, method):
    for function in (plan_insertion, insert):
        with pytest.raises(errors.UnusedOptionError) as caught:
            function(make(), Options(**options))
        them = "them" if "and" in flags else "it"
        assert (
            str(caught.value) == f"{flags} would do nothing for this model, whose method is {method}; leave {them} out"
        )


USED = [
    (pooled, {"top_k": 2, "feature_vector": True, "saliency_size": (3, 3), "output_dtype": "f32", "check": False}),
    (pooled, {"kernel": "gaussian", "block": None}),  # no more than the defaults
    (pooled, {"kernel": "point", "given": ()}),
    (vit, {"kernel": "point", "block": 2, "top_k": 2}),
    (vit, {"given": ("kernel", "block", "method")}),
    (raw_detector, {"num_classes": 4}),
    (segmenter, {"num_classes": 9, "score_threshold": 0.3}),
]


@pytest.mark.parametrize(("make", "options"), USED, ids=named)
def test_what_is_used_passes(make, options):
    plan_insertion(make(), Options(**options))


def test_names_that_are_no_options():
    with pytest.raises(ValueError, match="kernle"):
        Options(given=("kernle",))


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], obj=run_here)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    onnx.save(pooled(), tmp_path / "cnn.onnx")
    onnx.save(models.classifier(models.CLOSED["mean"]), tmp_path / "other.onnx")
    onnx.save(vit(), tmp_path / "vit.onnx")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("typed", [["--kernel", "gaussian"], ["--block", "1"], ["--num-classes", "7"]])
def test_a_default_that_was_typed_counts(folder, typed):
    result = call("cnn.onnx", "-o", "new.onnx", *typed)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: cnn.onnx: {typed[0]} would do nothing for this model, whose method is recipro-cam; leave it out\n"
    )
    assert not (folder / "new.onnx").exists()


def test_defaults_that_nobody_typed_do_not(folder):
    assert call("cnn.onnx", "-o", "new.onnx").exit_code == 0


def test_one_of_several_models_that_uses_it_is_enough(folder):
    result = call("cnn.onnx", "vit.onnx", "other.onnx", "-o", "out", "--kernel", "point", "--report", "report.json")
    assert result.exit_code == 0, result.output
    reports = json.loads((folder / "report.json").read_text())["models"]
    assert [report["source"] for report in reports] == ["cnn.onnx", "vit.onnx", "other.onnx"]
    assert not any(report["error"] or report["unused_options"] for report in reports)
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["cnn.onnx", "other.onnx", "vit.onnx"]
    assert result.stderr == ""


def test_several_models_of_which_none_uses_it(folder):
    result = call("cnn.onnx", "other.onnx", "-o", "out", "--kernel", "point", "--report", "report.json")
    assert result.exit_code == 1
    assert result.stderr.count("--kernel would do nothing") == 2
    reports = json.loads((folder / "report.json").read_text())["models"]
    assert [report["unused_options"] for report in reports] == [["kernel"], ["kernel"]]
    assert not list((folder / "out").iterdir())


def test_options_that_different_models_use(folder):
    onnx.save(segmenter(), folder / "segmenter.onnx")
    arguments = ["vit.onnx", "segmenter.onnx", "-o", "out", "--kernel", "point", "--score-threshold", "0.3"]
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert call(*arguments, "--block", "1").exit_code == 0


def test_a_model_that_failed_uses_nothing(folder):
    (folder / "broken.onnx").write_bytes(b"no model")
    result = call("cnn.onnx", "broken.onnx", "-o", "out", "--kernel", "point")
    assert result.exit_code == 1
    assert "--kernel would do nothing" in result.stderr


def test_the_worker_passes_it_on(tmp_path):
    options = Options(given=("kernel",), block=2)
    with Worker(0) as work:
        job = Job(SHAPES / "shapes_cnn.onnx", tmp_path / "out.onnx", options, dry_run=False)
        assert tuple(work(job).unused_options) == ("kernel",)
