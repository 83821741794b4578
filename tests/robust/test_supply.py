"""What comes with the package: pinned by hashes, listed, no more than is needed, and nothing of it calls home."""

import ast
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.testbed import models

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()
MODULES = {"cv2": "opencv-python-headless", "PIL": "pillow", "onnx_ir": "onnx-ir"}
MODULES |= {"onnxruntime_extensions": "onnxruntime-extensions"}


def listed(name):
    """Each package of a list in pyproject.toml with its lower bound."""
    block = re.search(rf"^{name} = \[(.*?)\]$", PROJECT, re.M | re.S)[1]
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', block))


def pins(name):
    return re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.M)


def numbers(version):
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


@pytest.mark.parametrize(("name", "lists"), [("run.txt", ["dependencies"]), ("test.txt", ["dependencies", "test"])])
def test_every_package_is_pinned_by_hashes(name, lists):
    found = pins(name)
    for group in lists:
        for package, least in listed(group).items():
            versions = [version for pinned, version in found if pinned == package]
            assert versions, f"{package} is not pinned: run scripts/lock"
            assert all(numbers(version) >= numbers(least) for version in versions), package
    text = (ROOT / "requirements" / name).read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#")]
    assert len(entries) == len(found)
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text, "the place that they come from is the user's choice"


def test_ci_installs_nothing_else():
    text = (ROOT / ".ci" / "run").read_text()
    assert re.findall("pip install (.*)", text) == [
        "--require-hashes -r requirements/test.txt",
        "--no-deps --no-build-isolation -e .",
    ]
    assert {"hatchling", "editables"} <= {name for name, _ in pins("test.txt")}


def test_the_bill_of_materials_fits_the_pins():
    bom = runpy.run_path(str(ROOT / "scripts" / "bom"))
    assert bom["GOAL"].read_text() == bom["build"](), "run scripts/bom"
    components = json.loads(bom["GOAL"].read_text())["components"]
    assert {(item["name"], item["version"]) for item in components} == {*pins("run.txt"), *pins("test.txt")}
    assert all(item["hashes"] for item in components)


def test_what_is_imported_is_declared_and_the_other_way_round():
    imported = set()
    for path in (ROOT / "xai_insert").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            imported |= {name.split(".")[0] for name in names}
    others = imported - set(sys.stdlib_module_names) - {"xai_insert"}
    optional = {name.lower() for name in re.findall(r'"([\w-]+?)(?:\[.*?\])?>=', PROJECT)} - {*listed("dependencies")}
    found = {MODULES.get(name, name) for name in others}
    assert found - optional == set(listed("dependencies"))


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("xai_insert", set()),
        ("xai_insert.cli.insert", {"click"}),
        ("xai_insert.cli.explain", {"click", "numpy", "cv2", "PIL"}),
    ],
)
def test_importing_needs_little(module, allowed):
    script = f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name.split(".")[0] for name in done.stdout.split()}
    known = {*sys.stdlib_module_names, "xai_insert", "__mp_main__", "openvino_telemetry"}  # the last one is kept out
    packages = {"click", "numpy", "cv2", "PIL", "onnx", "onnx_ir", "onnxruntime", "openvino", "google", "ml_dtypes"}
    assert found & packages <= allowed
    assert {name for name in found - known if not name.startswith("_")} <= packages | {"defusedxml"}


def test_onnx_and_pillow_read_no_more_than_they_are_asked_for():
    """What docs/trust.md says of faults in versions that are allowed."""
    for path in (ROOT / "xai_insert").rglob("*.py"):
        text = path.read_text()
        for call in re.findall(r"onnx\.load\(.*|Image\.open\(.*", text):
            assert "load_external_data=False" in call or "formats=" in call, f"{path}: {call}"


# Nothing calls home: the system ends any process that asks for a socket of the internet, native code included.

SYSTEM_CALLS = {"x86_64": 41, "aarch64": 198}
NO_INTERNET = f"""
import ctypes, struct, sys
def step(code, yes, no, value):
    return struct.pack("HBBI", code, yes, no, value)
LOAD, EQUAL, GIVE = 0x20, 0x15, 0x06
program = b"".join((
    step(LOAD, 0, 0, 0), step(EQUAL, 0, 3, {SYSTEM_CALLS.get(platform.machine(), 0)}),
    step(LOAD, 0, 0, 16), step(EQUAL, 2, 0, 2), step(EQUAL, 1, 0, 10),
    step(GIVE, 0, 0, 0x7FFF0000), step(GIVE, 0, 0, 0x80000000),
))
kept = ctypes.create_string_buffer(program, len(program))
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(kept)), 16)
system = ctypes.CDLL(None, use_errno=True)
if system.prctl(38, 1, 0, 0, 0) or system.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(header)), 0, 0):
    sys.exit(99)
"""
CALLS = {
    "xai-insert": ["good.onnx -o out/a.onnx", "good.xml -o out/a.xml", "good.onnx --dry-run"],
    "xai-explain": ["good.onnx image.png -o out/onnx", "good.xml image.png -o out/ir"],
    "xai-evaluate": ["good.onnx image.png -o out/measured"],
}
COMMANDS = dict(re.findall(r'^([\w-]+) = "([\w.]+:\w+)"$', PROJECT.split("[project.scripts]")[1].split("\n[")[0], re.M))


def isolated(script, *arguments, **settings):
    return subprocess.run(
        [sys.executable, "-c", NO_INTERNET + script, *arguments],
        capture_output=True, text=True, check=False, **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if platform.machine() not in SYSTEM_CALLS or isolated("").returncode:
        pytest.skip("the system does not let a process give up its sockets")
    folder = tmp_path_factory.mktemp("isolated")
    onnx.save(models.classifier(models.CLOSED["global average pool"], batch=1, size=(16, 16)), folder / "good.onnx")
    ov.save_model(ov.Core().read_model(folder / "good.onnx"), folder / "good.xml", compress_to_fp16=False)
    shutil.copy(ROOT / "model_zoo_fixtures" / "shapes" / "images" / "shape_0.png", folder / "image.png")
    (folder / "out").mkdir()
    return folder


@pytest.mark.parametrize("kind", ["AF_INET", "AF_INET6"])
@pytest.mark.parametrize("where", ["", "import os; os.fork() and os.wait(); "])
def test_the_wall_stands(folder, kind, where):
    done = isolated(f"{where}import socket; print('alive', flush=True); socket.socket(socket.{kind}); print('out')")
    assert "alive" in done.stdout
    assert "out" not in done.stdout


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_command_asks_for_a_socket(folder, command):
    module, function = COMMANDS[command].split(":")
    assert command in CALLS, "say how to call it"
    environment = {key: text for key, text in os.environ.items() if key not in ("CI", "ORT_DISABLE_TELEMETRY")}
    for arguments in [*CALLS[command], "--help"]:
        done = isolated(
            f"from {module} import {function}; {function}()", *arguments.split(), cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT), "HOME": str(folder)},
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.returncode} {done.stderr}"
