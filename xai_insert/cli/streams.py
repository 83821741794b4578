"""Ends of a run that are nobody's fault here: a signal, a full disk behind stdout, a reader that has gone."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

import click

from xai_insert.files import printable

EXIT_FAILED = 1
"""The exit code of a run in which something failed; 2 is wrong usage."""
_SIGNALLED = 128


class Refused(click.ClickException):
    """Wrong usage that one line says all about."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        del file
        say(f"error: {self.format_message()}", err=True)


def open_streams() -> None:
    """Have all three streams: a file opened later must not get the number of one that the caller closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none, or one of a test
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names need not be text


def say(text: str, *, err: bool = False) -> str | None:
    """Print lines of text; whoever reads may have gone.

    Returns:
        Why that failed; None if it did not, or if the reader wants no more (`| head`), which is no failure of the run.
    """
    lines = text.split("\n")  # names may hold what steers a terminal
    try:
        click.echo("\n".join(map(printable, lines)), err=err)
    except OSError as failure:
        _discard(sys.stderr if err else sys.stdout)
        return None if failure.errno == errno.EPIPE else failure.strerror or str(failure)
    return None


def _discard(stream: object) -> None:
    """Send what a broken stream still holds, and is given from now on, nowhere: Python would fail again at its end."""
    with suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[attr-defined]
        os.close(nowhere)


class _TerminatedError(BaseException):
    """SIGTERM has come."""


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise _TerminatedError


@contextmanager
def signals_end_cleanly() -> Iterator[None]:
    """Unwind on SIGTERM as on Ctrl-C, so that nothing half-done is left; exit with the shell's code for the signal."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if here else None
    try:
        yield
    except KeyboardInterrupt:
        say("error: interrupted", err=True)
        sys.exit(_SIGNALLED + signal.SIGINT)
    except _TerminatedError:
        say("error: terminated", err=True)
        sys.exit(_SIGNALLED + signal.SIGTERM)
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def decoders_kept_quiet() -> Iterator[None]:
    """Keep what native decoders print about damaged pictures off the terminal; our own lines still get there."""
    stream = sys.stderr
    try:
        kept = os.dup(stream.fileno())
    except (AttributeError, OSError, ValueError):  # no stream of the system's
        yield
        return
    try:
        sys.stderr = os.fdopen(os.dup(kept), "w", encoding=stream.encoding, errors=stream.errors, buffering=1)
        _discard(stream)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        with suppress(OSError):
            sys.stderr.close()
        sys.stderr = stream
        os.dup2(kept, stream.fileno())
        os.close(kept)


def ended(trouble: str | None, failed: object) -> int:
    """The exit code of a run, with what kept the standard output from being written said on the other."""
    if trouble is not None:
        say(f"error: cannot write to the standard output: {trouble}", err=True)
    return EXIT_FAILED if trouble is not None or failed else 0


def tallied(counts: Mapping[str, int]) -> str:
    """`5 drawn, 1 not readable`: the first as it is, the others where there are any."""
    (first, count), *others = counts.items()
    return ", ".join([f"{count} {first}", *(f"{number} {word}" for word, number in others if number)])
