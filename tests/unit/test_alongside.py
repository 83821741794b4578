"""A call beside others gives what it gave, or raises what it raised, as often as it is asked."""

import threading

import pytest

from xai_insert.alongside import Alongside


def test_call_runs_while_others_do_and_gives_its_result():
    asked = threading.Event()
    call = Alongside(lambda: asked.wait(10))
    asked.set()
    assert call.result() is True
    assert call.result() is True


def test_error_is_kept_for_whoever_asks():
    call = Alongside(lambda: int("no number"))
    call.wait()
    for _ in range(2):
        with pytest.raises(ValueError, match="no number"):
            call.result()
