"""Seeded re-initialisation that keeps a network without pretrained weights alive.

Default initialisation switches much of a network off: layer scales of 1e-6, zero biases, batch statistics of 0 and 1
that do not fit the activations. A graph exported like that cannot show a misplaced bias or a forgotten scale. Here each
parameter gets a value that matters, and batch statistics are measured on random images.
"""

import zlib
from collections.abc import Iterator

import torch
from torch import nn

_LAYER_SCALES = ("gamma", "layer_scale", "ls1", "ls2", "res_scale")
_KEEP_SIZE = ("temperature", "logit_scale", "scale_factor", "tau")
_TABLES = ("pos", "token", "table", "rel_", "bias", "embed", "latent", "query")
_CENTRE_FROM = 8  # weights over that many input channels sum to zero, so rectified inputs leave no offset behind
_DEPTHWISE_SPREAD = 0.4  # depthwise filters are an impulse and noise: about the same gain for all textures
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def random_images(count: int, size: tuple[int, int], seed: int, channels: int = 3) -> torch.Tensor:
    """Make images that have both coarse shapes and fine texture.

    Args:
        count: Number of images ``N``.
        size: Height and width in pixels.
        seed: Seed of the generator.
        channels: Number of channels ``C``.

    Returns:
        float32 tensor ``[N, C, H, W]`` with about zero mean and unit deviation.
    """
    generator = torch.Generator().manual_seed(seed)
    texture = torch.randn((count, channels, *size), generator=generator)
    shapes = torch.randn((count, channels, 6, 6), generator=generator)
    shapes = nn.functional.interpolate(shapes, size=size, mode="bilinear", align_corners=False)
    return 0.6 * texture + 1.2 * shapes


def _calibration_images(size: tuple[int, int], seed: int) -> torch.Tensor:
    images = random_images(6, size, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    images[2:4] = torch.randn(images[2:4].shape, generator=generator)
    images[4:6] = torch.rand(images[4:6].shape, generator=generator)
    return images


def reinitialise(model: nn.Module, name: str, size: tuple[int, int]) -> None:
    """Replace all parameters and batch statistics in place and leave the model in evaluation mode.

    Args:
        model: The network; takes float32 images ``[N, 3, H, W]``.
        name: Its name, from which the seed is derived.
        size: Height and width of the images on which batch statistics are measured.
    """
    seed = zlib.crc32(name.encode())
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    with torch.no_grad():
        for owner, key, parameter in _parameters(model):
            _fill(parameter, key, owner, generator)
        _measure_batch_statistics(model, _calibration_images(size, seed), generator)


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    seen: set[int] = set()
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, f"{path.rpartition('.')[2]}.{key}", parameter


def _fill(parameter: torch.Tensor, name: str, owner: nn.Module, generator: torch.Generator) -> None:
    def normal(deviation: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)

    def uniform(low: float, high: float) -> None:
        parameter.copy_(torch.rand(parameter.shape, generator=generator) * (high - low) + low)

    key = name.rpartition(".")[2]
    convolution = isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if any(word in name for word in _KEEP_SIZE):
        parameter.mul_(torch.rand(parameter.shape, generator=generator) * 0.4 + 0.8)
    elif any(word in name for word in _LAYER_SCALES) and not isinstance(owner, nn.LayerNorm):
        uniform(0.3, 1.0)
    elif key in ("weight", "bias") and (isinstance(owner, nn.Linear) or convolution):
        fan_in = parameter[0].numel()
        normal((2.0 / fan_in if convolution else 1.0 / fan_in) ** 0.5 if key == "weight" else 0.1)
        if convolution and key == "weight" and parameter.shape[1] == 1 and fan_in > 1:
            parameter.mul_(_DEPTHWISE_SPREAD / 2.0**0.5)
            parameter[(..., *(size // 2 for size in parameter.shape[2:]))] += 1.0
        elif parameter.ndim >= 2 and parameter.shape[1] >= _CENTRE_FROM:
            parameter.sub_(parameter.mean(dim=1, keepdim=True))
    elif parameter.ndim >= 2 and (any(word in name for word in _TABLES) or parameter.shape[0] == 1):
        normal(0.4)
    elif parameter.ndim >= 2 and min(parameter.shape) > 1:
        normal((1.0 / parameter[0].numel()) ** 0.5)
    elif "bias" in key or "beta" in key or bool((parameter == 0).all()):
        normal(0.2)
    elif key == "weight" or bool((parameter == 1).all()):
        uniform(0.5, 1.5)
    else:
        parameter.mul_(torch.rand(parameter.shape, generator=generator) + 0.5)


def _measure_batch_statistics(model: nn.Module, images: torch.Tensor, generator: torch.Generator) -> None:
    norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        assert norm.running_mean is not None
        assert norm.running_var is not None
        variance = norm.running_var
        variance.clamp_(min=max(1e-4, 0.1 * float(variance.mean())))
        variance.mul_(torch.rand(variance.shape, generator=generator) * 0.4 + 0.8)
        norm.running_mean.add_(torch.randn(variance.shape, generator=generator) * 0.1 * variance.sqrt())
