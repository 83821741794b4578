"""Recipro-CAM and ViT Recipro-CAM by their definitions, in PyTorch: mask in a hook, run the whole network again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from benchmarks.exactness.vit_cases import Case

Array = np.ndarray
_MOST_SAMPLES = 64


def definition(model: torch.nn.Module, case: Case, images: torch.Tensor, grid: tuple[int, int]) -> Array:
    """The raw map, float32 `[B, K, h, w]`.

    Args:
        model: the network, in evaluation mode.
        case: where to mask.
        images: `[B, 3, H, W]`.
        grid: rows and columns of the patches.
    """
    cells = grid[0] * grid[1]
    scores = []
    for image in images:
        per_image = []
        for first in range(0, cells, _MOST_SAMPLES):
            chosen = torch.arange(first, min(first + _MOST_SAMPLES, cells))
            with torch.no_grad(), ExitStack() as stack:
                for hook in _hooks(model, case, grid, chosen):
                    stack.callback(hook.remove)
                per_image.append(plain_scores(model(image[None].expand(len(chosen), -1, -1, -1))))
        scores.append(np.concatenate(per_image))
    return np.stack(scores).transpose(0, 2, 1).reshape(len(images), -1, *grid)


def plain_scores(outputs: Any) -> Array:
    """`[B, K]` of a network that may return several."""
    first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    return np.asarray(first.numpy())


def _hooks(model: torch.nn.Module, case: Case, grid: tuple[int, int], chosen: torch.Tensor) -> list[Any]:
    if case.features:
        return [_module(model, case.features).register_forward_hook(_keep_position(case.layout, grid, chosen))]
    rows, columns = (_kernel_factor(side) for side in grid)
    patches = torch.kron(rows, columns)[chosen]

    def masked(tokens: torch.Tensor) -> torch.Tensor:
        prefix = torch.ones(len(chosen), tokens.shape[1] - patches.shape[1])
        return tokens * torch.cat([prefix, patches], 1)[:, :, None]

    block = _module(model, case.block)
    whole: list[torch.Tensor] = []
    hooks = []
    if case.residual:

        def enter(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            whole[:] = [inputs[0]]
            return (masked(inputs[0]), *inputs[1:])

        hooks.append(block.register_forward_pre_hook(enter))
    for norm in case.norm.split():  # it reads the unmasked tokens, and its result is masked

        def leave(module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return masked(module.forward(whole[0]) if case.residual else output)

        hooks.append(_module(block, norm).register_forward_hook(leave))
    return hooks


def _keep_position(layout: str, grid: tuple[int, int], chosen: torch.Tensor) -> Callable[..., torch.Tensor]:
    kept = torch.eye(grid[0] * grid[1])[chosen]

    def mask(_module: Any, _inputs: Any, output: Any) -> Any:
        feature = output if isinstance(output, torch.Tensor) else output[0]
        if layout == "tokens":  # tokens before the patches belong to no position and stay
            prefix = torch.ones(len(chosen), feature.shape[1] - kept.shape[1])
            changed = feature * torch.cat([prefix, kept], 1)[:, :, None]
        else:
            changed = feature * kept.reshape(-1, 1, *grid) if layout == "NCHW" else feature * kept.reshape(-1, *grid, 1)
        return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

    return mask


def _kernel_factor(side: int) -> torch.Tensor:
    """[1, 2, 1] / 4 around each place."""
    beside = torch.ones(side - 1) / 4
    return torch.eye(side) / 2 + torch.diag(beside, 1) + torch.diag(beside, -1)


def _module(root: torch.nn.Module, path: str) -> torch.nn.Module:
    """A submodule by its path, in which -1 is the last."""
    found: Any = root
    for step in path.split("."):
        found = found[int(step)] if step.lstrip("-").isdigit() else getattr(found, step)
    return found  # type: ignore[no-any-return]
