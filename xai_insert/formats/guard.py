"""Where the content of a file is taken apart: whatever a damaged one raises there becomes one error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xai_insert.errors import ModelFileError, XaiInsertError
from xai_insert.graph.view import Graph

# What OpenVINO raises: the second where the name in its message is no text.
RAISED = (RuntimeError, UnicodeError)
_LARGEST = 1 << 40


@contextmanager
def taking_apart(what: str) -> Iterator[None]:
    """Report any exception as damage to `what`: format libraries and NumPy raise many kinds on inconsistent content.

    Raises:
        ModelFileError: the content contradicts itself.
    """
    try:
        yield
    except XaiInsertError:
        raise
    except Exception as err:
        reason = (str(err).strip().splitlines() or [""])[0][:200]
        raise ModelFileError(f"{what} is damaged: {type(err).__name__}: {reason}") from err


def first_line(err: Exception) -> str:
    """The first line of an error message."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0] if lines else type(err).__name__


def last_line(err: Exception) -> str:
    """The line of an OpenVINO error that says what is wrong: the last one, after the trace of source files."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    last = lines[-1] if lines else type(err).__name__
    return "it takes more memory than there is for a file of its size" if last == "std::bad_alloc" else last


def moderate(graph: Graph) -> Graph:
    """The graph, if no size in it is out of this world: products of such sizes overflow in every library.

    Raises:
        ModelFileError: naming the value.
    """
    for value in graph.values:
        if any(size is not None and not 0 <= size <= _LARGEST for size in value.shape or ()):
            raise ModelFileError(f"{value.describe()} declares a size that no machine holds; is the file whole?")
    return graph
