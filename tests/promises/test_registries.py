"""Methods, tasks and options: each stands in one place, and what is said elsewhere agrees with it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model_zoo_fixtures.testbed import detector_models, instance_models, models
from model_zoo_fixtures.testbed.transformer_models import CLOSED as TOKENS
from xai_insert import Options, errors, insert, plan_insertion
from xai_insert.cli.insert import main
from xai_insert.explain.detections import Facts
from xai_insert.form import Form
from xai_insert.formats.backend import load
from xai_insert.layouts.record import Layout
from xai_insert.options import DECIDING, EVERY_METHOD, METHODS, OPTIONS, flag
from xai_insert.registry import METHODS_FOLDER, TASKS_FOLDER, names
from xai_insert.report import REPORT_VERSION, Report, to_json
from xai_insert.tasks.choose import make_plan, method, task

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/methods"
SCHEMA = json.loads((ROOT / "docs/report.schema.json").read_text())
NAMES = names(METHODS_FOLDER)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_what_it_is(name):
    item = method(name)
    assert item.summary
    assert set(item.tasks) <= set(names(TASKS_FOLDER))
    assert item.options <= set(OPTIONS) - EVERY_METHOD
    assert set(item.excludes) <= set(OPTIONS)
    assert (PAGES / item.page).exists()
    assert f"({item.page})" in (PAGES / "README.md").read_text(), f"docs/methods/README.md does not list {item.page}"
    told = re.sub(r"[\s-]", "", (ROOT / "README.md").read_text()).lower()
    assert name.replace("-", "") in told, f"README.md does not name {name}"


@pytest.mark.parametrize("name", names(TASKS_FOLDER))
def test_a_task_has_a_place_in_the_walk(name):
    assert task(name).takes <= DECIDING
    assert len({task(other).rank for other in names(TASKS_FOLDER)}) == len(names(TASKS_FOLDER))
    assert any(name in method(other).tasks for other in NAMES)


def test_every_option_is_used_by_every_method_or_named_by_one():
    named = frozenset().union(*(method(name).options for name in NAMES))
    assert named | EVERY_METHOD == set(OPTIONS)


def test_the_command_line_has_every_option_with_its_default():
    known = {item.name: item for item in main.params}
    for name, option in OPTIONS.items():
        assert known[name].opts == [flag(name)]
        assert known[name].help == option.help
    context = main.make_context("xai-insert", ["model.onnx", "-o", "new.onnx"])
    values = {name: context.params[name] for name in OPTIONS}
    values |= {"check": not values["check"], "input_shapes": dict(values["input_shapes"])}
    assert Options(**values) == Options()


MADE = {
    "cnn": (lambda: models.classifier(models.CLOSED["global average pool"]), Options()),
    "mean": (lambda: models.classifier(models.CLOSED["mean"]), Options(method="activation-map")),
    "vit": (lambda: models.classifier(TOKENS["plain"], size=(8, 12)), Options()),
    "vit mean": (lambda: models.classifier(TOKENS["plain"], size=(8, 12)), Options(method="activation-map")),
    "detector": (lambda: detector_models.raw_detector()[0], Options(num_classes=4)),
    "segmenter": (lambda: instance_models.listed("pasted"), Options()),
}


@pytest.mark.parametrize("name", MADE)
def test_a_plan_uses_no_more_than_its_method_says(name):
    make, options = MADE[name]
    loaded = load(make(), {})
    plan = make_plan(loaded, loaded.view(), options)
    assert plan.uses() <= method(plan.method).options


def test_names_come_without_importing_the_methods():
    script = "import sys; from xai_insert.options import METHODS; print([m for m in sys.modules if 'named.' in m])"
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[]\n"
    assert {"auto", *NAMES} == set(METHODS)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (Options(method="instance-masks", target_layer="Relu_4"), "--target-layer is for other models than --method"),
        (Options(per_box=True, target_layer="Relu_4"), "--per-box is for detectors"),
        (Options(per_box=True, top_k=2), "--per-box is for detectors"),
        (Options(method="recipro-cam", per_box=True), "--per-box is for detectors"),
        (Options(method="activation-map", top_k=2), "leave out --top-k"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused_whatever_the_model(options, reason):
    with pytest.raises(errors.UnsupportedTaskError, match=reason):
        plan_insertion(models.classifier(models.CLOSED["global average pool"]), options)


def fits(value, schema):
    """A hand-made validator of the few words that the schema uses."""
    if "anyOf" in schema:
        return any(fits(value, item) for item in schema["anyOf"])
    if "const" in schema:
        return value == schema["const"]
    kinds = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
        "null": type(None),
    }  # fmt: skip
    wanted = schema.get("type")
    if wanted and not isinstance(
        value, tuple(kinds[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted))
    ):
        return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        rest = schema.get("additionalProperties", True)
        if set(schema.get("required", ())) - set(value) or (rest is False and set(value) - set(known)):
            return False
        return all(fits(item, known.get(key, {} if isinstance(rest, bool) else rest)) for key, item in value.items())
    if isinstance(value, list):
        return all(fits(item, schema.get("items", {})) for item in value)
    return True


REPORTS = {
    "closed form": lambda: insert(models.classifier(models.CLOSED["global average pool"])).report,
    "masked runs": lambda: insert(models.classifier(models.MASKED["attention"])).report,
    "instances": lambda: insert(instance_models.listed("pasted")).report,
    "failed": lambda: Report("model.onnx", error="no", unused_options=("block",)),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_fit_the_schema(name):
    document = json.loads(to_json([REPORTS[name]()]))
    assert fits(document, SCHEMA)
    assert document["models"][0]["version"] == REPORT_VERSION
    assert not fits({"models": [{**document["models"][0], "target": 3}]}, SCHEMA)
    try:
        import jsonschema
    except ModuleNotFoundError:
        return
    jsonschema.validate(document, SCHEMA)


def test_the_schema_names_every_field():
    described = SCHEMA["properties"]["models"]["items"]
    assert set(described["properties"]) == set(Report("x").as_dict()) == set(described["required"])
    assert described["properties"]["version"]["const"] == REPORT_VERSION


OLD = {"form": "masks pasted from boxes", "boxes": "centres in shares of the image"}
NEW = {"form": Form.PASTED.value, "masks": "pasted", "boxes": "anything", "box_format": "centres-shares"}


@pytest.mark.parametrize("about", [OLD, NEW], ids=["before", "now"])
def test_files_of_older_versions_are_read_alike(about):
    facts = Facts.of(Layout.read(about, outputs=4), (32, 32), 3, 0)
    assert facts.pastes_masks
    assert facts.boxes == "centres-shares"


def test_the_page_on_additions_names_files_that_exist():
    text = (ROOT / "docs/architecture.md").read_text()
    for path in re.findall(r"`((?:xai_insert|docs|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
