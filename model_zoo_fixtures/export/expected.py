"""What must be found in a classifier, determined by experiments on the PyTorch model itself.

The last feature map is taken where the architecture's code hands it from its trunk to its head, or, where the head has
layers before it pools, at the pooling. Which positions the head reads shows in gradients; how it reads them shows in
which changes of the feature map leave the logits as they were.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Head = Callable[[torch.Tensor], torch.Tensor]
_UNNAMED = ("attention_pool", "flatten_linear", "gem", "unread")


def expect(model: nn.Module, images: torch.Tensor, feature_module: str = "") -> dict[str, Any]:
    """Determine grid, layout and collapse of a classifier.

    Args:
        model: The classifier, in evaluation mode.
        images: One image, float32 ``[1, C, H, W]``.
        feature_module: Path of the module whose output is the last feature map; when empty, the model has
            ``forward_features`` for that.

    Returns:
        The ``expected`` table of the manifest: classes, channels, grid, layout, collapse and, for tokens, prefix.
    """
    with torch.no_grad():
        classes = _logits(model(images)).shape[-1]
        feature, head = _split(model, images, feature_module)
    if not isinstance(feature, torch.Tensor):
        return {"classes": classes, "collapse": "branches"}
    if feature.ndim not in (3, 4):
        return {"classes": classes, "collapse": f"unknown: the feature has shape {tuple(feature.shape)}"}
    found = _describe(model, images, feature, head)
    if found["collapse"] in _UNNAMED:
        for pooled, pool in _pools(model, feature, head):
            nearer = _describe(model, images, pooled, pool)
            if nearer["collapse"] not in _UNNAMED:
                found = nearer
    return {"classes": classes} | found


def _describe(model: nn.Module, images: torch.Tensor, feature: torch.Tensor, head: Head) -> dict[str, Any]:
    if feature.ndim == 3:
        prefix = _prefix(model, feature)
        grid = _token_grid(model, images, feature.shape[1] - prefix)
        found = {"channels": feature.shape[2], "grid": grid, "layout": "tokens", "prefix_tokens": prefix}
        return found | {"collapse": _collapse(feature.detach(), head, prefix)}
    shape = feature.shape
    if _layout(feature, int(getattr(model, "num_features", 0))) == "NHWC":
        found = {"channels": shape[3], "grid": list(shape[1:3]), "layout": "NHWC"}
        tokens = feature.detach().flatten(1, 2)
        return found | {"collapse": _collapse(tokens, lambda changed: head(changed.reshape(shape)), 0)}
    found = {"channels": shape[1], "grid": list(shape[2:]), "layout": "NCHW"}
    tokens = feature.detach().flatten(2).transpose(1, 2)
    return found | {"collapse": _collapse(tokens, lambda changed: head(changed.transpose(1, 2).reshape(shape)), 0)}


def _pools(model: nn.Module, feature: torch.Tensor, head: Head) -> list[tuple[torch.Tensor, Head]]:
    """Find pooling layers that the head applies to a map of the same grid; give their inputs and what follows."""
    found: list[tuple[torch.Tensor, Head]] = []
    hooks = []

    def watch(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(inputs[0], torch.Tensor) and inputs[0].ndim == 4 and inputs[0].shape[2:] == feature.shape[2:]:
            found.append((inputs[0].detach(), lambda changed: _run_with_input(module, changed, feature, head)))

    for module in model.modules():
        if "Pool" in type(module).__name__:
            hooks.append(module.register_forward_pre_hook(watch))
    with torch.no_grad():
        head(feature)
    for hook in hooks:
        hook.remove()
    return found[:1]


def _run_with_input(module: nn.Module, changed: torch.Tensor, feature: torch.Tensor, head: Head) -> torch.Tensor:
    hook = module.register_forward_pre_hook(lambda _module, _inputs: (changed.clone(),))
    try:
        return head(feature)
    finally:
        hook.remove()


def _logits(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def _split(model: nn.Module, images: torch.Tensor, feature_module: str) -> tuple[Any, Head]:
    if feature_module:
        module = model.get_submodule(feature_module)
        seen: list[torch.Tensor] = []
        hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        model(images)
        hook.remove()

        def head(feature: torch.Tensor) -> torch.Tensor:
            hook = module.register_forward_hook(lambda _module, _inputs, _output: feature.clone())
            try:
                return _logits(model(images))
            finally:
                hook.remove()

        return seen[0], head
    return model.forward_features(images), lambda feature: _logits(model.forward_head(feature))


def _layout(feature: torch.Tensor, channels: int) -> str:
    if channels in (feature.shape[1], feature.shape[3]) and feature.shape[1] != feature.shape[3]:
        return "NCHW" if feature.shape[1] == channels else "NHWC"
    return "NCHW" if feature.shape[1] >= feature.shape[3] else "NHWC"


def _prefix(model: nn.Module, feature: torch.Tensor) -> int:
    count = getattr(model, "num_prefix_tokens", None)
    if isinstance(count, int):
        return count
    return int(feature.shape[1]) - math.isqrt(int(feature.shape[1])) ** 2


def _token_grid(model: nn.Module, images: torch.Tensor, count: int) -> list[int]:
    embed = getattr(model, "patch_embed", None)
    grid = getattr(embed, "grid_size", None)
    if grid is not None and math.prod(grid) == count:
        return list(grid)
    height, width = images.shape[2:]
    rows = round(math.sqrt(count * height / width))
    return [rows, count // rows]


def _collapse(tokens: torch.Tensor, head: Head, prefix: int) -> str:
    """Name how the head reads tokens ``[1, T, D]``, the first of which belong to no position."""
    generator = torch.Generator().manual_seed(0)
    watched = tokens.clone().requires_grad_()
    logits = head(watched)
    (logits * torch.randn(logits.shape, generator=generator)).sum().backward()
    if watched.grad is None:
        return "unread"
    strength = watched.grad.abs().sum(-1)[0]
    read = [int(index) for index in (strength > 1e-6 * strength.max()).nonzero()]
    if prefix and len(read) <= prefix and max(read) < prefix:
        return "class_token" if len(read) == 1 else "class_tokens"
    if len(read) == 1 and tokens.shape[1] > 1:
        return f"unknown: token {read[0]} alone is read"
    base = logits.detach()
    before, body = tokens[:, :prefix], tokens[:, prefix:]

    def same(changed: torch.Tensor) -> bool:
        with torch.no_grad():
            other = head(torch.cat((before, changed), dim=1))
        return bool((other - base).abs().max() <= 1e-4 * base.abs().max() + 1e-6)

    count = body.shape[1]
    together = body[:, torch.randperm(count, generator=generator)]
    apart = body.gather(1, torch.rand(body.shape, generator=generator).argsort(dim=1))
    if same(body.mean(dim=1, keepdim=True).expand_as(body)):
        return "global_average"
    if same(body.amax(dim=1, keepdim=True).expand_as(body)):
        return "global_max"
    if same(_keep_mean_and_maximum(body)):
        return "avg_max"
    if same(apart):
        return "gem"
    return "attention_pool" if same(together) else "flatten_linear"


def _keep_mean_and_maximum(body: torch.Tensor) -> torch.Tensor:
    highest = body.argmax(dim=1, keepdim=True)
    rest = (body.sum(dim=1, keepdim=True) - body.amax(dim=1, keepdim=True)) / (body.shape[1] - 1)
    return rest.expand_as(body).scatter(1, highest, body.amax(dim=1, keepdim=True))
