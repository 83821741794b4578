"""A few hundred damaged files, always the same ones; `python -m benchmarks.fuzz` does 20,000."""

from collections import Counter

import pytest

from benchmarks.fuzz import BAD, fuzz

FILES = 200


@pytest.mark.skipif("not __import__('pathlib').Path('/proc/self/clear_refs').exists()", reason="peak memory is Linux's")
def test_damaged_files_end_cleanly():
    outcomes = list(fuzz(range(FILES), 1, bundled=False))
    bad = [f"{case.number} {case.seed} {outcome}" for case, outcome in outcomes if outcome.kind in BAD]
    assert not bad
    counts = Counter(outcome.kind for _, outcome in outcomes)
    assert counts["refused"] > FILES / 3, counts
    assert counts["inserted"] > FILES / 10, counts
