"""A folder of photographs through `xai-explain`, against the usual loop over the plain model.

    python -m benchmarks.cost.folder_throughput MODEL.xml... [--images 500] [--rounds 5] [--float32]

Both decode JPEGs of 640x480, prepare them alike and keep OpenVINO busy with the throughput hint, the loop through its
`AsyncInferQueue`. The loop takes the best class of the plain model and writes nothing; it decodes in one thread, or in
as many as there are cores, whichever is faster for the model. `xai-explain` draws and writes everything that it writes
by default: the image, the overlay of the predicted class, its raw map, the journal, the page. In between stands the
loop over the inserted model, so that the price of the map is told from that of drawing and writing. They take turns.

Ratios of throughput are those of neighbouring runs; processor time, of all threads, is steadier where the machine has
other work to do. `--float32` computes as CPUs without bf16 do.

The photographs are crops of those of scikit-image that anyone may use.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov

from benchmarks.lib.photos import FREE_PHOTOS
from benchmarks.lib.tables import Row, Setting, markdown_table, text_table
from benchmarks.lib.timing import Seconds, alternate, paired_ratio
from xai_insert import insert_file
from xai_insert.explain.classify import Classifier
from xai_insert.explain.explained import ScoreMeaning
from xai_insert.explain.feed import Feeder
from xai_insert.explain.files import Source, find_images
from xai_insert.explain.memory import keep_freed_memory
from xai_insert.explain.preprocessing import from_metadata
from xai_insert.explain.run import DrawOptions, FolderRun, Outcome
from xai_insert.explain.runtime import load_engine

_WIDTH, _HEIGHT, _QUALITY = 640, 480, 90
_SEED = 0


def write_photos(folder: Path, count: int) -> None:
    """Write that many different JPEGs."""
    from skimage import data  # noqa: PLC0415 - only where photographs are wanted

    photos = [np.asarray(getattr(data, name)())[..., :3] for name in FREE_PHOTOS]
    rng = np.random.default_rng(_SEED)
    for index in range(count):
        photo = photos[index % len(photos)]
        share = rng.uniform(0.5, 1.0)
        height = int(min(photo.shape[0], photo.shape[1] * _HEIGHT / _WIDTH) * share)
        width = int(height * _WIDTH / _HEIGHT)
        top, left = (int(rng.integers(0, space + 1)) for space in (photo.shape[0] - height, photo.shape[1] - width))
        crop = cv2.resize(photo[top : top + height, left : left + width], (_WIDTH, _HEIGHT))
        cv2.imwrite(str(folder / f"{index:04}.jpg"), crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])


def _decode(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


class _Float32Core(ov.Core):  # type: ignore[misc]
    """OpenVINO as on a CPU without bf16, for everything in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})


class Way:
    """One way to run the folder; each call is a run, whose processor time it keeps.

    Attributes:
        best: the best class of each image of the last run.
        cpu: processor seconds of each run, of all threads.
    """

    def __init__(self) -> None:
        self.best: dict[int, int] = {}
        self.cpu: list[float] = []

    def __call__(self) -> None:
        start = time.process_time()
        self.best.clear()
        self.run()
        self.cpu.append(time.process_time() - start)

    def run(self) -> None:
        """Run the folder once."""
        raise NotImplementedError


class Loop(Way):
    """Decode, prepare, infer asynchronously, keep the best class."""

    def __init__(self, compiled: Any, feeder: Feeder, sources: Sequence[Source], threads: int) -> None:
        super().__init__()
        self._queue = ov.AsyncInferQueue(compiled)
        self._queue.set_callback(self._done)
        self._feeder, self._sources, self._threads = feeder, sources, threads
        self._lock = threading.Lock()

    def _done(self, request: Any, index: int) -> None:
        self.best[index] = int(request.output_tensors[0].data.argmax())

    def _start(self, index: int) -> None:
        feed, _ = self._feeder.feed(_decode(self._sources[index].path))
        with self._lock:
            self._queue.start_async({0: feed}, index)

    def run(self) -> None:
        cv2.setNumThreads(-1 if self._threads == 1 else 1)  # threads within threads would slow it
        if self._threads == 1:
            for index in range(len(self._sources)):
                self._start(index)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(self._start, range(len(self._sources))))
        self._queue.wait_all()


