"""Transformers built by hand, in the forms in which exporters write attention, class tokens and heads."""

import numpy as np

from model_zoo_fixtures.testbed import models

WIDTH, HEADS, DEPTH = 8, 2, 4  # D, heads, and size of one head


GRID = (4, 6)


def embed(b, prefix):
    """Patches of a 2-strided convolution behind `prefix` learned tokens, with positions: `[N, T, D]`."""
    x = b.node("Conv", "image", b.weight(WIDTH, 3, 2, 2), strides=[2, 2])
    x = b.node("Transpose", b.node("Reshape", x, b.const(np.array([0, WIDTH, -1]))), perm=[0, 2, 1])
    return with_prefix(b, x, prefix)


def with_prefix(b, x, prefix):
    """`[N, P, D]` behind learned tokens, with positions."""
    batch = b.node("Gather", b.node("Shape", "image"), b.const(np.array([0])), axis=0)
    shape = b.node("Concat", batch, b.const(np.array([prefix, WIDTH])), axis=0)
    first = b.node("Expand", b.weight(1, prefix, WIDTH), shape)
    x = b.node("Concat", first, x, axis=1) if prefix else x
    return b.node("Add", x, b.weight(1, prefix + GRID[0] * GRID[1], WIDTH))


def resized_table(b, grid, width=WIDTH):
    """A learned table of 4x6 places, resized to the sides of a map: `[1, T, width]`, as DINOv2 has its positions."""
    sides = b.node("Slice", b.node("Shape", grid), b.const(np.array([2])), b.const(np.array([4])))
    sizes = b.node("Concat", b.const(np.array([1, width])), sides, axis=0)
    table = b.node("Resize", b.weight(1, width, *GRID, scale=1), "", "", sizes, mode="cubic")
    return b.node("Transpose", b.node("Reshape", table, b.const(np.array([0, width, -1]))), perm=[0, 2, 1])


def embed_any(b, prefix):
    """Patches of 16 pixels of an image of any size, behind `prefix` learned tokens."""
    grid = b.node("Conv", "image", b.weight(WIDTH, 3, 16, 16, scale=0.1), strides=[16, 16])
    x = b.node("Transpose", b.node("Reshape", grid, b.const(np.array([0, WIDTH, -1]))), perm=[0, 2, 1])
    x = b.node("Add", x, resized_table(b, grid))
    batch = b.node("Gather", b.node("Shape", "image"), b.const(np.array([0])), axis=0)
    shape = b.node("Concat", batch, b.const(np.array([prefix, WIDTH])), axis=0)
    return b.node("Concat", b.node("Expand", b.weight(1, prefix, WIDTH), shape), x, axis=1) if prefix else x


def embed_cut(b, prefix):
    """TNT: patches are cut out behind the convolution."""
    x = b.node("Conv", "image", b.weight(2, 3, 3, 3), pads=[1] * 4)
    x = b.node("Reshape", x, b.const(np.array([0, 2, GRID[0], 2, GRID[1], 2])))
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 4, 1, 3, 5]), b.const(np.array([0, 24, 8])))
    return with_prefix(b, linear(b, x, 8, WIDTH), prefix)


def embed_image(b, prefix):
    """vit-pytorch: patches are cut out of the image, and a linear layer embeds them."""
    x = b.node("Reshape", "image", b.const(np.array([0, 3, GRID[0], 2, GRID[1], 2])))
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 4, 3, 5, 1]), b.const(np.array([0, 24, 12])))
    return with_prefix(b, linear(b, norm(b, x, 12), 12, WIDTH), prefix)


def norm(b, x, width=WIDTH):
    return b.node("LayerNormalization", x, b.weight(width, scale=1), b.weight(width), axis=-1)


def linear(b, x, inner, outer, bias=True):
    x = b.node("MatMul", x, b.weight(inner, outer))
    return b.node("Add", x, b.weight(outer)) if bias else x


def heads_of(b, x):
    x = b.node("Reshape", x, b.const(np.array([0, 0, HEADS, DEPTH])))
    return b.node("Transpose", x, perm=[0, 2, 1, 3])


def in_batch(b, x, tokens):
    """Heads side by side in the batch, of which the model does not say how long it is (older exports of CLIP)."""
    return b.node("Reshape", x, b.const(np.array([-1, tokens, DEPTH])))


