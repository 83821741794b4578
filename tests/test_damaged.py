"""Models that contradict themselves, as the fuzzer found them: each is refused in words of ours."""

import pytest

from tests import models
from xai_insert import errors, insert

CHANNELS = models.CHANNELS


def test_a_grid_without_channels():
    """The mean over channels, then over the grid."""
    b = models.Builder()
    grid = b.node("ReduceMean", b.backbone(), axes=[1], keepdims=0)
    mean = b.node("ReduceMean", grid, axes=[1, 2], keepdims=0)
    scores = b.linear(b.node("Unsqueeze", mean, b.const([1])), 1)
    with pytest.raises(errors.XaiInsertError, match="channels"):
        insert(b.model(scores))
