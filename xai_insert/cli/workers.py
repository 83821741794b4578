"""Several models at once, each in a process of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

from xai_insert.cli.worker import Job, Worker
from xai_insert.report import Report

_INTERVAL = 0.1


class Workers:
    """Does jobs in `count` processes, see `Worker`; a thread of this one waits for each.

    Each has its share of the processor's cores, so that no runtime starts threads for all of them in every process;
    when no job is left for one, the others may use its share. One that has imported a format's libraries does the
    models of that format first.
    """

    def __init__(self, count: int, verbose: int, seconds: float | None = None) -> None:
        self._all = [Worker(verbose, seconds, cores) for cores in _shares(count)]
        self._lock = threading.Lock()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._all:
            worker.__exit__(kind, error, trace)

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Report]:
        """The reports in the order of the jobs, each as soon as it and all before it are there."""
        if len(self._all) == 1:
            yield from map(self._all[0], jobs)
            return
        waiting, done = dict(enumerate(jobs)), [Future[Report]() for _ in jobs]
        with ThreadPoolExecutor(len(self._all)) as pool:
            threads = [pool.submit(self._serve, worker, waiting, done) for worker in self._all]
            try:
                for future in done:
                    yield future.result()
            except BaseException as err:  # a signal, say: nobody is to wait for what runs
                with self._lock:
                    waiting.clear()
                while wait(threads, _INTERVAL).not_done:
                    self.__exit__(type(err), err, None)
                raise

    def _serve(self, worker: Worker, waiting: dict[int, Job], done: Sequence[Future[Report]]) -> None:
        """Let a worker do one job after another until none waits."""
        while (item := self._next(worker, waiting)) is not None:
            number, job = item
            try:
                done[number].set_result(worker(job))
            except BaseException as err:
                done[number].set_exception(err)
        for other in self._all:
            other.may_use(worker.cores)

    def _next(self, worker: Worker, waiting: dict[int, Job]) -> tuple[int, Job] | None:
        """The first job of the format that a worker knows, or the first of all."""
        with self._lock:
            alike = (number for number, job in waiting.items() if job.model.suffix == worker.knows)
            number = next(alike, next(iter(waiting), None))
            return None if number is None else (number, waiting.pop(number))


def _shares(count: int) -> list[frozenset[int]]:
    """The cores of each of so many processes; none where they all have all of them, or the system does not tell."""
    cores = sorted(os.sched_getaffinity(0)) if count > 1 and hasattr(os, "sched_getaffinity") else []
    if len(cores) < count:
        return [frozenset()] * count
    return [frozenset(cores[index::count]) for index in range(count)]
