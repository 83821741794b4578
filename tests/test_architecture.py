"""The walls of the house: who may import whom, and how large a file may grow."""

import ast
import importlib
import re
import runpy
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import xai_insert
from xai_insert.form import Form
from xai_insert.formats.onnx import vocabulary as onnx_words
from xai_insert.formats.openvino import vocabulary as openvino_words
from xai_insert.graph import operators, traits
from xai_insert.options import AUTO, METHODS

ROOT = Path(xai_insert.__file__).parent
MODULES = {
    ".".join(("xai_insert", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
FORMAT_LIBRARIES = {"openvino": "openvino", "onnx": "onnx", "onnx_ir": "onnx", "onnxruntime": "onnx"}


@cache
def tree_of(path):
    return ast.parse(path.read_text())


@cache
def imports(path, *, at_import_time=False):
    """Every module imported by a file, lazily as well unless told otherwise."""
    tree = tree_of(path)
    found = set()
    for node in tree.body if at_import_time else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def for_each(items):
    """One test for all files, for to hand out thousands of tests takes longer than to run them; names all that fail."""

    def of(test):
        def run():
            failures = []
            for item in items:
                try:
                    test(item)
                except AssertionError as err:
                    failures.append(f"{item}: {err}")
            assert not failures, "\n".join(failures)

        return run

    return of


@for_each(sorted(MODULES))
def test_format_libraries_stay_in_their_adapter(name):
    if name.startswith("xai_insert.explain"):
        return  # it runs models with either runtime
    for imported in imports(MODULES[name]):
        library = imported.split(".")[0]
        if library in FORMAT_LIBRARIES:
            assert name.startswith(f"xai_insert.formats.{FORMAT_LIBRARIES[library]}"), f"{name} imports {imported}"


MATHS = {"errors", "graph", "layouts", "locate", "methods"}
FACTS = MATHS | {"options", "form", "formats", "feeds", "probe", "tasks"}
LAYERS = {
    "registry": set(),
    "form": set(),
    "layouts": {"errors", "layouts"},
    "options": {"graph.shape", "registry"},
    "graph": {"errors", "graph"},
    "locate": {"errors", "graph", "layouts", "options", "locate"},
    "formats": {"errors", "graph", "feeds", "formats"},
    "methods": MATHS,  # formulas, over `Ops` and `Surgeon`
    "tasks": FACTS,
    "methods.base": FACTS,
    "methods.of_classifier": FACTS,
    "methods.of_classes": FACTS,
    "methods.of_frames": FACTS,
    "methods.of_gradients": FACTS,
    "methods.of_tokens": FACTS,
    "methods.named": FACTS,
    "tasks.choose": FACTS | {"registry"},
}
DECISIONS = (
    "methods.base",
    "methods.of_classes",
    "methods.of_classifier",
    "methods.of_frames",
    "methods.of_gradients",
    "methods.of_tokens",
    "methods.named",
)
"""Rooms of `methods` that stand above the tasks, where formulas stand below them."""


def is_in(name, room):
    return name == room or name.startswith(f"{room}.")


@for_each(sorted(MODULES))
def test_layers_import_downwards_only(name):
    own = name.removeprefix("xai_insert.")
    rooms = [room for room in LAYERS if is_in(own, room)]
    if not rooms:
        return
    room = max(rooms, key=len)
    for imported in imports(MODULES[name]):
        if imported.startswith("xai_insert.") and imported not in ("xai_insert.methods", "xai_insert.tasks"):
            other = imported.removeprefix("xai_insert.")
            assert any(is_in(other, below) for below in LAYERS[room]), f"{name} imports {imported}"
            if room in ("methods", "tasks"):
                assert not any(is_in(other, decision) for decision in DECISIONS), f"{name} imports {imported}"
            if room != "tasks.choose":
                assert not is_in(other, "tasks.choose"), f"{name} imports {imported}"


@for_each(sorted(MODULES))
def test_nobody_decides_by_the_name_of_a_method_or_a_form(name):
    """What differs between methods stands in their own files; a name that is compared is a decision elsewhere.

    But for words that formats have for other things too.
    """
    known = {*METHODS} - {AUTO, "none"} | {form.value for form in Form}
    for node in ast.walk(tree_of(MODULES[name])):
        if isinstance(node, ast.Compare):
            compared = {item.value for item in ast.walk(node) if isinstance(item, ast.Constant)}
            assert not compared & known, f"{name}:{node.lineno}"


@for_each(sorted(name for name in MODULES if is_in(name, "xai_insert.probe")))
def test_probes_hold_no_surgeon(name):
    """They ask a model by running it; what they run to is written for them, and goes again (`written_beside`)."""
    words = {node.id for node in ast.walk(tree_of(MODULES[name])) if isinstance(node, ast.Name)}
    words |= {node.attr for node in ast.walk(tree_of(MODULES[name])) if isinstance(node, ast.Attribute)}
    assert not words & {"Surgeon", "surgeon"}


@for_each(sorted(name for name in MODULES if not is_in(name, "xai_insert.formats")))
def test_nobody_reads_an_attribute_by_its_name(name):
    """The readers of the formats make of each operator one typed record of `graph/operators.py`, with all it needs."""
    tree = tree_of(MODULES[name])
    words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    words |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert not words & {"attrs", "attributes", "get_attributes"}


KNOW_OPERATORS = ("graph", "methods.batching", "methods.gradients")
"""Rooms where rules for single operators stand: families, batching, derivatives."""
KNOW_TYPES = (
    *("formats.onnx.vocabulary", "formats.onnx.reader", "formats.onnx.upgrade"),
    *("formats.onnx.decompositions", "formats.onnx.fused", "formats.onnx.quantised"),
    *("formats.openvino.vocabulary", "formats.openvino.reader"),
)
"""Likewise for the operators of one format: its words, readers, decompositions."""
MOST_OPERATORS = 3


@for_each(sorted(MODULES))
def test_families_of_operators_have_one_home(name):
    """A list of more stands in graph/traits.py under a name that says what its members have in common.

    Of types of one format, in its vocabulary.py.
    """
    if any(is_in(name.removeprefix("xai_insert."), room) for room in (*KNOW_OPERATORS, *KNOW_TYPES)):
        return
    for node in ast.walk(tree_of(MODULES[name])):
        listed = sorted(filter(is_operator, members(node)))
        assert len(listed) <= MOST_OPERATORS, f"{name}:{node.lineno}: {', '.join(listed)}"


FAMILIES = {item for module in (traits, operators) for item in vars(module) if item[0].isupper()}
TYPES = {*onnx_words.OPS, *openvino_words.OPS, *onnx_words.WEIGHTED, *onnx_words.WITHOUT_KERNEL, *traits.WITH_BODIES}


def is_operator(word):
    kind, _, rest = word.rpartition(".")
    return kind == "Op" or rest in (TYPES if kind == "type" else FAMILIES)


def members(node):
    """What a list, a set, the keys of a mapping or a union of these name, words of the source with `type.` before."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return members(node.left) | members(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("frozenset", "set"):
        return {word for item in node.args for word in members(item)}
    elements = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
    words = {f"type.{item.value}" for item in elements if isinstance(item, ast.Constant)}
    return words | {ast.unparse(item) for item in elements if isinstance(item, (ast.Name, ast.Attribute))}


def test_a_name_of_a_class_stands_for_one_thing():
    """But for what both formats have, in files of the same names, and for what stays within one file."""
    homes = defaultdict(set)
    for name, path in MODULES.items():
        room = re.sub(r"^xai_insert\.formats\.\w+.*", "xai_insert.formats", name)
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(room)
    assert not {name: sorted(rooms) for name, rooms in homes.items() if len(rooms) > 1}


MOST_PATHS = 19
"""Of a function, as radon counts them: the limit between what is read once and what is read twice."""
MEAN_PATHS = 4


def paths(function):
    """Cyclomatic complexity: one, and one for each place where a function may go on in two ways."""
    count, stack = 1, list(ast.iter_child_nodes(function))
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef):
            continue  # it is counted by itself
        stack += ast.iter_child_nodes(node)
        if isinstance(node, (ast.If, ast.IfExp, ast.Assert)):
            count += 1
        elif isinstance(node, (ast.For, ast.While)):
            count += 1 + bool(node.orelse)
        elif isinstance(node, ast.Try):
            count += len(node.handlers) + bool(node.orelse)
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
    return count


@for_each(sorted(MODULES))
def test_functions_stay_readable(name):
    for node in ast.walk(tree_of(MODULES[name])):
        if isinstance(node, ast.FunctionDef):
            assert paths(node) <= MOST_PATHS, f"{name}.{node.name}: {paths(node)}; split it along what it asks"


def blocks(node):
    """The paths of every function, method and class in it; a class counts its methods, by their mean."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield paths(child)
        elif isinstance(child, ast.ClassDef):
            own = list(blocks(child))
            yield from own
            yield (paths(child) + sum(own)) // max(len(own), 1) + (len(own) > 1)
        else:
            yield from blocks(child)


def test_functions_are_simple_on_average():
    """What `radon cc -a xai_insert` says; most that is above it holds two jobs under one name."""
    counted = [count for path in MODULES.values() for count in blocks(tree_of(path))]
    assert sum(counted) < MEAN_PATHS * len(counted), f"{sum(counted) / len(counted):.3f} paths on average"


def test_no_import_cycle():
    graph = {name: {i for i in imports(path, at_import_time=True) if i in MODULES} for name, path in MODULES.items()}
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for imported in graph[name] - {"xai_insert"}:
                visit(imported, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_importing_loads_no_format_library():
    import subprocess
    import sys

    script = "import sys, xai_insert; print(sorted({m.split('.')[0] for m in sys.modules} & {%s}))"
    names = ", ".join(map(repr, [*FORMAT_LIBRARIES, "cv2"]))
    printed = subprocess.run([sys.executable, "-c", script % names], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_the_command_answers_without_numpy(flag):
    """Importing it takes longer than all else together."""
    import subprocess
    import sys

    script = f"""
import sys
from xai_insert.cli.insert import main
main([{flag!r}], standalone_mode=False)
print(sorted({{m.split('.')[0] for m in sys.modules}} & {{'numpy', 'openvino', 'onnx', 'onnx_ir', 'onnxruntime'}}))
"""
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines()[-1] == "[]"


def test_names_that_are_imported_later():
    assert set(xai_insert.__all__) <= set(dir(xai_insert))
    assert xai_insert.insert is importlib.import_module("xai_insert.pipeline").insert
    with pytest.raises(AttributeError, match="no attribute 'insrt'"):
        _ = xai_insert.insrt


HOUSE = ROOT.parent


def test_every_room_stands_above_what_it_imports():
    """A circle of rooms has no floors, and a room that the picture of docs/architecture.md lacks has no words there."""
    script = runpy.run_path(str(HOUSE / "scripts" / "floors"))
    picture = (HOUSE / "docs" / "images" / "floors.svg").read_text(encoding="utf-8")
    for room in script["floors"](script["rooms"]()):
        assert room in script["SAYS"], f"{room}: say in scripts/floors what it is, or which room it belongs to"
        assert script["SAYS"][room] in picture, f"{room}: run scripts/floors"


FLOORS = {"xai_insert": 0, "model_zoo_fixtures": 1, "tests": 2, "benchmarks": 2}
"""Packages of the repository. Each imports itself and those below: neither tests nor benchmarks import the other."""
STILL = {"oracles/test_forms"}
"""Files that still import what is to move into model_zoo_fixtures/testbed, once the work on forms is done."""
OUTSIDE = [
    path.relative_to(HOUSE)
    for name in FLOORS
    for path in sorted((HOUSE / name).rglob("*.py"))
    if f"{path.parent.name}/{path.stem}" not in STILL
]
TESTS = {"unit", "nets", "oracles", "promises", "zoo", "robust", "explain"}
BENCHMARKS = {"exactness", "faithfulness", "cost", "robustness", "lib"}


@for_each([path for folder in (*FLOORS, "scripts") for path in sorted((HOUSE / folder).rglob("*.py"))])
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@for_each(OUTSIDE)
def test_packages_import_downwards_only(path):
    for imported in imports(HOUSE / path):
        package = imported.split(".")[0]
        if package in FLOORS and package != path.parts[0]:
            assert FLOORS[package] < FLOORS[path.parts[0]], imported


@pytest.mark.parametrize("path", [path for path in OUTSIDE if path.parts[0] == "benchmarks"], ids=str)
def test_a_room_of_benchmarks_imports_itself_and_lib(path):
    for imported in imports(HOUSE / path):
        if imported.startswith("benchmarks."):
            assert imported.split(".")[1] in {path.parts[1], "lib"}, imported


@pytest.mark.parametrize("path", [path for path in OUTSIDE if path.parts[0] == "tests"], ids=str)
def test_tests_stand_in_their_rooms_by_themselves(path):
    """What two of them need stands in model_zoo_fixtures/testbed, so that each can be read, moved and deleted alone."""
    shared = {"tests.zoo.zoo_table"} if "zoo" in path.parts or path.name == "conftest.py" else set()
    assert {i for i in imports(HOUSE / path) if i.count(".") > 1 and i.startswith("tests.")} <= shared
    if path.name.startswith("test_") and path.name != "test_architecture.py":
        assert len(path.parts) == 3


@for_each(OUTSIDE)
def test_files_find_the_repository_where_it_is(path):
    for count in re.findall(r"Path\(__file__\)(?:\.resolve\(\))?\.parents\[(\d)\]", (HOUSE / path).read_text()):
        above = path.parts[: len(path.parts) - 1 - int(count)]
        assert above in ((), ("model_zoo_fixtures",))  # the repository, or the fixtures


def test_every_room_is_one_of_these():
    for package, rooms in (("tests", TESTS), ("benchmarks", BENCHMARKS)):
        assert {path.parent.name for path in HOUSE.glob(f"{package}/*/__init__.py")} == rooms
        for room in rooms:
            assert ast.get_docstring(ast.parse((HOUSE / package / room / "__init__.py").read_text()))


@pytest.mark.parametrize("path", sorted(HOUSE.glob("benchmarks/*/*.py")), ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_benchmarks_fit_the_package(path):
    """They are run by hand, so nothing else would notice a name that has moved; packages for export may be missing."""
    try:
        importlib.import_module(f"benchmarks.{path.parent.name}.{path.stem}")
    except ModuleNotFoundError as err:
        if str(err.name).split(".")[0] in FLOORS:
            raise
        pytest.skip(f"{err.name} is not installed")
