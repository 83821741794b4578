"""What docs/trust.md promises to keep: a name that goes from here, or changes its meaning, needs a warning first."""

import dataclasses
import inspect

import onnx
import pytest
from click.testing import CliRunner

import xai_insert
from model_zoo_fixtures.testbed import detector_models, instance_models, models
from xai_insert import Options, Report, errors, insert
from xai_insert.cli.explain import main as explain_command
from xai_insert.cli.insert import main as insert_command

OPTIONS = {
    "method": "auto", "target_layer": None, "output": None, "kernel": "gaussian", "block": None, "output_dtype": "u8",
    "classes": None, "fuse": False,
    "saliency_size": None, "num_classes": None, "score_threshold": None, "feature_vector": False, "range": False,
    "top_k": None,
    "per_box": False, "form": "auto", "mask_batch": None, "input_shapes": {}, "check": True,
    "check_in": "own", "given": None,
    "input": None, "class_embeddings": None, "reference": None,
}  # fmt: skip
REPORT = {
    "source", "output", "format", "task", "method", "form", "reason", "logits", "target", "heads", "background",
    "beside", "per_box", "saliency_map", "mflops", "cheaper", "check", "output_difference", "map_difference",
    "place", "bytes_before", "bytes_after",
    "quantiser_ignored_scope", "versions", "seconds", "error", "unused_options", "lines", "verification", "version",
}  # fmt: skip
ERRORS = {
    "XaiInsertError": Exception, "ModelFileError": errors.XaiInsertError, "AlreadyInsertedError": errors.XaiInsertError,
    "NotInsertedError": errors.XaiInsertError,
    "NotVisionModelError": errors.XaiInsertError, "UnsupportedTaskError": errors.XaiInsertError,
    "AmbiguousModelError": errors.XaiInsertError, "TargetNotFoundError": errors.XaiInsertError,
    "UnknownNameError": errors.XaiInsertError, "ShapeUnknownError": errors.XaiInsertError,
    "CheckFailedError": errors.XaiInsertError, "TimeLimitError": errors.CheckFailedError,
    "MisplacedMapError": errors.XaiInsertError,
    "DefinitionError": errors.CheckFailedError, "CannotFreeBatchError": errors.XaiInsertError,
    "NoDerivativeError": errors.XaiInsertError,
    "UnusedOptionError": errors.XaiInsertError,
}  # fmt: skip
INSERT_FLAGS = {
    "models", "-o", "--output-model", "--method", "--target-layer", "--output", "--output-dtype", "--kernel", "--block",
    "--saliency-size", "--num-classes", "--score-threshold", "--feature-vector", "--range", "--top-k", "--form",
    "--mask-batch", "--per-box", "--input-shape", "--dry-run", "--report", "--no-check", "--time-limit", "--jobs",
    "--check-in", "-q", "--quiet", "-v", "--verbose", "--version", "--verify",
    "--strip", "--layers", "--classes", "--fuse", "--skip-existing",
    "--input", "--class-embeddings", "--reference",
}  # fmt: skip
EXPLAIN_FLAGS = {
    "model", "images", "-o", "--output", "--classes", "--threshold", "--labels", "--opacity", "--colormap",
    "--background", "--map-scale", "--raw", "--beside",
    "--frames", "--overwrite", "--runtime", "--device", "--mean", "--scale", "--channels", "--layout", "--resize",
    "--input-size", "--format", "--shard", "--engine", "--address", "--feed", "-q", "--quiet", "--version",
}  # fmt: skip
COMMON_METADATA = {"version", "task", "method", "form", "quantiser_ignored_scope", "target", "classes"}


def test_names():
    assert set(xai_insert.__all__) == {
        "Explainer", "Explanation", "InsertResult", "Options", "Report", "__version__", "errors", "insert",
        "insert_file", "overlay", "plan_insertion",
    }  # fmt: skip
    assert all(getattr(xai_insert, name) is not None for name in xai_insert.__all__)
    assert [field.name for field in dataclasses.fields(xai_insert.InsertResult)] == ["model", "report"]


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        ("insert", ["model", "options"]),
        ("insert_file", ["source", "output", "options", "passed"]),
        ("plan_insertion", ["model", "options", "output", "passed"]),
    ],
)
def test_parameters(function, parameters):
    assert list(inspect.signature(getattr(xai_insert, function)).parameters) == parameters


def test_options_and_their_defaults():
    assert dataclasses.asdict(Options()) == OPTIONS


def test_fields_of_the_report():
    assert set(Report("model.onnx").as_dict()) == REPORT


def test_errors_and_what_they_are_caught_as():
    found = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    assert {name: kind.__mro__[1] for name, kind in found.items()} == ERRORS


@pytest.mark.parametrize(
    ("command", "flags"), [(insert_command, INSERT_FLAGS), (explain_command, EXPLAIN_FLAGS)], ids=["insert", "explain"]
)
def test_flags(command, flags):
    assert {flag for parameter in command.params for flag in parameter.opts} == flags


def test_exit_codes(tmp_path):
    (tmp_path / "empty.onnx").write_bytes(b"")
    onnx.save(models.classifier(models.CLOSED["mean"]), tmp_path / "good.onnx")
    codes = [
        CliRunner().invoke(insert_command, [str(tmp_path / name), "-o", str(tmp_path / "out.onnx"), *more]).exit_code
        for name, more in (("good.onnx", []), ("empty.onnx", []), ("good.onnx", ["--no-such-option"]))
    ]
    assert codes == [0, 1, 2]


def entries(model, **options):
    inserted = insert(model, Options(**options)).model
    names = [output.name for output in inserted.graph.output[len(model.graph.output) :]]
    return names, {entry.key.removeprefix("xai_insert.") for entry in inserted.metadata_props}


def test_names_in_the_model():
    classifier = models.classifier(models.CLOSED["mean"])
    assert entries(classifier, feature_vector=True) == (
        ["saliency_map", "feature_vector"],
        COMMON_METADATA | {"grid", "options"},
    )
    assert entries(classifier, top_k=2) == (
        ["saliency_map", "saliency_classes"],
        COMMON_METADATA | {"grid", "top_k", "options"},
    )
    detector, _ = detector_models.raw_detector()
    names, metadata = entries(detector, num_classes=4)
    assert names == ["saliency_map"]
    assert metadata == COMMON_METADATA | {"levels", "background", "options"}
    boxes = {"anchors_first": False, "exclusive": False, "decoded": "xyxy", "reported": "xyxy", "report": "rows"}
    names, metadata = entries(detector_models.Net(**boxes).model, per_box=True)
    assert names == ["saliency_map", "saliency_map_per_box"]
    reported = {"first_label", "per_box", "per_box_first_label"}
    assert metadata == COMMON_METADATA | {"levels", "background", "options"} | reported
    names, metadata = entries(instance_models.listed("boxes"))
    assert names == ["saliency_map"]
    assert metadata == COMMON_METADATA | {"grid", "boxes", "box_format", "masks"}