def attention_in_batch(b, x, tokens, *, key_norm):
    q, k, v = (in_batch(b, heads_of(b, linear(b, x, WIDTH, WIDTH)), tokens) for _ in range(3))
    if key_norm:
        q, k = norm(b, q, DEPTH), norm(b, k, DEPTH)
    shares = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 1])), axis=-1)
    x = b.node("Reshape", b.node("MatMul", shares, v), b.const(np.array([-1, HEADS, tokens, DEPTH])))
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1, 3]), b.const(np.array([0, 0, WIDTH])))
    return linear(b, x, WIDTH, WIDTH)


def attention(
    b, x, tokens, *, fused=False, key_norm=False, key_bias=True, pair_bias=False, talking=False, class_only=False,
    bound=None,
):  # fmt: skip
    source = x
    if class_only:
        source = b.node("Slice", x, *(b.const(np.array([n])) for n in (0, 1, 1)))
    if fused:
        qkv = linear(b, x, WIDTH, 3 * WIDTH)
        qkv = b.node("Reshape", qkv, b.const(np.array([0, 0, 3, HEADS, DEPTH])))
        qkv = b.node("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = (b.node("Gather", qkv, b.const(np.array(i)), axis=0) for i in range(3))
    else:
        q = heads_of(b, linear(b, source, WIDTH, WIDTH))
        k = heads_of(b, linear(b, x, WIDTH, WIDTH, key_bias))
        v = heads_of(b, linear(b, x, WIDTH, WIDTH))
    if key_norm:
        q, k = norm(b, q, DEPTH), norm(b, k, DEPTH)
    if bound is not None:
        k, v = (b.node("Clip", x, *(b.const(np.array(end, b.dtype)) for end in (-bound, bound))) for x in (k, v))
    scores = b.node(
        "MatMul", b.node("Mul", q, b.const(np.array(0.7, b.dtype))), b.node("Transpose", k, perm=[0, 1, 3, 2])
    )
    if pair_bias:
        scores = b.node("Add", scores, b.weight(1, HEADS, tokens, tokens, scale=1))
    if talking:
        scores = mixed(b, scores, is_normed=False)
    shares = b.node("Softmax", scores, axis=-1)
    if talking:
        shares = mixed(b, shares, is_normed=talking == "normed")
    x = b.node("Transpose", b.node("MatMul", shares, v), perm=[0, 2, 1, 3])
    return linear(b, b.node("Reshape", x, b.const(np.array([0, 0, WIDTH]))), WIDTH, WIDTH)


def mixed(b, x, *, is_normed):
    """Heads mixed by a linear layer, which a norm may follow (DeepViT)."""
    x = linear(b, b.node("Transpose", x, perm=[0, 2, 3, 1]), HEADS, HEADS)
    return b.node("Transpose", norm(b, x, HEADS) if is_normed else x, perm=[0, 3, 1, 2])


def mlp(b, x):
    return linear(b, b.node("Tanh", linear(b, x, WIDTH, 2 * WIDTH)), 2 * WIDTH, WIDTH)


def block(b, x, tokens, **kind):
    x = b.node("Add", x, attention(b, norm(b, x), tokens, **kind))
    return b.node("Add", x, mlp(b, norm(b, x)))


def transformer(prefix=1, rows=1, last=block, start=embed, **kind):
    tokens = prefix + GRID[0] * GRID[1]

    def network(b):
        x = last(b, block(b, start(b, prefix), tokens), tokens, **kind)
        x = norm(b, x)
        scores = None
        for row in range(rows):
            head = b.linear(b.node("Gather", x, b.const(np.array(row)), axis=1), WIDTH)
            scores = head if scores is None else b.node("Add", scores, head)
        return scores

    return network


def block_in_batch(b, x, tokens, *, key_norm=False):
    x = b.node("Add", x, attention_in_batch(b, norm(b, x), tokens, key_norm=key_norm))
    return b.node("Add", x, mlp(b, norm(b, x)))


def attention_first(b, x, tokens):
    """Tokens before the images, `[T, N, D]`, with the heads of each image in one axis: PyTorch's own, by default."""

    def apart(part):
        return b.node("Transpose", b.node("Reshape", part, b.const(np.array([tokens, -1, DEPTH]))), perm=[1, 0, 2])

    q, k, v = (apart(linear(b, x, WIDTH, WIDTH)) for _ in range(3))
    shares = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 1])), axis=-1)
    z = b.node("Transpose", b.node("MatMul", shares, v), perm=[1, 0, 2])
    return linear(b, b.node("Reshape", z, b.const(np.array([tokens, -1, WIDTH]))), WIDTH, WIDTH)