class Explain(Way):
    """What `xai-explain` does after it has loaded the model, into a new folder each time."""

    def __init__(self, model: Classifier, sources: Sequence[Source], output: Path) -> None:
        super().__init__()
        self._model, self._sources, self._output = model, sources, output

    def run(self) -> None:
        output = self._output / str(len(self.cpu))
        outcomes: list[Outcome] = []
        FolderRun(self._model, output, DrawOptions()).run(self._sources, outcomes.append)
        records = [outcome.record for outcome in outcomes]
        self.best.update((index, item["predictions"][0]["class_id"]) for index, item in enumerate(records) if item)


def measure(path: Path, images: Path, scratch: Path, rounds: int) -> Row:
    """Measure one classifier.

    Args:
        path: the plain `.xml`.
        images: the folder.
        scratch: an empty folder.
        rounds: how often each way is timed.
    """
    inserted = scratch / "xai.xml"
    insert_file(path, inserted)
    engine = load_engine(inserted)
    feeder = Feeder.of(engine.image_input, from_metadata(engine.info, engine.by_model_api, {}))
    sources = find_images([images], ())
    hint = {"PERFORMANCE_HINT": "THROUGHPUT"}
    plain, with_map = (ov.Core().compile_model(model, "CPU", hint) for model in (path, inserted))
    threads = _best_threads(plain, feeder, sources)
    explain = Explain(Classifier(engine, feeder, ScoreMeaning()), sources, scratch / "out")
    ways = [*(Loop(model, feeder, sources, threads) for model in (plain, with_map)), explain]
    times = alternate(ways, 0, fewest=rounds, warm_up=1)
    if any(way.best != ways[0].best for way in ways):
        raise RuntimeError("the ways do not agree on the classes")
    cpu = [float(np.median(way.cpu[-rounds:])) / len(sources) for way in ways]
    return _row(path, plain, len(sources), threads, times, cpu)


def _best_threads(plain: Any, feeder: Feeder, sources: Sequence[Source]) -> int:
    """How many threads decode best in the loop over the plain model."""
    seconds = {}
    for threads in (1, os.cpu_count() or 1):
        loop = Loop(plain, feeder, sources[: max(len(sources) // 4, 1)], threads)
        loop()
        start = time.perf_counter()
        loop()
        seconds[threads] = time.perf_counter() - start
    return min(seconds, key=lambda threads: seconds[threads])


def _row(path: Path, plain: Any, count: int, threads: int, times: Seconds, cpu: Sequence[float]) -> Row:
    names = ("plain, loop", "inserted, loop", "xai-explain")
    rates = {f"{name}, images/s": f"{count / np.median(times[:, i]):.1f}" for i, name in enumerate(names)}
    ratios = [paired_ratio(times[:, 0], times[:, i]) for i in (1, 2)]
    return {
        "model": path.stem,
        "precision": plain.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        "threads that decode": str(threads),
        **rates,
        "inserted/plain": str(ratios[0]),
        "xai-explain/plain": str(ratios[1]),
        "processor ms per image": " / ".join(f"{1000 * seconds:.1f}" for seconds in cpu),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--float32", action="store_true")
    arguments = parser.parse_args()
    if arguments.float32:
        ov.Core = _Float32Core
    keep_freed_memory()  # as the command does; the loops profit as well
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        write_photos(images, arguments.images)
        for index, model in enumerate(arguments.models):
            scratch = Path(folder, f"model_{index}")
            scratch.mkdir()
            rows.append(measure(model, images, scratch, arguments.rounds))
            print(text_table(rows[-1:]), flush=True)
    print(f"\n{markdown_table(rows)}")
    print(f"\n{Setting.here('benchmarks.cost.folder_throughput').text()}")


if __name__ == "__main__":
    main()
