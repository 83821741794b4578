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


def explain_video(video: Video, output: Path, model: ReadyToRun, options: DrawOptions, most: int | None = None) -> Path:
    """Draw the map of the best chosen class on every frame, with the objects of that class.

    A model of clips sees the frames in groups, and each frame gets the map of its own time.

    Args:
        video: where the frames come from.
        output: folder of results; the video becomes `videos/NAME.mp4` in it.
        model: the model.
        options: how to draw.
        most: how many frames; None is all, which of a camera never ends.

    Returns:
        The video that was written.

    Raises:
        ImageFileError: no frame can be read.
        RunError: the model cannot be run, or the video not be written.
    """
    folder = output / "videos"
    files.make_own_folder(folder)
    goal, part = folder / f"{video.name}.mp4", folder / f".{video.name}.{os.getpid()}.part.mp4"
    if _NO_UTF8 in files.shown(goal):
        raise RunError(f"cannot write {files.shown(goal)}: OpenCV takes no such name")
    rectangle = model.engine.layout.rectangle
    source = _opened(video)
    rate = source.get(cv2.CAP_PROP_FPS)
    writer = None
    try:
        frames = _frames(source, most)
        for frame in _pictures(frames, model, options, rectangle):
            writer = writer or _writer(part, goal, rate, frame)
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        if writer is None:
            raise ImageFileError(f"cannot read {_name(video)}: no frame in it that OpenCV knows")
        writer.release()
        os.replace(part, goal)
    except OSError as err:
        raise RunError(f"cannot write {goal}: {reason(err)}") from err
    finally:
        source.release()
        if writer is not None:
            writer.release()
        files.remove(part)
    return goal


def _writer(part: Path, goal: Path, rate: float, frame: Image) -> cv2.VideoWriter:
    """What writes frames of that size."""
    fourcc = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(part), fourcc, rate if 0 < rate <= _FASTEST else _RATE, frame.shape[1::-1])
    if not writer.isOpened():
        raise RunError(f"cannot write {goal}: OpenCV has no encoder for mp4 here")
    return writer


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
) -> Iterator[Image]:
    count = model.feeder.frames
    if count is None:
        yield from _drawn(frames, model, options, rectangle)
        return
    if not isinstance(model, Classifier):
        raise UnsupportedTaskError("of the models that take clips, classifiers alone are drawn")
    for frame, found in explained_frames(frames, model, count):
        yield _picture(canvas(frame), found, options, rectangle)


def _drawn(
    frames: Iterator[Image], model: ReadyToRun, options: DrawOptions, rectangle: Rectangle | None
) -> Iterator[Image]:
    """Explain several frames side by side, in order, with a bounded number of them in memory."""

    def one(frame: Image) -> Image:
        return _picture(canvas(frame), model.explain(frame), options, rectangle)

    pending: deque[Future[Image]] = deque()
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
