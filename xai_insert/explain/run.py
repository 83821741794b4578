"""Explaining many images: read, infer, draw and write, several at a time, and start again where a run stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from xai_insert.errors import XaiInsertError
from xai_insert.explain import files, page
from xai_insert.explain.draw import Image, to_bytes
from xai_insert.explain.errors import ImageFileError
from xai_insert.explain.explained import Explained, Instance, OfOther, Prediction
from xai_insert.explain.journal import FOLDERS, Journal, Records, written
from xai_insert.explain.marks import draw_marks
from xai_insert.explain.ordered import opencv_in_one_thread, side_by_side
from xai_insert.explain.outputs import Array
from xai_insert.explain.picture import Look, Rectangle, canvas, caption, draw, legend
from xai_insert.explain.preprocessing import View
from xai_insert.explain.ready import ReadyToRun
from xai_insert.explain.runtime import threads_for
from xai_insert.explain.scale import Scaled, ScaleName, scaled
from xai_insert.explain.sharing import alone_in
from xai_insert.files import sweep
from xai_insert.version import __version__

RawKind = Literal["png", "npy", "none"]

RAW_KINDS: tuple[str, ...] = get_args(RawKind)
ALL_CLASSES = "all classes, where features are strong, not evidence"


@dataclass(frozen=True)
class DrawOptions:
    """What to write.

    Attributes:
        look: colours and opacity of the maps.
        scale: `shared`: one scale for the maps of an image; `each`: one for each, see `scaled`.
        raw: kind of file for the raw map: `png` (8 bit), `npy` (as the model gave it) or `none`.
        overwrite: whether to draw again what exists.
    """

    look: Look = field(default_factory=Look)
    scale: ScaleName = "shared"
    raw: RawKind = "png"
    overwrite: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        source: the image.
        record: what was written about it, a line of the journal; None if it failed.
        others: the same about other images that the model was fed beside it.
        skipped: whether the record is from an earlier run.
        error: why it failed.
    """

    source: files.Source
    record: dict[str, Any] | None = None
    others: Sequence[dict[str, Any]] = ()
    skipped: bool = False
    error: str | None = None


