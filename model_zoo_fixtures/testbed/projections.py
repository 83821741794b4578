"""Transformers whose query, key and value come from the tokens in other ways than one linear layer each."""

import numpy as np

from model_zoo_fixtures.testbed.transformer_models import DEPTH, HEADS, WIDTH, embed, heads_of, linear, mlp, norm


def by_einsum(b, x, equation="bnd,dhk->bhnk"):
    """A projection to heads by one Einsum, with a bias where the heads stand last."""
    x = b.node("Einsum", x, b.weight(WIDTH, HEADS, DEPTH), equation=equation)
    return b.node("Add", x, b.weight(HEADS, DEPTH)) if equation.endswith("hk") else x


def of_heads(b, q, k, v, *, turned=None):
    """Attention of `[N, heads, T, d]`; `turned` is the query before a product that the scores are the transpose of."""
    if turned is None:
        scores = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
    else:
        scores = b.node("Transpose", b.node("MatMul", k, turned), perm=[0, 1, 3, 2])
    z = b.node("Transpose", b.node("MatMul", b.node("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    return linear(b, b.node("Reshape", z, b.const(np.array([0, 0, WIDTH]))), WIDTH, WIDTH)


def of_heads_last(b, x, *, key_first=False):
    """Attention of `[N, T, heads, d]` by Einsums all through: Flax, or Keras, whose scores name the key first."""
    q, k, v = (by_einsum(b, x, "bnd,dhk->bnhk") for _ in range(3))
    operands, equation = ((k, q), "aecd,abcd->acbe") if key_first else ((q, k), "bqhd,bkhd->bhqk")
    shares = b.node("Softmax", b.node("Einsum", *operands, equation=equation), axis=-1)
    z = b.node("Einsum", shares, v, equation="acbe,aecd->abcd")
    return b.node("Add", b.node("Einsum", z, b.weight(HEADS, DEPTH, WIDTH), equation="bqhd,hde->bqe"), b.weight(WIDTH))


def weights_first(b, x):
    """Query and key by products with weights that stand left, `[N, D, T]`."""
    turned = b.node("Transpose", x, perm=[0, 2, 1])
    shape = b.const(np.array([0, HEADS, DEPTH, -1]))
    q, k = (b.node("Reshape", b.node("MatMul", b.weight(WIDTH, WIDTH), turned), shape) for _ in range(2))
    return of_heads(b, None, b.node("Transpose", k, perm=[0, 1, 3, 2]), by_einsum(b, x), turned=q)


def turned_scores(b, x):
    q, k, v = (heads_of(b, linear(b, x, WIDTH, WIDTH)) for _ in range(3))
    return of_heads(b, None, k, v, turned=b.node("Transpose", q, perm=[0, 1, 3, 2]))


PROJECTED = {
    "heads by einsum": lambda b, x: of_heads(b, *(by_einsum(b, x) for _ in range(3))),
    "einsum, weights first": lambda b, x: of_heads(
        b, *(b.node("Einsum", b.weight(WIDTH, HEADS, DEPTH), x, equation="dhk,bnd->bhnk") for _ in range(3))
    ),
    "flax": of_heads_last,
    "keras": lambda b, x: of_heads_last(b, x, key_first=True),
    "keys and values as they are": lambda b, x: of_heads(
        b, heads_of(b, linear(b, x, WIDTH, WIDTH)), heads_of(b, x), heads_of(b, x)
    ),
    "tokens as they are": lambda b, x: of_heads(b, *[heads_of(b, x)] * 3),
    "one projection": lambda b, x: of_heads(b, *[by_einsum(b, x)] * 3),
    "weights first": weights_first,
    "turned scores": turned_scores,
    "turned query": lambda b, x: of_heads(
        b, None, by_einsum(b, x), by_einsum(b, x), turned=by_einsum(b, x, "bnd,dhk->bhkn")
    ),
}
"""Attention by the ways in which query, key and value come from the tokens behind the block's norm."""


def projected(name, mask=None):
    """Two blocks of one way; `mask` multiplies what the definition masks."""

    def network(b):
        x = embed(b, 1)
        for place in (mask if last else None for last in (False, True)):
            y = norm(b, x)
            y = y if place is None else b.node("Mul", y, place)
            x = b.node("Add", x, PROJECTED[name](b, y))
            x = b.node("Add", x, mlp(b, norm(b, x)))
        return b.linear(b.node("Gather", norm(b, x), b.const(np.array(0)), axis=1), WIDTH)

    return network
