"""Videos and cameras: every frame explained, a video out."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from xai_insert.errors import UnsupportedTaskError, reason
from xai_insert.explain import files
from xai_insert.explain.classify import Classifier
from xai_insert.explain.clips import explained_frames
from xai_insert.explain.draw import Image
from xai_insert.explain.errors import ImageFileError, RunError
from xai_insert.explain.explained import Explained
from xai_insert.explain.marks import draw_marks
from xai_insert.explain.picture import Rectangle, canvas, caption, draw
from xai_insert.explain.ready import ReadyToRun
from xai_insert.explain.run import ALL_CLASSES, DrawOptions
from xai_insert.explain.scale import scaled

SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"))
_CAMERA = re.compile(r"camera:(\d+)")
_RATE = 25.0  # of a source that does not say its own
_FASTEST = 240.0
_NO_UTF8 = "\ufffd"  # stands for such bytes in a name, on which OpenCV crashes


Drawn = dict[str, Image]
"""A frame of each video that is written, by the end of its name: empty, or `.INPUT` of an image that is fed."""


@dataclass(frozen=True)
class Video:
    """A source of frames: the path of a file, or the number of a camera; and the name its results go by."""

    source: Path | int
    name: str


def split(given: Sequence[Path]) -> tuple[list[Video], list[Path]]:
    """Tell videos and cameras (`camera:0`) from what else was given."""
    videos, rest = [], []
    for path in given:
        if match := _CAMERA.fullmatch(str(path)):
            videos.append(Video(int(match[1]), f"camera{match[1]}"))
        elif path.suffix.lower() in SUFFIXES and not path.is_dir():
            name = files.result_name(path)
            is_taken = any(name == other.name for other in videos)
            videos.append(Video(path, f"{name}~{len(videos)}" if is_taken else name))
        else:
            rest.append(path)
    return videos, rest


def explain_video(
    video: Video, output: Path, model: ReadyToRun, options: DrawOptions, most: int | None = None
) -> list[Path]:
    """Draw the map of the best chosen class on every frame, with the objects of that class.

    A model of clips sees the frames in groups, and each frame gets the map of its own time. Another image that a model
    of images is fed gets a video of its own, with the map that it has beside each frame.

    Args:
        video: where the frames come from.
        output: folder of results; the video becomes `videos/NAME.mp4` in it, that of an image that is fed
            `videos/NAME.INPUT.mp4`.
        model: the model.
        options: how to draw.
        most: how many frames; None is all, which of a camera never ends.

    Returns:
        The videos that were written.

    Raises:
        ImageFileError: no frame can be read.
        RunError: the model cannot be run, or the video not be written.
    """
    folder = output / "videos"
    files.make_own_folder(folder)
    if _NO_UTF8 in files.shown(folder / video.name):
        raise RunError(f"cannot write {files.shown(folder / video.name)}.mp4: OpenCV takes no such name")
    rectangle = model.engine.layout.rectangle
    source = _opened(video)
    rate = source.get(cv2.CAP_PROP_FPS)
    written: dict[str, _Written] = {}
    try:
        for drawn in _pictures(_frames(source, most), model, options, rectangle):
            for name, frame in drawn.items():
                if name not in written:
                    written[name] = _Written(folder, f"{video.name}{name}", rate, frame)
                written[name].add(frame)
        if not written:
            raise ImageFileError(f"cannot read {_name(video)}: no frame in it that OpenCV knows")
        return [item.finished() for item in written.values()]
    finally:
        source.release()
        for item in written.values():
            item.close()


class _Written:
    """A video that is being written.

    Raises:
        RunError: there is no encoder.
    """

    def __init__(self, folder: Path, name: str, rate: float, frame: Image) -> None:
        self._goal, self._part = folder / f"{name}.mp4", folder / f".{name}.{os.getpid()}.part.mp4"
        fourcc = cv2.VideoWriter.fourcc(*"mp4v")
        rate = rate if 0 < rate <= _FASTEST else _RATE
        self._writer = cv2.VideoWriter(str(self._part), fourcc, rate, frame.shape[1::-1])
        if not self._writer.isOpened():
            files.remove(self._part)
            raise RunError(f"cannot write {self._goal}: OpenCV has no encoder for mp4 here")

    def add(self, frame: Image) -> None:
        """Write a frame of the size of the first."""
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def finished(self) -> Path:
        """The whole video, in its place.

        Raises:
            RunError: it cannot be put there.
        """
        self._writer.release()
        try:
            os.replace(self._part, self._goal)
        except OSError as err:
            raise RunError(f"cannot write {self._goal}: {reason(err)}") from err
        return self._goal

    def close(self) -> None:
        """Let go of it, and remove what is not finished."""
        self._writer.release()
        files.remove(self._part)


def _opened(video: Video) -> cv2.VideoCapture:
    if isinstance(video.source, Path) and not video.source.is_file():
        raise ImageFileError(f"cannot read {_name(video)}: no such file")
    if _NO_UTF8 in _name(video):
        raise ImageFileError(f"cannot read {_name(video)}: OpenCV takes no such name")
    source = cv2.VideoCapture(video.source if isinstance(video.source, int) else str(video.source))
    if not source.isOpened():
        reason = "no such camera" if isinstance(video.source, int) else "not a video"
        raise ImageFileError(f"cannot read {_name(video)}: {reason}")
    return source


def _name(video: Video) -> str:
    return files.shown(video.source) if isinstance(video.source, Path) else f"camera {video.source}"


def _frames(source: cv2.VideoCapture, most: int | None) -> Iterator[Image]:
    count = 0
    while most is None or count < most:
        done, frame = source.read()
        if not done:
            return
        yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
        count += 1


def _pictures(
    frames: Iterator[Image], model: ReadyToRun, options: DrawOptions, rectangle: Rectangle | None
) -> Iterator[Drawn]:
    count = model.feeder.frames
    if count is None:
        yield from _drawn(frames, model, options, rectangle)
        return
    if not isinstance(model, Classifier):
        raise UnsupportedTaskError("of the models that take clips, classifiers alone are drawn")
    for frame, found in explained_frames(frames, model, count):
        yield {"": _picture(canvas(frame), found, options, rectangle)}


def _drawn(
    frames: Iterator[Image], model: ReadyToRun, options: DrawOptions, rectangle: Rectangle | None
) -> Iterator[Drawn]:
    """Explain several frames side by side, in order, with a bounded number of them in memory."""

    def one(frame: Image) -> Drawn:
        found = model.explain(frame)
        others = {
            f".{files.slug(item.input)}": _picture(canvas(item.image), item.found, options, item.rectangle)
            for item in found.others
        }
        return {"": _picture(canvas(frame), found, options, rectangle), **others}

    pending: deque[Future[Drawn]] = deque()
    with ThreadPoolExecutor(model.engine.parallel) as pool:
        for frame in frames:
            pending.append(pool.submit(one, frame))
            if len(pending) > 2 * model.engine.parallel:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _picture(shown: Image, found: Explained, options: DrawOptions, rectangle: Rectangle | None) -> Image:
    """One frame, of even sides, as the encoder wants them."""
    texts, drawn = ("", ""), shown
    if found.is_joint:
        (values,) = scaled([found.saliency_map], [None], options.scale)
        drawn = draw_marks(draw(shown, values, found.view, options.look, rectangle), found.instances)
        texts = (ALL_CLASSES, "")
    elif found.chosen and found.has_overlays:
        best = max(found.chosen, key=lambda item: item.score)
        (values,) = scaled([found.values_of(best.class_id)], [None], options.scale)
        own = found.of_class(best.class_id)
        drawn = draw_marks(draw(shown, values, found.view, options.look, rectangle), own)
        texts = (best.label, f"{best.score:.2f}" if found.has_scores else "")
    whole = np.vstack([drawn, caption(shown.shape[1], *texts, most_lines=1)])
    return np.ascontiguousarray(whole[: whole.shape[0] // 2 * 2, : whole.shape[1] // 2 * 2])
