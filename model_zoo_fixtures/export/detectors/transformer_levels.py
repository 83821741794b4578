"""From scores per token to scores per level."""

from typing import Any

import torch

from model_zoo_fixtures.export.detectors.base import Levels


def split_tokens(tokens: torch.Tensor, grids: list[tuple[int, int]]) -> Levels:
    """Split scores ``[N, L, K]`` over levels of the given grids into ``[N, K, h, w]`` each, fine to coarse."""
    parts = tokens.split([rows * columns for rows, columns in grids], dim=1)
    return [part.transpose(1, 2).reshape(tokens.shape[0], -1, *grid) for part, grid in zip(parts, grids, strict=True)]


def encoder_scores(grids: list[tuple[int, int]]) -> Any:
    """Make a reader of levels that takes the first call of a head, which scored every token of the encoder."""
    return lambda outputs: split_tokens(outputs[0], grids)


def grids_of(size: tuple[int, int], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Grids of an image at the given strides, rounded up."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]
