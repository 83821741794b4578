"""Errors a user can act on. Each message says what was wanted, what was found and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class XaiInsertError(Exception):
    """Base of every error the toolkit raises on purpose."""


class ModelFileError(XaiInsertError):
    """A model file is missing, damaged, of an unknown kind, or cannot be written."""


class AlreadyInsertedError(XaiInsertError):
    """The model already carries a saliency map."""


class NotInsertedError(XaiInsertError):
    """The model carries no saliency map that could be verified or taken off."""


class NotVisionModelError(XaiInsertError):
    """The model has no image input that its outputs depend on."""


class UnsupportedTaskError(XaiInsertError):
    """The model is not of a kind that the toolkit can explain."""


class AmbiguousModelError(XaiInsertError):
    """Several values fit equally well; an option decides between them."""


class TargetNotFoundError(XaiInsertError):
    """No value of the model can be the boundary between backbone and head."""


class UnknownNameError(XaiInsertError):
    """A node or output name given by the user does not occur in the model."""

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = list(known)
        nearest = get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
        listed = ", ".join(repr(item) for item in nearest) or "none"
        super().__init__(f"no {what} is named {name!r}; nearest: {listed}{hint}")


class ShapeUnknownError(XaiInsertError):
    """A size that the insertion needs is not known; `--input-shape` supplies it."""


class UnusedOptionError(XaiInsertError):
    """Options were set that do nothing for this model.

    Attributes:
        options: their names, as in `Options`.
    """

    def __init__(self, flags: Mapping[str, str], method: str) -> None:
        self.options = tuple(sorted(flags))
        listed = " and ".join(flags[name] for name in self.options)
        them = "it" if len(self.options) == 1 else "them"
        super().__init__(f"{listed} would do nothing for this model, whose method is {method}; leave {them} out")


class CheckFailedError(XaiInsertError):
    """The inserted model does not behave as promised, so nothing is written."""


class TimeLimitError(CheckFailedError):
    """A single run of the plain model does not end in reasonable time."""

    @classmethod
    def after(cls, seconds: float | None) -> TimeLimitError:
        """The error for a run that was broken off."""
        return cls(f"the model did not finish one image in {seconds or 0:g} s; --no-check inserts without running it")


class DefinitionError(CheckFailedError):
    """The saliency map is not what its definition says."""


class CannotFreeBatchError(XaiInsertError):
    """A head mixes its batch axis with others, so it cannot run once per position as rows."""


class NoDerivativeError(XaiInsertError):
    """An operator between the target and the scores has no rule for its derivative."""


class MisplacedMapError(XaiInsertError):
    """The cells of a map lie elsewhere in the image than the map says."""


def reason(err: OSError) -> object:
    """What the system says of a failure."""
    return err.strerror or err
