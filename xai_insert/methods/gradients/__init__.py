"""Exact gradients inside an inference graph: reverse mode, one rule for each operator.

An inference graph has no automatic differentiation; but the derivative of a part of it is a graph as well, written
with the forward values that are there already.
"""