def tokens_first(head=None):
    """Two blocks on tokens before images, as in CLIP and `nn.TransformerEncoder`; behind them the images lead again."""

    def network(b):
        x = b.node("Transpose", embed(b, 1), perm=[1, 0, 2])
        for _ in range(2):
            x = b.node("Add", x, attention_first(b, norm(b, x), 25))
            x = b.node("Add", x, mlp(b, norm(b, x)))
        x = norm(b, b.node("Transpose", x, perm=[1, 0, 2]))
        return b.linear(b.node("Gather", x, b.const(np.array(0)), axis=1), WIDTH) if head is None else head(b, x)

    return network


def pooled_first(b):
    """The mean of tokens that stand before the images."""
    x = b.node("Transpose", embed(b, 0), perm=[1, 0, 2])
    x = b.node("Add", x, attention_first(b, norm(b, x), 24))
    return b.linear(b.node("ReduceMean", norm(b, x), axes=[0], keepdims=0), WIDTH)


def bare_block(b, x, tokens, **kind):
    """Keys and values are made of the tokens without a norm, so that loud images have large ones."""
    x = b.node("Add", x, attention(b, x, tokens, **kind))
    return b.node("Add", x, mlp(b, norm(b, x)))


def parallel_block(b, x, tokens, **kind):
    """Attention and MLP side by side on one norm."""
    y = norm(b, x)
    return b.node("Add", b.node("Add", x, attention(b, y, tokens, **kind)), mlp(b, y))


def two_attentions(b, x, tokens, **kind):
    """Two attentions side by side, as in the parallel ViTs."""
    y = norm(b, x)
    both = b.node("Add", attention(b, y, tokens, **kind), attention(b, y, tokens, **kind))
    x = b.node("Add", x, both)
    return b.node("Add", x, mlp(b, norm(b, x)))


def class_block(b, x, tokens, **kind):
    """CaiT: only the class token attends; it is put back before the patches."""
    first, patches = parted(b, x)
    first = b.node("Add", first, attention(b, norm(b, x), tokens, class_only=True, **kind))
    first = b.node("Add", first, mlp(b, norm(b, first)))
    return b.node("Concat", first, patches, axis=1)


def wide_block(b, x, tokens):
    """Query, key, value and the MLP's hidden layer from one linear layer, wider than query, key and value."""
    y = linear(b, norm(b, x), WIDTH, 5 * WIDTH)
    qkv, hidden = b.node("Split", y, b.const(np.array([3 * WIDTH, 2 * WIDTH])), axis=2, outputs=2)
    parts = b.node("Split", qkv, b.const(np.array([WIDTH] * 3)), axis=2, outputs=3)
    q, k, v = (heads_of(b, part) for part in parts)
    shares = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    z = b.node("Transpose", b.node("MatMul", shares, v), perm=[0, 2, 1, 3])
    z = b.node("Reshape", z, b.const(np.array([0, 0, WIDTH])))
    return b.node("Add", x, linear(b, b.node("Concat", z, b.node("Tanh", hidden), axis=2), 3 * WIDTH, WIDTH))


def einsum_block(b, x, tokens, *, key_first=False):
    """Products written as Einsum, as Keras and networks with `torch.einsum` have them."""
    y = norm(b, x)
    apart = b.const(np.array([0, 0, HEADS, DEPTH]))
    q, k, v = (b.node("Reshape", linear(b, y, WIDTH, WIDTH), apart) for _ in range(3))
    operands, equation = ((k, q), "bsnh,btnh->bnts") if key_first else ((q, k), "btnh, bsnh -> bnts")
    scores = b.node("Mul", b.node("Einsum", *operands, equation=equation), b.const(np.array(0.7, b.dtype)))
    z = b.node("Einsum", b.node("Softmax", scores, axis=-1), v, equation="bnts,bsnh->btnh")
    x = b.node("Add", x, linear(b, b.node("Reshape", z, b.const(np.array([0, 0, WIDTH]))), WIDTH, WIDTH))
    return b.node("Add", x, mlp(b, norm(b, x)))


