"""The same on several machines, by Ray Data: one process on each, all of which see the same model, images and folder.

The unit of work is a part: a list of images that becomes one file, whose name follows from the list. Whatever Ray does
twice because a process or a machine was lost is so written twice in the same place.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from xai_insert.explain.columns import FormatName
from xai_insert.explain.errors import RunError
from xai_insert.explain.files import Source
from xai_insert.explain.ordered import opencv_in_one_thread, side_by_side
from xai_insert.explain.runtime import threads_for
from xai_insert.explain.setup import Setup
from xai_insert.explain.stream import Counts, PartFiles, explained_row, unknown
from xai_insert.formats.guard import last_line

PART = 64
"""Most images of a part: what is done again where a process is lost."""
_WAVE = 1024  # parts that Ray is given at a time
_PATIENCE = 5.0
_LOOPBACK_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0 Ray takes the loopback for this machine's address, on any system; read when it is imported."""


@dataclass(frozen=True)
class RayTask:
    """What a process of the cluster needs to know.

    Attributes:
        setup: how to open the model.
        folder: where the parts go.
        kind: their format.
    """

    setup: Setup
    folder: Path
    kind: FormatName


class RayWorker:
    """A process of the cluster: opens the model once, then turns lists of images into parts."""

    def __init__(self, task: RayTask) -> None:
        self._model, _ = task.setup.open()
        self._parts = PartFiles(task.folder, task.kind)
        self._workers = threads_for(self._model.engine)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Explain the images of each list `images`; gives counts and the first errors of each."""
        told: dict[str, list[Any]] = {"done": [], "failed": [], "errors": [], "notes": []}
        for text in batch["images"]:
            sources = [Source(Path(path), name) for path, name in json.loads(str(text))]
            with opencv_in_one_thread():
                rows = list(side_by_side(lambda source: explained_row(self._model, source), sources, self._workers))
            self._parts.write(rows)
            errors = [item["error"] for item in rows if item["error"] is not None]
            notes = sorted({item["note"] for item in rows if item["note"] is not None})
            told["done"].append(len(rows) - len(errors))
            told["failed"].append(len(errors))
            told["errors"].append(json.dumps(errors))
            told["notes"].append(json.dumps(notes))
        return told


def explain_on_ray(
    task: RayTask,
    parts: PartFiles,
    sources: Iterable[Source],
    address: str | None = None,
    done: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> Counts:
    """Explain every image that has no row yet, see `explain_all`.

    Args:
        task: model, folder and format.
        parts: the folder as it is now.
        sources: the images.
        address: of the cluster, `HOST:PORT`, `auto` or `ray://HOST:PORT`; None starts one on this machine.
        done: called with `error` for each image that could not be read, and with `note`.

    Raises:
        RunError: there is no Ray or no cluster, or it could not do the work.
    """
    ray = connected(address)
    counts = Counts()
    try:
        remaining = unknown(parts, sources, counts)
        while wave := list(islice(_lists(remaining), _WAVE)):
            _wave(ray, task, wave, counts, done)
    finally:
        with suppress(Exception):
            ray.shutdown()
    return counts


def _wave(ray: Any, task: RayTask, wave: list[str], counts: Counts, done: Callable[[Mapping[str, Any]], None]) -> None:
    rows = ray.data.from_items([{"images": text} for text in wave], override_num_blocks=len(wave))
    cores, most = _room(ray)
    try:
        results = rows.map_batches(
            RayWorker,
            fn_constructor_kwargs={"task": task},
            batch_size=1,
            num_cpus=cores,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(wave))),
        )
        answered = 0
        for told in results.iter_rows():
            answered += 1
            _count(told, counts, done)
    except Exception as err:  # Ray's exceptions have no common base, and wrap those of the processes
        raise RunError(f"Ray could not do the work: {last_line(err)}") from err
    if answered != len(wave):
        raise RunError(f"Ray has lost {len(wave) - answered} of {len(wave)} parts; run again, what is done is kept")


def _room(ray: Any) -> tuple[int, int]:
    """The processors of the smallest machine, and how many processes of so many there is room for."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cores = min((count for count in nodes if count), default=1)
    return cores, max(sum(count // cores for count in nodes), 1)


def _count(told: Mapping[str, Any], counts: Counts, done: Callable[[Mapping[str, Any]], None]) -> None:
    """Take what a process tells of a part."""
    counts.done += told["done"]
    counts.failed += told["failed"]
    for key in ("error", "note"):
        for text in json.loads(told[f"{key}s"]):
            done({"error": None, "note": None, key: text})


def _lists(sources: Iterator[Source]) -> Iterator[str]:
    """The images in lists of the size of a part, as JSON."""
    while group := [(str(source.path), source.name) for source in islice(sources, PART)]:
        yield json.dumps(group)


def connected(address: str | None) -> Any:
    """Ray, connected to a cluster.

    Args:
        address: see `explain_on_ray`.

    Raises:
        RunError: Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None or _is_of_loopback(address):
        os.environ.setdefault(_LOOPBACK_ALONE, "0")
    try:
        import ray  # noqa: PLC0415 - an extra
        import ray.data  # noqa: PLC0415
    except ImportError as err:
        raise RunError(f"the engine needs Ray: pip install 'xai-insert[ray]' ({err})") from err
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address is None:
            ray.init("local", include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except Exception as err:  # see `_wave`
        raise RunError(f"no Ray cluster answers at {address or 'this machine'}: {last_line(err)}") from err
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray


def _is_of_loopback(address: str) -> bool:
    """Whether a cluster answers on this machine's loopback and nowhere else.

    Raises:
        RunError: nobody answers: Ray would try for a minute, and then end the process.
    """
    if address == "auto":
        return False
    host, port = _host_and_port(address)
    try:
        _answer(host.strip("[]"), port)
    except (OSError, OverflowError) as err:
        raise RunError(f"no Ray cluster answers at {address}: {getattr(err, 'strerror', None) or err}") from err
    if host not in ("127.0.0.1", "localhost"):
        return False
    try:
        _answer(_outer_name(), port)
    except OSError:
        return True
    return False


def _host_and_port(address: str) -> tuple[str, int]:
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not host or not port.isdecimal():
        raise RunError(f"{address!r} is not the address of a Ray cluster: wanted HOST:PORT, ray://HOST:PORT or auto")
    return host, int(port)


def _answer(host: str, port: int) -> None:
    socket.create_connection((host, port), _PATIENCE).close()


def _outer_name() -> str:
    """The address by which other machines know this one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
