"""Train and export the small vision transformer ``shapes_vit``.

Run from the repository root: ``python -m model_zoo_fixtures.shapes.train_vit``.

A transformer of this size learns little from image labels alone in a few minutes. Three things help:

* the patch tokens come from a short residual network instead of a single convolution (a hybrid transformer),
* the learned position embedding starts from sines and cosines, so that neighbours can find each other at once,
* an auxiliary loss asks the patch tokens in front of the last block which shape they show. Its head is not part of
  the exported model, which is a pre-norm transformer with a class token.

After this first stage, the class token knows the answer before the last block, so masking patches there changes next
to nothing and ViT Recipro-CAM points at the target in only two images of three. A second stage therefore trains the
last block and the head alone, on tokens with parts removed, until they draw on the patches.
"""

from __future__ import annotations

from multiprocessing import Pool

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model_zoo_fixtures.shapes import training
from model_zoo_fixtures.shapes.dataset import CLASS_NAMES, HELD_OUT_SEED, IMAGE_SIZE, classification_scene
from model_zoo_fixtures.shapes.train_cnn import ResidualBlock

PATCH = 8
GRID = IMAGE_SIZE // PATCH
BACKGROUND = len(CLASS_NAMES)
# A patch counts as showing a shape when at least this share of its pixels belongs to it.
MIN_COVERAGE = 0.25
# Second stage: how often the class token is reset, and how often patches are removed.
RESET_PROBABILITY = 0.7
WINDOW_PROBABILITY = 0.6


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys, and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[N, T, D]`` to ``[N, T, D]``."""
        n_images, n_tokens, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(n_images, n_tokens, 3, self.heads, dim // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(n_images, n_tokens, dim))
        return projected


class Block(nn.Module):
    """Pre-norm transformer block: attention and a two-layer perceptron, both with a residual connection."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[N, T, D]`` to ``[N, T, D]``."""
        tokens = tokens + self.attn(self.norm1(tokens))
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


