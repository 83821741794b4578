"""A hundred damaged files, always the same ones, the first thirty in every run; `benchmarks.robustness.fuzz` does
30,000."""

from collections import Counter

import pytest

from model_zoo_fixtures.testbed.fuzz.engine import BAD, fuzz
from model_zoo_fixtures.testbed.quick import some

PARTS = (0, 30), (30, 120)
"""The first and one more than the last."""


@pytest.mark.parametrize(("first", "end"), some(PARTS, PARTS[0]))
@pytest.mark.skipif("not __import__('pathlib').Path('/proc/self/clear_refs').exists()", reason="peak memory is Linux's")
def test_damaged_files_end_cleanly(first, end):
    outcomes = list(fuzz(range(first, end), 1, bundled=False))
    bad = [f"{case.number} {case.seed} {outcome}" for case, outcome in outcomes if outcome.kind in BAD]
    assert not bad
    counts = Counter((case.group == "explain", outcome.kind) for case, outcome in outcomes)
    assert counts[False, "refused"] > (end - first) / 3, counts
    assert counts[False, "inserted"] > (end - first) / 15, counts
    assert counts[True, "refused"] > (end - first) / 20, counts
    assert counts[True, "explained"] > (end - first) / 20, counts
