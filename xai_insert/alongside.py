"""A call in a thread of its own, beside what is done until its result is needed.

Libraries that compile and run models leave Python to others meanwhile, and compile with one processor.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Alongside(Generic[T]):
    """Starts the call when it is made.

    Args:
        call: what to call, once.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._values.append(call())
        except BaseException as err:  # for whoever asks for the result
            self._error = err

    def wait(self) -> None:
        """Wait until the call is over, however it ended."""
        self._thread.join()

    def result(self) -> T:
        """What the call gave or raised; waits for it."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._values[0]