def sine_positions(dim: int) -> Tensor:
    """Return sines and cosines of row and column at several wavelengths, ``[GRID * GRID, dim]``, in -1..1."""
    wavelengths = 2.0 * GRID ** torch.linspace(1.0, 0.2, dim // 4)
    angles = 2.0 * torch.pi * torch.arange(GRID)[:, None] / wavelengths
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, GRID, -1), waves[None].expand(GRID, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class ShapesVit(nn.Module):
    """Vision transformer for 96x96 images: 12x12 patch tokens behind one class token.

    Args:
        dim: Width of a token.
        depth: Number of blocks.
        heads: Attention heads per block.
        mlp_ratio: Hidden width of the perceptrons as a multiple of ``dim``.
    """

    def __init__(self, dim: int = 64, depth: int = 4, heads: int = 4, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.normalise = training.Normalise()
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, dim // 4, 3, 2, 1, bias=False),
            nn.BatchNorm2d(dim // 4),
            nn.ReLU(),
            ResidualBlock(dim // 4, dim // 2, 2),
            ResidualBlock(dim // 2, dim, 2),
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID * GRID, dim))
        self.blocks = nn.ModuleList([Block(dim, heads, mlp_ratio) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, len(CLASS_NAMES))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        with torch.no_grad():
            self.pos_embed[0, 1:] = 0.5 * sine_positions(dim)

    def tokens_before_last_block(self, image: Tensor) -> Tensor:
        """Map float32 RGB ``[N, 3, 96, 96]`` (0..255) to tokens ``[N, 145, dim]``, the class token first."""
        patches = self.patch_embed(self.normalise(image)).flatten(2).transpose(1, 2)
        class_tokens = self.cls_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat([class_tokens, patches], dim=1) + self.pos_embed
        for block in list(self.blocks)[:-1]:
            tokens = block(tokens)
        return tokens

    def read_out(self, tokens: Tensor) -> Tensor:
        """Run the last block on ``[N, 145, dim]`` and classify its class token: logits ``[N, 8]``."""
        logits: Tensor = self.head(self.norm(self.blocks[-1](tokens))[:, 0])
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Map float32 RGB ``[N, 3, 96, 96]`` (0..255) to logits ``[N, 8]``."""
        return self.read_out(self.tokens_before_last_block(image))


class VitTrainer(nn.Module):
    """The transformer together with the head of the auxiliary loss, which is dropped on export."""

    def __init__(self, vit: ShapesVit) -> None:
        super().__init__()
        self.vit = vit
        dim = vit.head.in_features
        self.patch_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, BACKGROUND + 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``[N, 3, 96, 96]`` (0..255) to image logits ``[N, 8]`` and patch logits ``[N, 144, 9]``."""
        tokens = self.vit.tokens_before_last_block(image)
        return self.vit.read_out(tokens), self.patch_head(tokens[:, 1:])


def load_chunk(seeds: range) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Generate images ``[N, 3, 96, 96]``, labels ``[N]``, and the class of every patch ``[N, 1, 12, 12]``."""
    scenes = [classification_scene(seed) for seed in seeds]
    images = np.stack([scene.image.transpose(2, 0, 1) for scene in scenes])
    labels = np.array([scene.target.class_id for scene in scenes], dtype=np.int64)
    coverage = np.stack([scene.target.mask for scene in scenes]).reshape(-1, 1, GRID, PATCH, GRID, PATCH)
    shown = coverage.mean(axis=(3, 5)) >= MIN_COVERAGE
    patch_classes = np.where(shown, labels[:, None, None, None], BACKGROUND)
    return images, labels, patch_classes


def load(start: int, count: int, workers: int = 2) -> training.Batch:
    """Run :func:`load_chunk` on ``count`` seeds (a multiple of 64) in parallel."""
    with Pool(workers) as pool:
        parts = pool.map(load_chunk, [range(first, first + 64) for first in range(start, start + count, 64)])
    return tuple(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True))


def loss_of(model: nn.Module, batch: training.Batch) -> Tensor:
    """Cross-entropy of the image class plus that of the patch classes, on one augmented batch."""
    images, labels, patch_classes = batch
    images, patch_classes = training.augment_dihedral(training.augment_colours(images.float()), patch_classes)
    logits, patch_logits = model(images)
    # Nine patches in ten show background.
    weight = torch.ones(BACKGROUND + 1)
    weight[BACKGROUND] = 0.2
    auxiliary = functional.cross_entropy(patch_logits.flatten(0, 1), patch_classes.flatten(), weight)
    return functional.cross_entropy(logits, labels, label_smoothing=0.05) + auxiliary


class LastBlock(nn.Module):
    """Last block and head of a transformer, with the patch tokens scaled by a mask."""

    def __init__(self, vit: ShapesVit) -> None:
        super().__init__()
        block = vit.blocks[-1]
        assert isinstance(block, Block)
        self.block = block
        self.norm = vit.norm
        self.head = vit.head

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map tokens ``[N, T, D]`` and a mask ``[N, T, 1]`` (0..1) to logits ``[N, K]``.

        The mask acts on the residual branch and behind the first normalisation, as in ViT Recipro-CAM.
        """
        tokens = tokens * mask + self.block.attn(self.block.norm1(tokens) * mask)
        tokens = tokens + self.block.mlp(self.block.norm2(tokens))
        logits: Tensor = self.head(self.norm(tokens)[:, 0])
        return logits


def random_windows(shown: Tensor) -> Tensor:
    """Draw a rectangle of patches per image, half of them centred on the target.

    Args:
        shown: float32 ``[N, 12, 12]``, 1 where a patch shows the target.

    Returns:
        float32 ``[N, 12, 12]``: 0 outside the rectangle, a random weight in 0.25..1 inside. Rectangles are about 2 to
        8 patches wide and high.
    """
    count = len(shown)
    positions = torch.arange(GRID) + 0.5
    total = shown.sum((1, 2)).clamp(min=1.0)
    target = torch.stack([(shown.sum(2) * positions).sum(1), (shown.sum(1) * positions).sum(1)], dim=1) / total[:, None]
    centre = torch.where(torch.rand(count, 1) < 0.5, target, GRID * torch.rand(count, 2))
    half_side = 1.0 + 3.0 * torch.rand(count, 2)
    inside = (positions - centre[..., None]).abs() <= half_side[..., None]
    window = inside[:, 0, :, None] & inside[:, 1, None, :]
    return window * (0.25 + 0.75 * torch.rand(count, 1, 1))


def evidence_loss(vit: ShapesVit, last_block: nn.Module, batch: training.Batch) -> Tensor:
    """Loss of the second stage: be as sure of the class as the part of the target that is left allows.

    In most images the class token in front of the last block is reset to its initial value, and most patch tokens are
    removed. With less than half of the target left, the wanted probabilities tend to uniform ones.

    Args:
        vit: Computes the tokens; not trained.
        last_block: The :class:`LastBlock` of ``vit``, trained.
        batch: Images, labels, and patch classes.

    Returns:
        Cross-entropy, a scalar.
    """
    images, labels, patch_classes = batch
    images, patch_classes = training.augment_dihedral(training.augment_colours(images.float()), patch_classes)
    count = len(images)
    with torch.no_grad():
        tokens = vit.tokens_before_last_block(images)
        initial = vit.cls_token[:, 0] + vit.pos_embed[:, 0]
        tokens[:, 0] = torch.where(torch.rand(count, 1) < RESET_PROBABILITY, initial, tokens[:, 0])
    shown = (patch_classes[:, 0] != BACKGROUND).float()
    windows = random_windows(shown)
    whole = torch.rand(count, 1, 1) >= WINDOW_PROBABILITY
    windows = torch.where(whole, torch.ones(()), windows)
    mask = torch.cat([torch.ones(count, 1), windows.flatten(1)], dim=1)[..., None]

    left = ((windows > 0) * shown).sum((1, 2)) / shown.sum((1, 2)).clamp(min=1.0)
    confidence = 0.95 * torch.where(whole[:, 0, 0], torch.ones(()), (2.0 * left).clamp(max=1.0))[:, None]
    n_classes = len(CLASS_NAMES)
    wanted = confidence * functional.one_hot(labels, n_classes) + (1.0 - confidence) / n_classes
    return functional.cross_entropy(last_block(tokens, mask), wanted)


def main(argv: list[str] | None = None) -> None:
    """Run the command line interface."""
    parser = training.command_line("shapes_vit", epochs=10, images=16384)
    parser.add_argument("--fine-tuning-epochs", type=int, default=8)
    options = training.begin(parser, argv)

    data = load(0, options.images)
    held_out = load(HELD_OUT_SEED, 1024)[:2]
    vit = ShapesVit()
    print(sum(parameter.numel() for parameter in vit.parameters()), "parameters", flush=True)
    training.optimise(
        VitTrainer(vit),
        data,
        loss_of,
        epochs=options.epochs,
        learning_rate=1.5e-3,
        batch_size=32,
        after_epoch=lambda: f"held-out accuracy {training.accuracy(vit, held_out):.3f}",
    )
    training.optimise(
        LastBlock(vit),
        tuple(tensor[: options.images // 2] for tensor in data),
        lambda last_block, batch: evidence_loss(vit, last_block, batch),
        epochs=options.fine_tuning_epochs,
        learning_rate=2e-3,
        batch_size=32,
        after_epoch=lambda: f"held-out accuracy {training.accuracy(vit, held_out):.3f}",
    )
    training.export(vit, "shapes_vit", folder=options.out)


if __name__ == "__main__":
    main()
