"""What a saliency method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from xai_insert.errors import TargetNotFoundError, XaiInsertError
from xai_insert.locate.classifier import Wanted
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.plan import Plan


@dataclass(frozen=True)
class Refusal:
    """Why a method does not fit what was found.

    Attributes:
        reason: what was wanted and what was found.
        error: the class of the error to say it with, if no other method fits.
    """

    reason: str
    error: type[XaiInsertError] = TargetNotFoundError


class Method(ABC):
    """A method; each is a file in `xai_insert/methods/named` that registers one as `METHOD`, under the file's name.

    Attributes:
        summary: what its map shows, in one line.
        paper: where it was published, or what it is after; empty if nowhere.
        page: its page in `docs/methods`.
        tasks: the tasks (names in `xai_insert/tasks/known`) whose models it may fit.
        options: those options that it may go by, beside those that every method does.
        excludes: options that contradict it, and what to say if they are set.
        reads: what a classifier is located for.
        lacking: what to say of a model without what the method reads, instead of the tasks' reasons; empty for those.
    """

    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    page: ClassVar[str]
    tasks: ClassVar[frozenset[str]]
    options: ClassVar[frozenset[str]] = frozenset()
    excludes: ClassVar[Mapping[str, str]] = {}
    reads: ClassVar[Wanted] = Wanted.MAP
    lacking: ClassVar[str] = ""

    @abstractmethod
    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        """How the method's map of what was found is to be made, or why it cannot be.

        Raises:
            XaiInsertError: the method fits, and something that it needs is in the way or left open.
        """
