"""`--skip-existing`: a call that goes on where an earlier one stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from xai_insert.cli.worker import Job
from xai_insert.files import printable
from xai_insert.report import Report

_Run = Callable[[Sequence[Job]], Iterator[Report]]


def is_there(goal: Path) -> bool:
    """Whether an output is there. Results are moved into place as a whole, so that half of one never is."""
    return goal.is_file() and (goal.suffix.lower() != ".xml" or goal.with_suffix(".bin").is_file())


class Existing:
    """Leaves out the jobs whose output is there.

    Args:
        jobs: all of a call.
        report: the report of an earlier call, whose entries are kept for these jobs; None if there is none.
    """

    def __init__(self, jobs: Sequence[Job], report: Path | None) -> None:
        self._there = {job.model: job.output for job in jobs if job.output is not None and is_there(job.output)}
        self._earlier = {} if report is None else _earlier(report)

    def beside(self, run: _Run) -> _Run:
        """`run`, which does the other jobs alone; all are reported, in their order."""

        def every(jobs: Sequence[Job]) -> Iterator[Report]:
            done = run([job for job in jobs if job.model not in self._there])
            for job in jobs:
                yield self._left_out(job) if job.model in self._there else next(done)

        return every

    def kept(self, reports: Sequence[Report]) -> list[Report]:
        """The reports to write: what the earlier call said of the jobs that are left out."""
        return [self._kept(report) if Path(report.source) in self._there else report for report in reports]

    def _left_out(self, job: Job) -> Report:
        text = f"{printable(str(self._there[job.model]))} is there"
        return Report(source=str(job.model), lines=(("skipped", text),))

    def _kept(self, report: Report) -> Report:
        earlier = self._earlier.get(report.source)
        return earlier if earlier and earlier.output == str(self._there[Path(report.source)]) else report


def _earlier(path: Path) -> dict[str, Report]:
    """What an earlier report says of models that were written; nothing if it is no report of this version."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = {item.name for item in fields(Report)}
        entries = [entry for entry in json.loads(path.read_bytes())["models"] if set(entry) == known]
        return {entry["source"]: Report(**entry) for entry in entries if entry["error"] is None}
    return {}
