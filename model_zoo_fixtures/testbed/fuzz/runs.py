"""Calls of `xai-explain` with damaged pictures, labels, metadata, or results of an earlier run."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx

from model_zoo_fixtures.testbed.fuzz.mutations import FLOATS, SIZES, WORDS, damage_bytes

_OPTIONS: tuple[tuple[str, ...], ...] = (
    (), (), (), ("--classes", "all"), ("--classes", "top2"), ("--raw", "npy"), ("--raw", "none"), ("--overwrite",),
    ("--resize", "letterbox"), ("--resize", "crop"), ("--resize", "corner"), ("--layout", "NHWC"),
    ("--channels", "bgr"), ("--scale", "255"), ("--mean", "1,2,3"), ("--mean", "nan"), ("--scale", "1e-45"),
    ("--threshold", "0"), ("--input-size", "9x7"), ("--opacity", "0"), ("--classes", "0,4"),
)  # fmt: skip
_ODD = (
    None, True, "", [], {}, [[]], {"a": 1}, *SIZES, *FLOATS, *WORDS, "../victim", "images/../../victim", "\ud800",
)  # fmt: skip
_RESULTS = (
    "index.html", "run.js", "records.js", "results.jsonl", "images", "overlays", "maps", "data", "images/png.jpg",
    ".results.jsonl.part",
)  # fmt: skip


def damaged_run(
    runs: Sequence[Path], rng: random.Random, folder: Path
) -> tuple[str, Path, Path, dict[str, Any], tuple[str, ...]]:
    """Write one call's files into `folder`: what was damaged, its model, its output, no options, and the arguments."""
    seed = rng.choice(runs)
    source, output, pictures = folder / f"model{seed.suffix}", folder / "out", folder / "pictures"
    for suffix in (".onnx", ".xml", ".bin"):
        if seed.suffix == ".onnx" if suffix == ".onnx" else seed.suffix == ".xml":
            shutil.copy(seed.with_suffix(suffix), source.with_suffix(suffix))
    pictures.mkdir()
    known = sorted((seed.parent / "pictures").iterdir())
    for path in rng.sample(known, 2):
        shutil.copy(path, pictures)
    shutil.copy(seed.parent / "labels.txt", folder)
    (folder / "victim").write_text("mine")
    arguments = [str(source), str(pictures), "-o", str(output), *rng.choice(_OPTIONS)]
    damages = rng.sample(sorted(_DAMAGES), rng.choice((1, 1, 2)))
    for name in damages:
        arguments += _DAMAGES[name](seed, folder, rng)
    return f"{seed.name}, {' and '.join(damages)}", source, output, {}, tuple(arguments)


def _pictures(seed: Path, folder: Path, rng: random.Random) -> list[str]:
    others = sorted((seed.parent / "pictures").iterdir())
    for path in sorted((folder / "pictures").iterdir()):
        if rng.random() < 0.8:
            path.write_bytes(damage_bytes(path.read_bytes(), rng, rng.choice(others).read_bytes()))
        if rng.random() < 0.2:
            path.rename(path.with_suffix(rng.choice((".png", ".jpg", ".tiff", ".webp"))))
    match rng.randrange(12):
        case 0:
            os.mkfifo(folder / "pictures" / "pipe.png")
        case 1:
            (folder / "pictures" / "loop.png").symlink_to("loop.png")
        case 2:
            (folder / "pictures" / "zero.png").symlink_to("/dev/zero")
        case 3:
            (folder / "pictures" / "folder.png").mkdir()
        case 4:
            (folder / "pictures" / os.fsdecode(b"\xff\n\x1b[2J.png")).touch()
    return []


def _labels(seed: Path, folder: Path, rng: random.Random) -> list[str]:
    del seed
    path = folder / "labels.txt"
    content = "\n".join(rng.choice(WORDS) for _ in range(rng.choice((0, 1, 5, 300)))).encode()
    path.write_bytes(damage_bytes(content if rng.random() < 0.6 else path.read_bytes(), rng))
    return ["--labels", str(path)]


def _journal(seed: Path, folder: Path, rng: random.Random) -> list[str]:
    output = folder / "out"
    shutil.copytree(seed.parent / f"out of {seed.name}", output)
    path = output / "results.jsonl"
    lines = path.read_text().splitlines()
    if rng.random() < 0.5:
        path.write_bytes(damage_bytes(path.read_bytes(), rng))
    else:
        for index in rng.sample(range(len(lines)), 3):
            record = json.loads(lines[index])
            record["source"] = str(folder / "pictures" / Path(record["source"]).name)
            _change(record, rng)
            lines[index] = json.dumps(record)
        path.write_text("\n".join(lines) + "\n")
    if rng.random() < 0.4:
        _plant(output / rng.choice(_RESULTS), folder / "victim", rng)
    return []


def _change(record: Any, rng: random.Random) -> None:
    """One value somewhere in a record."""
    while isinstance(record, (dict, list)) and record:
        key = rng.choice(sorted(record)) if isinstance(record, dict) else rng.randrange(len(record))
        if not isinstance(record[key], (dict, list)) or not record[key] or rng.random() < 0.3:
            record[key] = rng.choice(_ODD)
            return
        record = record[key]


def _plant(path: Path, victim: Path, rng: random.Random) -> None:
    """Something else in place of a result."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    makes: tuple[Callable[[], object], ...] = (
        lambda: path.symlink_to(victim),
        lambda: path.symlink_to(victim.parent),
        lambda: path.symlink_to(path.name),
        lambda: os.mkfifo(path),
        path.mkdir,
        path.touch,
    )
    rng.choice(makes)()


def _metadata(seed: Path, folder: Path, rng: random.Random) -> list[str]:
    source = folder / f"model{seed.suffix}"
    if seed.suffix == ".onnx":
        model = onnx.load(source)
        for entry in rng.sample(list(model.metadata_props), min(2, len(model.metadata_props))):
            entry.value = _text(entry.value, rng)
        if rng.random() < 0.3:
            keys = ("mean_values", "scale_values", "resize_type", "labels", "reverse_input_channels", "names", "task")
            name = rng.choice(("model_info ", "model_info.", "", "xai_insert.")) + rng.choice(keys)
            model.metadata_props.add(key=name, value=_text("1 2 3", rng))
        onnx.save(model, source)
        return []
    head, _, info = source.read_text().partition("<rt_info>\n\t\t<")
    places = list(re.finditer(r'value="([^"]*)"', info))
    for place in sorted(rng.sample(places, min(2, len(places))), key=lambda item: -item.start()):
        text = re.sub(r'[\0"<&]', "_", _text(place[1], rng))
        info = f'{info[: place.start()]}value="{text}"{info[place.end() :]}'
    source.write_text(f"{head}<rt_info>\n\t\t<{info}" if places else head)
    return []


def _text(text: str, rng: random.Random) -> str:
    if rng.random() < 0.4:
        return damage_bytes(text.encode(), rng).decode(errors="replace")
    return str(
        rng.choice((*WORDS, *SIZES, *FLOATS, "0 " * 5000, "{0: 'a'", "{0: ['a'] * 9}", "0 0 0 0", "-1 nan 2 inf"))
    )


_DAMAGES = {"pictures": _pictures, "labels": _labels, "journal": _journal, "metadata": _metadata}
