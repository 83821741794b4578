"""A hundred damaged files, always the same ones; `python -m benchmarks.robustness.fuzz` does 30,000."""

from collections import Counter

import pytest

from model_zoo_fixtures.testbed.fuzz.engine import BAD, fuzz

FILES = 120


@pytest.mark.long
@pytest.mark.skipif("not __import__('pathlib').Path('/proc/self/clear_refs').exists()", reason="peak memory is Linux's")
def test_damaged_files_end_cleanly():
    outcomes = list(fuzz(range(FILES), 1, bundled=False))
    bad = [f"{case.number} {case.seed} {outcome}" for case, outcome in outcomes if outcome.kind in BAD]
    assert not bad
    counts = Counter((case.group == "explain", outcome.kind) for case, outcome in outcomes)
    assert counts[False, "refused"] > FILES / 3, counts
    assert counts[False, "inserted"] > FILES / 15, counts
    assert counts[True, "refused"] > FILES / 20, counts
    assert counts[True, "explained"] > FILES / 20, counts
