"""Several models at once, each in a process of its own."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType

from xai_insert.cli.worker import Job, Worker
from xai_insert.report import Report

_INTERVAL = 0.1


class Workers:
    """Does jobs in `count` processes, see `Worker`; a thread of this one waits for each."""

    def __init__(self, count: int, verbose: int, seconds: float | None = None) -> None:
        self._all = [Worker(verbose, seconds) for _ in range(count)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._free.put(worker)

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
        with ThreadPoolExecutor(len(self._all)) as pool:
            futures = [pool.submit(self._do, job) for job in jobs]
            try:
                for future in futures:
                    yield future.result()
            except BaseException as err:  # a signal, say: nobody is to wait for what runs
                for future in futures:
                    future.cancel()
                while wait(futures, _INTERVAL).not_done:
                    self.__exit__(type(err), err, None)
                raise

    def _do(self, job: Job) -> Report:
        worker = self._free.get()
        try:
            return worker(job)
        finally:
            self._free.put(worker)
