"""The files that an ONNX model names are found in whatever way its bytes are written."""

import os
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.commands import invoke
from xai_insert.cli.insert import main
from xai_insert.cli.worker import run_here
from xai_insert.locations import locations


def number(value, length=1):
    """A number on the wire, in at least `length` bytes."""
    groups = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1, 7 * length - 6), 7)]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def field(key, content, length=1):
    return number(key << 3 | 2) + number(len(content), length) + content


KEY, PLACE = field(1, b"location"), field(2, b"w.data")
ENTRIES = {
    "as everyone writes it": KEY + PLACE,
    "the other way round": PLACE + KEY,
    "long numbers": field(1, b"location", 3) + field(2, b"w.data", 4),
    "an unknown field between": KEY + field(9, b"x") + PLACE,
    "a number between": KEY + number(7 << 3) + number(1 << 60) + PLACE,
    "fixed numbers between": KEY + number(7 << 3 | 5) + bytes(4) + number(8 << 3 | 1) + bytes(8) + PLACE,
    "a group between": KEY + number(7 << 3 | 3) + field(1, b"x") + number(7 << 3 | 4) + PLACE,
    "another key first": field(1, b"offset") + KEY + PLACE,
    "another place first": field(2, b"x") + KEY + PLACE,
    "a long tag": number(1 << 3 | 2, 2) + field(1, b"location")[1:] + PLACE,
}


def wrap(*keys):
    def build(tensor):
        for key in keys:
            tensor = field(key, tensor)
        return tensor

    return build


PLACES = {
    "initializer": wrap(5, 7),
    "attribute": wrap(5, 5, 1, 7),
    "attribute of many": wrap(10, 5, 1, 7),
    "subgraph": wrap(5, 6, 5, 1, 7),
    "subgraphs": wrap(5, 11, 5, 1, 7),
    "sparse initializer": wrap(1, 15, 7),
    "sparse indices": wrap(2, 15, 7),
    "sparse attribute": wrap(1, 22, 5, 1, 7),
    "function": wrap(5, 5, 7, 25),
    "default of a function": wrap(5, 11, 25),
    "training": wrap(5, 1, 20),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_ways_to_write_an_entry(tmp_path, entry):
    content = wrap(5, 7)(field(13, ENTRIES[entry]))
    (tensor,) = onnx.ModelProto.FromString(content).graph.initializer
    assert (tensor.external_data[0].key, tensor.external_data[0].value) == ("location", "w.data"), "what readers see"
    (tmp_path / "m.onnx").write_bytes(content)
    assert "w.data" in locations(tmp_path / "m.onnx")


@pytest.mark.parametrize("place", PLACES)
def test_places_of_tensors(tmp_path, place):
    (tmp_path / "m.onnx").write_bytes(PLACES[place](field(13, PLACE + KEY)))
    assert locations(tmp_path / "m.onnx") == {"w.data"}


def test_only_what_the_model_names(tmp_path):
    """The same bytes in a weight or in the metadata name no file."""
    model = models.classifier(models.CLOSED["global average pool"])
    model.graph.initializer[0].raw_data += KEY + PLACE
    onnx.helper.set_model_props(model, {"a": (KEY + PLACE).decode()})
    onnx.save(model, tmp_path / "m.onnx")
    assert locations(tmp_path / "m.onnx") == set()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6))
def test_damaged_files_name_at_least_what_readers_find(tmp_path_factory, edits):
    content = bytearray(wrap(5, 7)(field(13, KEY + PLACE) + field(13, field(2, b"other") + KEY)) * 3)
    for at, byte in edits:
        content[at % len(content)] = byte
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    path.write_bytes(content)
    try:
        model = onnx.ModelProto.FromString(bytes(content))
    except Exception:  # whatever protobuf raises
        model = onnx.ModelProto()
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    named = {os.fsdecode(entry.value) for entry in entries if entry.key == "location"} - {""}
    assert {name for name in named if "\0" not in name} <= locations(path), "a name with a zero names no file"


@pytest.mark.parametrize("ours", [True, False])
def test_weights_named_the_other_way_round_are_kept(tmp_path, monkeypatch, ours):
    monkeypatch.chdir(tmp_path)
    model = models.classifier(models.CLOSED["global average pool"])
    Path("out").mkdir()
    place = "a.onnx.data" if ours else "out/b.onnx.data"
    onnx.save(model, "b.onnx", save_as_external_data=True, location=place, size_threshold=0)
    content = Path("b.onnx").read_bytes()
    usual, turned = KEY + field(2, place.encode()), field(2, place.encode()) + KEY
    assert usual in content
    Path("b.onnx").write_bytes(content.replace(usual, turned))
    onnx.save(model, "other.onnx")
    before = Path(place).read_bytes()
    goal = "a.onnx" if ours else "out"
    result = invoke(main, *(["b.onnx"] if ours else ["other.onnx", "b.onnx"]), "-o", goal, obj=run_here)
    assert "would overwrite" in result.stderr
    assert result.exit_code in (1, 2)
    assert Path(place).read_bytes() == before


def test_no_file_and_no_model(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "empty.onnx").touch()
    for name in ("pipe.onnx", "empty.onnx", "gone.onnx"):
        assert locations(tmp_path / name) == set()