@dataclass(frozen=True)
class _Scene:
    """One image on its way to the disk.

    Attributes:
        name: in the names of its files.
        size: width and height.
        shown: the pixels to draw on.
        view: what the model sees of it.
        rectangle: where the maps lie in that.
    """

    name: str
    size: tuple[int, int]
    shown: Image
    view: View
    rectangle: Rectangle | None


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A map that was drawn: its record, what the model gave, how it is coloured, and the objects on it."""

    record: dict[str, Any]
    saliency: Array
    scaled: Scaled
    own: Sequence[Instance]


class FolderRun:
    """Explains images with one model and writes the results below one folder.

    Args:
        model: the model.
        output: folder for the results.
        options: what to write.
        identity: tells this model and its settings from others, so that results of others are not taken for its own.
        facts: what the page says about the run, see `page.About`.
        beside: way from `output` to the results of another run, which the page shows beside.
    """

    def __init__(
        self,
        model: ReadyToRun,
        output: Path,
        options: DrawOptions,
        identity: Sequence[Any] = (),
        facts: Mapping[str, str] | None = None,
        beside: str | None = None,
    ) -> None:
        self._model, self._output, self._options = model, output, options
        self._about = page.About(facts or {}, options.look, options.scale, beside)
        self._rectangle = model.engine.layout.rectangle
        about = [*model.settings, replace(options, overwrite=False)]
        settings = [__version__, *identity, *map(repr, about)]
        self._settings = sha256(json.dumps(settings).encode()).hexdigest()[:16]
        self.journal = Journal(output / "results.jsonl", output / FOLDERS[0])
        self._folders: set[files.FolderKey] = set()

    def run(self, sources: Iterable[files.Source], done: Callable[[Outcome], None] = lambda _: None) -> None:
        """Explain every image and write the page `index.html`; other runs may do so in the same folder.

        Args:
            sources: the images.
            done: called after each image, in order.

        Raises:
            RunError: the model cannot be run or a file cannot be written; images that cannot be read only become
                outcomes with an error.
        """
        files.make_folder(self._output)
        files.require_own(self._output, FOLDERS)
        for name in FOLDERS:
            files.make_own_folder(self._output / name)
        for folder in (".", *FOLDERS):  # what killed runs have left half written
            sweep(self._output / folder / "any")
        self._folders = files.folder_keys(self._output / name for name in FOLDERS)
        with self.journal, opencv_in_one_thread():
            try:
                workers = threads_for(self._model.engine)
                for outcome in side_by_side(self.explain, sources, workers):
                    if outcome.record is not None and not outcome.skipped:
                        for record in (*outcome.others, outcome.record):
                            self.journal.append(record)
                    done(outcome)
            except BaseException:  # what has been drawn can be looked at all the same
                with suppress(XaiInsertError):
                    self._write_page()
                raise
            self._write_page()

    def _write_page(self) -> None:
        """Show the images of all runs; of those that end together, the last to write the page has seen all records."""
        with alone_in(self._output / FOLDERS[-1]):
            records = Records(self._output / "results.jsonl")
            page.write(self._output, records.values(), self._about)
            records.close()

    def explain(self, source: files.Source) -> Outcome:
        """Explain one image, unless an earlier run did; the caller puts the record of a new one into the journal."""
        try:
            return self._explained(source)
        except ImageFileError as err:
            return Outcome(source, error=str(err))

    def _explained(self, source: files.Source) -> Outcome:
        known = self.journal.records.get(source.name)
        files.require_apart(source.path, self._folders)
        content = files.read(source.path)
        digest = sha256(content).hexdigest()
        if known is not None and self._is_whole(source, digest, known) and not self._options.overwrite:
            return Outcome(source, known, skipped=True)
        image = files.decode(source.path, content)
        found = self._model.explain(image)
        others = [self._record(source, _beside(source, item), item.found, digest) for item in found.others]
        scene = _scene(source.name, image, found, self._rectangle)
        own = content if scene.shown is image and files.is_jpeg(content) else None
        return Outcome(source, self._record(source, scene, found, digest, own), others)

    def _record(
        self, source: files.Source, scene: _Scene, found: Explained, digest: str, content: bytes | None = None
    ) -> dict[str, Any]:
        """Draw what was found of an image, and say what was written; `content` is its file, where that can be shown."""
        for name in written(self.journal.records.get(scene.name) or {}):
            files.remove(self._output / name)  # their names hold scores, so new ones may not replace them
        maps = self._draw(scene, found)
        drawn = [(item.saliency, item.scaled, item.own) for item in maps]
        script = page.maps_script(drawn, found.view, scene.rectangle)
        content = files.encode_jpeg(scene.shown) if content is None else content
        record = {
            "name": scene.name,
            "settings": self._settings,
            "source": files.shown(source.path),
            "content": digest,
            "size": [*scene.size],
            "image": self._write(f"images/{scene.name}.jpg", content),
            "predictions": [item.record(*scene.size) for item in found.predictions],
            "maps": [item.record for item in maps],
            "data": self._write(f"data/{scene.name}.js", script),
        }
        return record if found.note is None else {**record, "note": found.note}

    def _draw(self, scene: _Scene, found: Explained) -> list[_Drawn]:
        """Draw one map per class, or the only map if the model has one for all classes, and the objects on it."""
        boxes = self._maps_of_boxes(found)
        if found.is_joint:
            texts = (ALL_CLASSES, f"{len(found.instances)} found" if found.instances else "")
            (only,) = scaled([found.saliency_map], [None], self._options.scale)
            every = self._draw_map(scene, found.saliency_map, only, "all", texts, found.instances)
            return [every, *self._draw_boxes(scene, boxes)]
        return [*self._draw_classes(scene, found, boxes)]

    def _maps_of_boxes(self, found: Explained) -> list[tuple[Instance, Scaled]]:
        """The objects that have a map of their own, with it."""
        maps = [(item, item.saliency_map) for item in found.instances if item.saliency_map is not None]
        values = scaled([saliency for _, saliency in maps], [item.score for item, _ in maps], self._options.scale)
        return [(item, own) for (item, _), own in zip(maps, values, strict=True)]

    def _draw_classes(
        self, scene: _Scene, found: Explained, boxes: Sequence[tuple[Instance, Scaled]]
    ) -> Iterator[_Drawn]:
        """Draw the map of each chosen class, and those of its objects."""
        maps = found.scaled(found.chosen, self._options.scale)
        for item, values in zip(found.chosen, maps, strict=True):
            score = f"{item.score:.2f}" if found.has_scores else ""
            mark = "-".join(part for part in (str(item.class_id), files.slug(item.label), score) if part)
            own = found.of_class(item.class_id)
            saliency = found.map_of(item.class_id)
            entry = self._draw_map(scene, saliency, values, mark, (item.label, score), own, found.has_overlays)
            yield replace(entry, record={**_about(item, found), **entry.record})
            yield from self._draw_boxes(scene, [pair for pair in boxes if pair[0].class_id == item.class_id])

    def _draw_boxes(self, scene: _Scene, boxes: Sequence[tuple[Instance, Scaled]]) -> list[_Drawn]:
        """Draw the map of each object that has a map of its own, with its box alone; objects count within a class."""
        drawn = []
        for index, (item, values) in enumerate(boxes):
            assert item.saliency_map is not None
            number = 1 + sum(other.class_id == item.class_id for other, _ in boxes[:index])
            score = f"{item.score:.2f}"
            mark = f"{item.class_id}-{files.slug(item.label)}-box{number}-{score}"
            texts = (f"{item.label}, box {number}", score)
            entry = self._draw_map(scene, item.saliency_map, values, mark, texts, [item])
            drawn.append(replace(entry, record={**item.record(*scene.size), **entry.record}))
        return drawn

    def _draw_map(
        self,
        scene: _Scene,
        saliency: Array,
        values: Scaled,
        mark: str,
        texts: tuple[str, str],
        instances: Sequence[Instance],
        has_overlay: bool = True,
    ) -> _Drawn:
        options, stem = self._options, f"{scene.name}.{mark}"
        entry: dict[str, Any] = {"title": texts[0], "overlay": None, "raw": None, "grid": list(saliency.shape[::-1])}
        if has_overlay:
            picture = draw(scene.shown, values, scene.view, options.look, scene.rectangle)
            width = picture.shape[1]
            parts = draw_marks(picture, instances), caption(width, *texts), legend(width, values, options.look)
            entry["overlay"] = self._write(f"overlays/{stem}.jpg", files.encode_jpeg(*parts))
        if options.raw == "png":
            entry["raw"] = self._write(f"maps/{stem}.png", files.encode_png(to_bytes(saliency)))
        elif options.raw == "npy":
            content = BytesIO()
            np.save(content, saliency)
            entry["raw"] = self._write(f"maps/{stem}.npy", content.getvalue())
        return _Drawn(entry, saliency, values, instances)

    def _write(self, name: str, content: bytes) -> str:
        files.write(self._output / name, content)
        return name

    def _is_whole(self, source: files.Source, digest: str, known: dict[str, Any]) -> bool:
        """Whether an earlier run drew this image with this model and these settings, and nothing is gone since."""
        if known.get("settings") != self._settings or known.get("source") != files.shown(source.path):
            return False
        if known.get("content") != digest or not all(files.is_plain(self._output / name) for name in written(known)):
            return False
        return page.is_maps_script(files.read(self._output / known["data"]))


def _beside(source: files.Source, other: OfOther) -> _Scene:
    """Another image that is fed beside the one that is explained, and named after it and its input."""
    return _scene(f"{source.name}.{files.slug(other.input)}", other.image, other.found, other.rectangle)


def _scene(name: str, image: Image, found: Explained, rectangle: Rectangle | None) -> _Scene:
    height, width = image.shape[:2]
    return _Scene(name, (width, height), canvas(image), found.view, rectangle)


def _about(item: Prediction, found: Explained) -> Mapping[str, Any]:
    """What a record says of a class: with its score and the strength of its map, where there are any."""
    about = vars(item) if found.has_scores else {"class_id": item.class_id, "label": item.label}
    return about if found.strengths is None else {**about, "strength": found.strengths[item.class_id]}
