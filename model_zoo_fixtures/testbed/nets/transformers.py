"""Transformers with class tokens and registers: read at a class token, or by means over patches or all tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model_zoo_fixtures.testbed.nets.bodies import attention, prefixed, to_tokens
from model_zoo_fixtures.testbed.nets.graph import Feature, Net
from model_zoo_fixtures.testbed.nets.heads import HEADS


def head(net: Net, x: Feature, classes: int) -> str:
    """Prefix and suffix tokens, a position, blocks, a norm, a way to read them, and scores."""
    kind = net.pick(["class", "class", "class", "distilled", "class and mean", "patches", "patches", "all"])
    before, behind = net.pick([(1, 0), (1, 0), (2, 0), (5, 0)])
    if kind in ("patches", "all") and net.chance(0.3):
        before, behind = net.pick([(0, 1), (1, 2)])
    if kind == "distilled":
        before, behind = 2, 0
    net.tag(f"tokens {kind}")
    tokens = prefixed(net, to_tokens(net, x), before, behind)
    tokens = net.point(tokens, "Add", net.bias(1, *tokens.shape[1:], gain=0.5))
    if net.chance(0.5):
        tokens = attention(net, tokens)
    reads_class = kind in ("class", "distilled", "class and mean")
    tokens = attention(net, tokens, mask=reads_class)
    if not reads_class:
        net.keep(tokens)
    tokens = net.norm(tokens)
    vector = _read(net, tokens, kind, before, behind)
    if kind == "distilled":
        both = [net.linear(part, tokens.shape[2], classes) for part in vector]
        return net.node("Mul", net.node("Add", *both), net.scalar(0.5))
    chosen = net.pick(HEADS)
    net.tag(f"head {chosen.__name__}")
    return chosen(net, (vector[0], tokens.shape[2] * (2 if kind == "class and mean" else 1)), classes)


def _read(net: Net, tokens: Feature, kind: str, before: int, behind: int) -> list[str]:
    count = tokens.shape[1]
    if kind == "all":
        net.keep(tokens)
        net.trunk.extend([replace(target, keeps_others=False) for target in net.trunk])
        return [net.reduce("ReduceMean", tokens.name, [1])]
    if kind == "patches":
        net.keep(tokens)
        patches = net.cut(tokens, 1, before, count - behind)
        net.keep(patches)
        return [net.reduce("ReduceMean", patches.name, [1])]
    if kind == "distilled":
        return [_token(net, tokens, 0), _token(net, tokens, 1)]
    first = _token(net, tokens, 0)
    if kind == "class":
        return [first]
    mean = net.reduce("ReduceMean", net.cut(tokens, 1, before, count).name, [1])
    return [net.node("Concat", first, mean, axis=1)]


def _token(net: Net, tokens: Feature, index: int) -> str:
    if net.chance(0.5):
        return net.node("Gather", tokens.name, net.const(np.int64(index)), axis=1)
    one = net.node("Slice", tokens.name, net.ints(index), net.ints(index + 1), net.ints(1))
    return net.node("Squeeze", one, net.ints(1))
