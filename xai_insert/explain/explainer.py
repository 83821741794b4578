"""Explaining images from Python: `Explainer` runs a model, `Explanation` is what it says about one image."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageOps

from xai_insert.errors import ModelFileError
from xai_insert.explain.classify import Classifier
from xai_insert.explain.draw import Image, is_image, to_bytes
from xai_insert.explain.explained import Explained, Instance, Prediction, ScoreMeaning, Selection
from xai_insert.explain.feed import Feeder
from xai_insert.explain.files import encode_jpeg, read_image
from xai_insert.explain.marks import draw_marks
from xai_insert.explain.outputs import Array, part_of
from xai_insert.explain.picture import Look, Rectangle, canvas, draw, laid_out
from xai_insert.explain.preprocessing import Resize, View, from_metadata
from xai_insert.explain.runtime import RuntimeName, load_engine
from xai_insert.explain.scale import SCALES, ScaleName, scaled
from xai_insert.explain.setup import ReadyModel, model_of, require_choices

_SHOWN = 5

Which = int | str | Prediction | None


class Explainer:
    """A model that is run on images. It can be pickled: the runtime is opened in the process that first needs it.

    Args:
        model: path of a `.xml` or `.onnx` file, with a saliency map or without.
        device: OpenVINO's name of a device; onnxruntime knows `CPU` and `GPU`.
        runtime: `openvino` or `onnxruntime`; None takes OpenVINO for `.xml`, onnxruntime for `.onnx`.
        batch_size: most images in one inference, where the model leaves its batch open and is a classifier.
        threshold: least score of a found object or key point (0.3), or of a class among independent ones (the model's).
        labels: class names in order; None takes those of the model.
        mean: subtracted from the image's 0..255, one value or one for each channel of the model; None, as `scale`,
            `channels` and `resize`, takes what the model's metadata say.
        scale: divides after that.
        channels: `rgb` or `bgr`.
        layout: `NCHW` or `NHWC`; None finds it.
        resize: `fit`, `letterbox`, `corner` or `crop`, see `Preprocessing`.
        input_size: height and width to run at, where the model leaves them open.
        fed: arrays for the inputs beside the image, by name: token ids of prompts, a `reference`, the other image.

    Raises:
        ValueError: an option is not one of its values, or out of its range.
        ModelFileError: there is no such file.
    """

    def __init__(
        self,
        model: str | Path,
        device: str = "CPU",
        runtime: RuntimeName | None = None,
        *,
        batch_size: int = 8,
        threshold: float | None = None,
        labels: Sequence[str] | None = None,
        mean: float | Sequence[float] | None = None,
        scale: float | Sequence[float] | None = None,
        channels: str | None = None,
        layout: str | None = None,
        resize: Resize | None = None,
        input_size: tuple[int, int] | None = None,
        fed: Mapping[str, Array] | None = None,
    ) -> None:
        self._path = _existing(model)
        require_choices(
            {
                "device": "" if device is None else device,
                "runtime": runtime,
                "batch_size": 0 if batch_size is None else batch_size,
                "threshold": threshold,
                "labels": labels,
                "mean": mean,
                "scale": scale,
                "channels": channels,
                "layout": layout,
                "resize": resize,
                "input_size": input_size,
                "fed": fed,
            }
        )
        if runtime == "onnxruntime" and self._path.suffix.lower() == ".xml":
            raise ValueError("runtime onnxruntime cannot run an OpenVINO IR: give the .onnx file or runtime='openvino'")
        self._runtime, self._device, self._batch_size, self._threshold = runtime, device, batch_size, threshold
        self._labels = None if labels is None else tuple(labels)
        self._prepared = {
            "mean": _by_channel(mean),
            "scale": _by_channel(scale),
            "resize": resize,
            "bgr": None if channels is None else channels == "bgr",
        }
        self._layout, self._input_size, self._fed = layout, input_size, dict(fed or {})
        self._lock = threading.Lock()
        self._ready: Ready | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_lock", "_ready")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _ready=None)

    def __repr__(self) -> str:
        return f"Explainer({str(self._path)!r}, device={self._device!r}, runtime={self._runtime!r})"

    def explain(self, images: Iterable[Any]) -> list[Explanation]:
        """Explain images, several in one inference where the model allows it, else several side by side.

        Args:
            images: uint8 RGB `[H, W, 3]` arrays, paths of image files, or images of Pillow; of any size.

        Returns:
            One explanation for each, in order.

        Raises:
            ValueError: an image is none of these.
            XaiInsertError: a file cannot be read, or the model cannot be run.
        """
        return list(self.stream(images))

    def stream(self, images: Iterable[Any]) -> Iterator[Explanation]:
        """Explain any number of images: `explain`, one after another, a few in memory at a time.

        Args:
            images: see `explain`.

        Raises:
            ValueError: see `explain`; of a single image at once, of one among them when it is reached.
            XaiInsertError: see `explain`.
        """
        if isinstance(images, (str, Path, Pillow.Image)) or getattr(images, "ndim", 4) == 3:
            raise ValueError("explain takes several images: put a single one into a list")
        return self._each(iter(images))

    def _each(self, images: Iterator[Any]) -> Iterator[Explanation]:
        ready = self.opened()
        with ThreadPoolExecutor(ready.workers, thread_name_prefix="xai-insert") as pool:
            while group := [_pixels(item) for item in islice(images, ready.at_once)]:
                parts = [group[start : start + ready.batch] for start in range(0, len(group), ready.batch)]
                for part in pool.map(ready.explain, parts):
                    yield from part

    def opened(self) -> Ready:
        """The compiled model and what is done with it, made when it is first asked for.

        Raises:
            XaiInsertError: the model cannot be read, inserted into or compiled.
        """
        with self._lock:
            if self._ready is None:
                self._ready = self._compiled()
            return self._ready

    def _compiled(self) -> Ready:
        engine = load_engine(self._path, self._runtime, self._device, self._fed)
        how = from_metadata(engine.info, engine.by_model_api, self._prepared)
        feeder = Feeder.of(engine.image_input, how, self._layout, self._input_size)
        meaning, every = ScoreMeaning.from_metadata(engine.info), Selection("all")
        if self._labels is not None:
            meaning = replace(meaning, labels=self._labels, is_told=True)
        rectangle = engine.layout.rectangle
        model = model_of(engine, feeder, meaning, every, self._threshold)
        if not isinstance(model, Classifier):
            return Ready(model, 1, rectangle)
        is_open = engine.image_input.shape[feeder.layout.index("N")] is None
        batch = self._batch_size if is_open and not _are_images(self._fed) else feeder.batch
        return Ready(model, batch if feeder.size else 1, rectangle)


def _are_images(fed: Mapping[str, Array]) -> bool:
    """Whether some of what is fed are images, each of which goes with one that is explained."""
    return any(np.ndim(array) in (4, 5) for array in fed.values())


def _existing(model: Any) -> Path:
    """The file of a model."""
    if not isinstance(model, (str, Path)):
        raise ValueError(f"model must be a path, not a {type(model).__name__}: write it first, InsertResult.save")
    path = Path(model)
    if not path.is_file():
        raise ModelFileError(f"no such file: {path}")
    return path


@dataclass(frozen=True)
class Ready:
    """A model that is open.

    Attributes:
        model: it, with its preparation of images.
        batch: how many images it takes at once.
        rectangle: where its maps lie in the input; None if they cover all of it.
    """

    model: ReadyModel
    batch: int
    rectangle: Rectangle | None

    @property
    def workers(self) -> int:
        """How many inferences run side by side at best."""
        return self.model.engine.parallel

    @property
    def at_once(self) -> int:
        """How many images are in memory as the model's input."""
        return 2 * self.workers * self.batch

    def explain(self, images: Sequence[Image]) -> list[Explanation]:
        """Explain at most a batch of images."""
        feed, views = self.model.feeder.stack(images)
        outputs = self.model.engine.infer(feed)
        parts = [part_of(outputs, index, len(feed)) for index in range(len(views))]
        found = [
            replace(self.model.read(part, feed.shape, view), others=self.model.others(part))
            for part, view in zip(parts, views, strict=True)
        ]
        return [Explanation(image, explained, self.rectangle) for image, explained in zip(images, found, strict=True)]


def _by_channel(numbers: Any) -> tuple[float, ...] | None:
    """A number or several, as several."""
    return None if numbers is None else tuple(np.atleast_1d(numbers).tolist())


def _pixels(given: Any) -> Image:
    if isinstance(given, (str, Path)):
        return read_image(Path(given))
    if isinstance(given, Pillow.Image):
        if given.mode[0] in "IF":  # Pillow would cut off all above 255
            raise ValueError(
                f"an image of Pillow in mode {given.mode} has more than 8 bits: give its path, or uint8 RGB"
            )
        given = np.asarray(ImageOps.exif_transpose(given).convert("RGB"), np.uint8)
    if is_image(given):
        own: Image = given
        return own
    what = f"{given.dtype} {list(given.shape)}" if isinstance(given, np.ndarray) else type(given).__name__
    raise ValueError(f"an image must be uint8 RGB [H, W, 3], a path or an image of Pillow, not {what}")


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What a model says about one image, and why.

    Attributes:
        image: uint8 RGB `[H, W, 3]`.
        found: predictions and maps as they were read.
        rectangle: where the maps lie in the model's input; None if they cover all of it.
    """

    image: Image
    found: Explained
    rectangle: Rectangle | None = None

    @property
    def predictions(self) -> list[Prediction]:
        """The likeliest classes, best first; of a detector or segmenter the found objects, `Instance`."""
        return list(self.found.predictions)

    @property
    def others(self) -> dict[str, Explanation]:
        """Of each other image that is fed, by the name of its input: its picture, and its own maps."""
        return {item.input: Explanation(item.image, item.found, item.rectangle) for item in self.found.others}

    @property
    def view(self) -> View:
        """How image and input fit together."""
        return self.found.view

    def raw_map(self, which: Which = None) -> Array:
        """The map `[h, w]` over the model's input as the model gave it: uint8 0..255, or float raw scores.

        Args:
            which: number or name of a class, a prediction, or a found object, which has a map of its own where the
                model was inserted with `per_box`; None is the best prediction. A map for all classes is taken for all.

        Raises:
            ValueError: there is no such class, or several have that name.
        """
        if isinstance(which, Instance) and which.saliency_map is not None:
            return which.saliency_map
        if self.found.is_joint:
            return self.found.saliency_map
        return self.found.map_of(self._class(which).class_id)

    def heatmap(self, which: Which = None) -> npt.NDArray[np.float32]:
        """The map laid out over the image: float32 `[H, W]` in 0..1 by its own range, 0 where the model did not look.

        Args:
            which: see `raw_map`.

        Raises:
            ValueError: see `raw_map`.
        """
        pixels, _ = laid_out(to_bytes(self.raw_map(which)), self.image.shape[:2], self.view, self.rectangle)
        return np.asarray(pixels / np.float32(255), np.float32)

    def overlay(self, which: Which = None, look: Look | None = None, scale: ScaleName = "shared") -> Image:
        """Draw the map over the image, with the found objects of its class.

        Args:
            which: see `raw_map`.
            look: opacity, colours and background.
            scale: `shared` draws the map on one scale with that of the best prediction, so that a weak class is pale;
                `each` by its own range.

        Returns:
            uint8 RGB `[H, W, 3]`.

        Raises:
            ValueError: see `raw_map`, or an unknown scale.
        """
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, not {scale!r}")
        if look is not None and not isinstance(look, Look):
            raise ValueError(f"look must be a Look, not {look!r}")
        return self._drawn(self.image, which, look or Look(), scale)

    def _drawn(self, image: Image, which: Which, look: Look, scale: ScaleName) -> Image:
        found = self.found
        if (isinstance(which, Instance) and which.saliency_map is not None) or found.is_joint:
            own = [which] if isinstance(which, Instance) else list(found.instances)
            (first,) = scaled([self.raw_map(which)], [None], scale)
        else:
            item = self._class(which)
            both = [item, max(found.chosen, key=lambda other: other.score)]
            first, _ = found.scaled(both, scale)
            own = found.of_class(item.class_id)
        return draw_marks(draw(image, first, self.view, look, self.rectangle), own)

    def _class(self, which: Which) -> Prediction:
        chosen = self.found.chosen
        if which is None:
            best = self.found.predictions[0] if self.found.predictions else max(chosen, key=lambda item: item.score)
            which = best.class_id
        if isinstance(which, Prediction):
            which = which.class_id
        key = "label" if isinstance(which, str) else "class_id"
        fits = [item for item in chosen if getattr(item, key) == which]
        if len(fits) == 1:
            return fits[0]
        if fits:
            numbers = ", ".join(str(item.class_id) for item in fits)
            raise ValueError(f"several classes are called {which!r}: {numbers}; give the number")
        raise ValueError(f"no map of class {which!r}: there are those of {_listed(chosen)}")

    def to_dict(self) -> dict[str, Any]:
        """What can be written as JSON: size, predictions with boxes in pixels, and the sizes of the maps."""
        height, width = self.image.shape[:2]
        found: dict[str, Any] = {
            "size": [width, height],
            "predictions": [item.record(width, height) for item in self.predictions],
            "map": {
                "shape": list(self.found.saliency_map.shape),
                "dtype": self.found.saliency_map.dtype.name,
                "classes": [item.class_id for item in self.found.chosen],
            },
        }
        return found if self.found.note is None else {**found, "note": self.found.note}

    def __repr__(self) -> str:
        listed = ", ".join(f"{item.label} {item.score:.2f}" for item in self.predictions[:_SHOWN])
        shape = list(self.found.saliency_map.shape)
        return f"Explanation({listed or 'nothing found'}; maps {shape} {self.found.saliency_map.dtype})"

    def _repr_html_(self) -> str:
        """Image and overlay of the best prediction beside a list, for notebooks."""
        small = canvas(self.image)
        whole = np.hstack([small, self._drawn(small, None, Look(), "shared")])
        source = f"data:image/jpeg;base64,{b64encode(encode_jpeg(whole)).decode()}"
        rows = "".join(
            f"<tr><td>{escape(item.label)}</td><td>{item.score:.2f}</td></tr>" for item in self.predictions[:_SHOWN]
        )
        return f'<img src="{source}" alt="image and overlay" style="max-width:100%"><table>{rows}</table>'


def _listed(chosen: Sequence[Prediction]) -> str:
    names = [f"{item.class_id} ({item.label})" for item in chosen[:_SHOWN]]
    return ", ".join(names) + (f" and {len(chosen) - _SHOWN} more" if len(chosen) > _SHOWN else "")
