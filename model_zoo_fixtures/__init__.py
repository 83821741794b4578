"""Graphs of real exports without their weights, and what must be found in each of them.

``fixtures()`` lists them, ``materialise()`` writes one as a model file with stand-ins for its weights. Only NumPy and,
for ONNX graphs, ``onnx`` are needed. The package is for tests and benchmarks and is not part of the distribution.
"""

from model_zoo_fixtures.catalogue import Fixture, Value, failures, fixtures, materialise

__all__ = ["Fixture", "Value", "failures", "fixtures", "materialise"]
