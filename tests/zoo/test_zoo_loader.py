"""The loader of the model zoo: the same bytes every time, and models that are alive."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from model_zoo_fixtures import Fixture, fixtures, materialise
from model_zoo_fixtures.catalogue import GRAPHS, MANIFEST
from model_zoo_fixtures.recipes import SMALL, cook, make_recipe

QUICK = ("resnet18_catavgmax.legacy", "squeezenet1_1.dynamo", "mobilenetv3_large_100.ptir")


def _fixture(name: str) -> Fixture:
    (found,) = fixtures(id=name)
    return found


def _run(model: Path, image: np.ndarray) -> np.ndarray:
    if model.suffix == ".onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: image})[0]
    openvino = pytest.importorskip("openvino")
    return openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image)[0]


@pytest.mark.parametrize("name", QUICK)
def test_materialising_twice_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    fixture = _fixture(name)
    materialise(fixture, tmp_path / "first")
    materialise(fixture, tmp_path / "second")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == (["model.onnx"] if fixture.format == "onnx" else ["model.bin", "model.xml"])
    for file_name in names:
        assert (tmp_path / "first" / file_name).read_bytes() == (tmp_path / "second" / file_name).read_bytes()


@pytest.mark.parametrize("name", QUICK)
def test_model_answers_to_its_input(name: str, tmp_path: Path) -> None:
    fixture = _fixture(name)
    model = materialise(fixture, tmp_path)
    images = np.random.default_rng(0).standard_normal((2, *fixture.input_shape), dtype=np.float32)
    first, second = (_run(model, image) for image in images)
    assert first.shape == (1, fixture.expected["classes"])
    assert np.isfinite(first).all()
    assert first.std() > 1e-3
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()


def test_every_graph_is_in_the_manifest_and_every_entry_has_its_graph() -> None:
    listed = {(fixture.path, fixture.exporter) for fixture in fixtures()}
    stored = set()
    for path in GRAPHS.iterdir():
        with tarfile.open(path, "r:xz") as tar:
            stored |= {(path, name.partition("/")[0]) for name in tar.getnames()}
    assert listed == stored


def test_zoo_fits_its_budget() -> None:
    files = [path for path in GRAPHS.parent.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 20_000_000


def test_filters_read_attributes_and_expectations() -> None:
    everything = fixtures()
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    assert len({fixture.id for fixture in everything}) == len(everything)
    assert {fixture.arch for fixture in everything} == set(manifest["architectures"])
    averaged = fixtures(format="ir", collapse={"global_average", "global_max"})
    assert averaged
    assert all(f.format == "ir" and f.expected["collapse"] in {"global_average", "global_max"} for f in averaged)


def test_recipe_keeps_scale_and_centring() -> None:
    weight = np.random.default_rng(1).normal(0, 0.2, (64, 32, 3, 3)).astype(np.float32)
    weight -= weight.mean(axis=1, keepdims=True)
    recipe = make_recipe(weight)
    assert recipe is not None
    assert recipe.centred_axis == 1
    stand_in = cook(recipe, weight.shape, weight.dtype, seed=3, index=5)
    assert stand_in.std() == pytest.approx(weight.std(), rel=0.05)
    assert np.abs(stand_in.mean(axis=1)).max() < 1e-2 * weight.std()
    assert not np.array_equal(stand_in, cook(recipe, weight.shape, weight.dtype, seed=3, index=6))


@pytest.mark.parametrize(
    "kept",
    [
        np.arange(10_000, dtype=np.int64),
        np.random.default_rng(0).standard_normal(SMALL).astype(np.float32),
        np.where(np.random.default_rng(0).random((4, 49, 49)) > 0.5, 0, -100).astype(np.float32),
        np.full(1000, np.inf, dtype=np.float32),
        np.tile(np.linspace(-1, 1, 14, dtype=np.float32), (14, 1)),
    ],
    ids=["integers", "small", "mask", "infinite", "grid"],
)
def test_tensors_that_are_no_weights_are_kept(kept: np.ndarray) -> None:
    assert make_recipe(kept) is None
