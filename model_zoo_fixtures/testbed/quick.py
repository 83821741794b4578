"""Which cases of a long matrix every run takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of a test, all but `quick` for runs with `--long` alone."""
    listed = list(cases)
    assert all(case in listed for case in quick), "a quick case is one of all"
    parts = [case if isinstance(case, tuple) else (case,) for case in listed]
    return [
        pytest.param(*part, marks=() if case in quick else pytest.mark.long)
        for case, part in zip(listed, parts, strict=True)
    ]
