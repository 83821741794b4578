"""Heads with an operator that the toolkit does not know, each mixing other axes."""

import numpy as np

from model_zoo_fixtures.testbed import models


def head(change):
    """A classifier whose pooled vector goes through `change`."""

    def network(b):
        pooled = b.node("Flatten", b.node("GlobalAveragePool", b.backbone()))
        return b.linear(change(b, pooled), models.CHANNELS)

    return network


UNKNOWN = {
    "sums along the batch": lambda b, x: b.node("CumSum", x, b.const(np.array(0))),
    "sums along the channels": lambda b, x: b.node("CumSum", x, b.const(np.array(1))),
    "norm over the batch": lambda b, x: b.node("LpNormalization", x, axis=0, p=2),
    "norm over the absolute channels": lambda b, x: b.node("LpNormalization", x, axis=1, p=1),
    "one of the channels": lambda b, x: b.node("Add", x, b.node("Hardmax", x, axis=1)),
}