def pool(prefix):
    """Attention with a learned query over all tokens, as in SigLIP."""

    def network(b):
        x = norm(b, block(b, embed(b, prefix), prefix + GRID[0] * GRID[1]))
        query = b.weight(1, HEADS, 1, DEPTH, scale=1)
        k, v = (heads_of(b, linear(b, x, WIDTH, WIDTH)) for _ in range(2))
        shares = b.node("Softmax", b.node("MatMul", query, b.node("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
        z = b.node("Transpose", b.node("MatMul", shares, v), perm=[0, 2, 1, 3])
        z = linear(b, b.node("Reshape", z, b.const(np.array([0, 1, WIDTH]))), WIDTH, WIDTH)
        z = b.node("Add", z, mlp(b, norm(b, z)))
        return b.linear(b.node("Gather", z, b.const(np.array(0)), axis=1), WIDTH)

    return network


def parted(b, x):
    """The class token `[N, 1, D]` and the patches."""
    return tuple(
        b.node("Slice", x, *(b.const(np.array([n])) for n in (start, end, 1))) for start, end in [(0, 1), (1, 99)]
    )


def token_labels(b, x):
    """VOLO: the best score of the patches is added."""
    first, patches = parted(b, x)
    best = b.node("ReduceMax", linear(b, patches, WIDTH, models.CLASSES), axes=[1], keepdims=0)
    first = b.node("Squeeze", first, b.const(np.array([1])))
    return b.node("Add", b.linear(first, WIDTH), b.node("Mul", best, b.const(np.array(0.5, b.dtype))))


def class_and_mean(b, x):
    """DINOv2 with a linear head: the mean of the patches is joined."""
    first, patches = parted(b, x)
    first = b.node("Squeeze", first, b.const(np.array([1])))
    return b.linear(b.node("Concat", first, b.node("ReduceMean", patches, axes=[1], keepdims=0), axis=1), 2 * WIDTH)


def reading(head, class_only, mask=None):
    """A head that reads the class token and the patches; `mask` multiplies what the definition masks."""

    def network(b):
        x = block(b, embed(b, 1), 25)
        y = norm(b, x)
        if mask is not None:
            x, y = b.node("Mul", x, mask), b.node("Mul", y, mask)
        first, patches = parted(b, x) if class_only else (x, None)
        first = b.node("Add", first, attention(b, y, 25, class_only=class_only))
        first = b.node("Add", first, mlp(b, norm(b, first)))
        x = b.node("Concat", first, patches, axis=1) if class_only else first
        return head(b, norm(b, x))

    return network


READERS = {"token labels": (token_labels, True), "class and mean": (class_and_mean, False)}


CLOSED = {
    "plain": transformer(),
    "cut-out patches": transformer(start=embed_cut),
    "patches of the image": transformer(start=embed_image),
    "fused projection": transformer(fused=True),
    "registers": transformer(prefix=5),
    "distilled": transformer(prefix=2, rows=2),
    "key norm": transformer(key_norm=True),
    "no key bias": transformer(key_bias=False),
    "pair bias": transformer(pair_bias=True),
    "heads in the batch": transformer(last=block_in_batch),
    "heads in the batch, key norm": transformer(last=block_in_batch, key_norm=True),
    "distilled, heads in the batch": transformer(prefix=2, rows=2, last=block_in_batch),
    "talking heads": transformer(talking=True),
    "talking heads, normed": transformer(talking="normed"),
    "distilled, pair bias": transformer(prefix=2, rows=2, pair_bias=True),
    "distilled, key norm": transformer(prefix=2, rows=2, key_norm=True),
    "parallel": transformer(last=parallel_block),
    "two attentions": transformer(last=two_attentions),
    "class attention": transformer(last=class_block),
    "wide projection": transformer(last=wide_block),
    "einsum": transformer(last=einsum_block),
    "einsum, key first": transformer(last=einsum_block, key_first=True),
}


def weights(prefix, kernel="gaussian", grid=GRID):
    """What each token keeps in each masked sample, by the definition: `[patches, tokens]`."""
    patches = grid[0] * grid[1]
    if kernel == "point":
        around = np.eye(patches)
    else:
        around = np.zeros((patches, patches))
        for i in range(patches):
            for j in range(patches):
                dy, dx = abs(i // grid[1] - j // grid[1]), abs(i % grid[1] - j % grid[1])
                around[i, j] = [[4, 2], [2, 1]][dy][dx] / 16 if max(dy, dx) < 2 else 0
    return np.concatenate([np.ones((patches, prefix)), around], axis=1).astype(np.float32)
