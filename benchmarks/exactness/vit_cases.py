"""Transformers of every kind, small and with random weights, for `benchmarks.exactness.transformers`.

Depth and resolution are reduced where the constructor allows it; grids are not square where the architecture takes it.
"""

# ruff: noqa: PLC0415 - transformers and torchvision are loaded by the cases that need them

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from model_zoo_fixtures.export import shims  # noqa: F401 - must come before torchvision and timm

import timm  # isort: skip - after the shims
import torch  # isort: skip
from timm.models import vision_transformer  # isort: skip

CLASSES = 20
_WIDE, _WIDE14, _SQUARE = (112, 96), (98, 84), (64, 64)


@dataclass(frozen=True)
class Case:
    """One network, and where the definition masks it.

    Attributes:
        id: for the table.
        build: makes the network, in evaluation mode.
        size: height and width of the image.
        block: path of the block whose tokens are masked (ViT Recipro-CAM); empty where a pooled grid is.
        norm: paths of the norms before the attentions, within the block, apart by a space; empty where the block's own
            input is masked.
        residual: whether the block's input is masked as well; False where its residual is the class token alone.
        features: path of the module whose output is pooled (Recipro-CAM); empty where tokens are masked.
        layout: of the pooled features: `tokens`, `NCHW` or `NHWC`.
        has_several_outputs: whether the export has several outputs with class scores; the first is explained.
    """

    id: str
    build: Callable[[], torch.nn.Module]
    size: tuple[int, int]
    block: str = ""
    norm: str = ""
    residual: bool = True
    features: str = ""
    layout: str = "tokens"
    has_several_outputs: bool = False


class Scores(torch.nn.Module):
    """A model of transformers that returns some of its results as plain tensors."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, image: torch.Tensor) -> Any:
        """`[B, 3, H, W]` to the scores named, `[B, K]` each."""
        result = self.model(image)
        scores = tuple(result[name] for name in self.names)
        return scores if len(scores) > 1 else scores[0]


def _timm(name: str, **options: Any) -> torch.nn.Module:
    return timm.create_model(name, num_classes=CLASSES, **options).eval()


def _vit(case: str, model: str = "", size: tuple[int, int] = _WIDE, /, norm: str = "norm1", **options: Any) -> Case:
    """A transformer whose class token is read."""
    options = {"depth": 3, "img_size": size} | options
    return Case(case, partial(_timm, model or case, **options), size, "blocks.-1", norm)


def _pooled(case: str, model: str = "", size: tuple[int, int] = _WIDE, /, **options: Any) -> Case:
    """A transformer whose patches are pooled."""
    options = {"depth": 3, "img_size": size} | options
    return Case(case, partial(_timm, model or case, **options), size, features="norm")


def _whole(
    case: str, features: str, layout: str, size: tuple[int, int] = (224, 224), model: str = "", **options: Any
) -> Case:
    """A pooled hybrid with grids of several sizes."""
    return Case(case, partial(_timm, model or case, **options), size, features=features, layout=layout)


def _torchvision() -> torch.nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 16, 3, 4, 96, 192, num_classes=CLASSES).eval()


def _transformers(
    model: str, config: str, settings: dict[str, Any], results: tuple[str, ...] = ("logits",)
) -> torch.nn.Module:
    import transformers

    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
    sizes |= {"image_size": _SQUARE[0], "patch_size": 16}
    if config == "SiglipConfig":
        text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        made = transformers.SiglipConfig(vision_config=sizes, text_config=text)
    else:
        made = getattr(transformers, config)(**sizes, **settings)
    if "projection_dim" not in settings:
        made.num_labels = CLASSES
    return Scores(getattr(transformers, model)(made).eval(), results)


def _hugging(case: str, model: str, config: str, block: str, norm: str = "layernorm_before", **settings: Any) -> Case:
    build = partial(_transformers, model, config, settings)
    return Case(case, build, _SQUARE, f"model.{block}.-1", norm)


def _teacher() -> torch.nn.Module:
    names = ("logits", "cls_logits", "distillation_logits")
    return _transformers("DeiTForImageClassificationWithTeacher", "DeiTConfig", {}, names)


CASES: tuple[Case, ...] = (
    _vit("vit_tiny_patch16_224"),
    _vit("vit qk_norm", "vit_tiny_patch16_224", qk_norm=True),
    _vit("vit no bias", "vit_tiny_patch16_224", qkv_bias=False, class_token=True, reg_tokens=4),
    _vit("vit res_post_norm", "vit_tiny_patch16_224", norm="", block_fn=vision_transformer.ResPostBlock),
    _vit(
        "vit parallel_scaling", "vit_tiny_patch16_224", norm="in_norm", block_fn=vision_transformer.ParallelScalingBlock
    ),
    _vit("deit_tiny_distilled_patch16_224"),
    _vit("deit3_small_patch16_224"),
    _vit("vit_small_patch14_dinov2", "", _WIDE14),
    _vit("vit_small_patch14_reg4_dinov2", "", _WIDE14),
    _vit("vit_small_patch16_18x2_224", norm="attns.0.norm attns.1.norm", depth=2),
    _vit(
        "vit dpwee, class token",
        "vit_dpwee_patch16_reg1_gap_256",
        norm="in_norm",
        class_token=True,
        global_pool="token",
    ),
    _vit("vit_tiny_r_s16_p8_224", "", (256, 192)),
    _vit("vit_base_patch32_clip_224", "", (224, 192)),
    _vit("flexivit_small"),
    _vit("vit_intern300m_patch14_448", "", _WIDE14, embed_dim=192, num_heads=3),
    _vit("vit_relpos_base_patch16_cls_224"),
    _vit("beit, class token", "beit_base_patch16_224", global_pool="token"),
    _vit("eva02_base_patch16_clip_224"),
    _vit("eva02 tiny, class token", "eva02_tiny_patch14_224", _WIDE14, global_pool="token"),
    _vit("vit_small_patch16_rope_224"),
    _vit("vit_small_patch16_rope_mixed_224"),
    _vit("dinov3 small, class token", "vit_small_patch16_dinov3", global_pool="token"),
    _vit("beit3 base, class token", "beit3_base_patch16_224", global_pool="token"),
    _vit("convit_tiny", "", (224, 224), local_up_to_layer=1),
    Case(
        "cait_xxs24_224",
        partial(_timm, "cait_xxs24_224", depth=3, img_size=_WIDE),
        _WIDE,
        "blocks_token_only.-1",
        "norm1",
        residual=False,
    ),
    Case(
        "xcit_nano_12_p16_224",
        partial(_timm, "xcit_nano_12_p16_224", depth=3, img_size=_WIDE),
        _WIDE,
        "cls_attn_blocks.-1",
        "norm1",
    ),
    Case(
        "tnt_s_patch16_224",
        partial(_timm, "tnt_s_patch16_224", depth=3, img_size=_WIDE),
        _WIDE,
        "blocks.-1",
        "norm_out",
        residual=False,
    ),
    Case(
        "tnt_s_legacy_patch16_224",
        partial(_timm, "tnt_s_legacy_patch16_224", depth=3, img_size=_WIDE),
        _WIDE,
        "blocks.-1",
        "norm_out",
        residual=False,
    ),
    Case("pit_ti_224", partial(_timm, "pit_ti_224", depth=[1, 1, 2]), (224, 224), "transformers.-1.blocks.-1", "norm1"),
    Case(
        "pit_ti_distilled_224",
        partial(_timm, "pit_ti_distilled_224", depth=[1, 1, 2]),
        (224, 224),
        "transformers.-1.blocks.-1",
        "norm1",
    ),
    Case("volo_d1_224", partial(_timm, "volo_d1_224"), (224, 224), "post_network.-1", "norm1"),
    Case("mvitv2_small_cls", partial(_timm, "mvitv2_small_cls"), (224, 224), "stages.-1.blocks.-1", "norm1"),
    Case("torchvision ViT", _torchvision, _SQUARE, "encoder.layers.-1", "ln_1"),
    _hugging("HF ViT", "ViTForImageClassification", "ViTConfig", "vit.layers"),
    _hugging("HF DeiT", "DeiTForImageClassification", "DeiTConfig", "deit.layers"),
    Case(
        "HF DeiT with teacher", _teacher, _SQUARE, "model.deit.layers.-1", "layernorm_before", has_several_outputs=True
    ),
    _hugging(
        "HF BEiT, class token",
        "BeitForImageClassification",
        "BeitConfig",
        "beit.layers",
        use_mean_pooling=False,
        use_relative_position_bias=True,
    ),
    _hugging("HF DINOv2", "Dinov2ForImageClassification", "Dinov2Config", "dinov2.encoder.layer", "norm1"),
    _hugging(
        "HF DINOv2 with registers",
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        "dinov2_with_registers.encoder.layer",
        "norm1",
    ),
    Case(
        "HF CLIP image encoder",
        partial(
            _transformers,
            "CLIPVisionModelWithProjection",
            "CLIPVisionConfig",
            {"projection_dim": CLASSES},
            ("image_embeds",),
        ),
        _SQUARE,
        "model.vision_model.encoder.layers.-1",
        "layer_norm1",
    ),
    Case(
        "HF BEiT, mean",
        partial(_transformers, "BeitForImageClassification", "BeitConfig", {"use_relative_position_bias": True}),
        _SQUARE,
        features="model.beit.layers.-1",
    ),
    Case(
        "HF SigLIP, mean",
        partial(_transformers, "SiglipForImageClassification", "SiglipConfig", {}),
        _SQUARE,
        features="model.vision_model.post_layernorm",
    ),
    _pooled("beit_base_patch16_224"),
    _pooled("eva02_tiny_patch14_224", "", _WIDE14),
    _pooled("vit_relpos_small_patch16_224"),
    _pooled("vit_relpos_base_patch16_clsgap_224"),
    _pooled("vit_relpos_base_patch32_plus_rpn_256", "", (256, 192)),
    _pooled("vit_dwee_patch16_reg1_gap_256"),
    _pooled("vit_small_patch16_dinov3"),
    _pooled("vit_base_patch16_siglip_224"),
    _pooled("vit_pe_core_tiny_patch16_384"),
    _pooled("aimv2_large_patch14_224", "", _WIDE14, embed_dim=192, num_heads=3),
    _whole("samvit_base_patch16_224", "neck", "NCHW", _WIDE, depth=4, img_size=_WIDE),
    Case(
        "naflexvit_base_patch16_gap",
        partial(_timm, "naflexvit_base_patch16_gap", depth=3),
        (384, 384),
        features="norm",
    ),
    Case(
        "naflexvit_base_patch16_map",
        partial(_timm, "naflexvit_base_patch16_map", depth=3),
        (384, 384),
        features="norm",
    ),
    _whole("twins_pcpvt_small", "norm", "tokens", depths=[1, 1, 1, 2]),
    _whole("swinv2_tiny_window8_256", "norm", "NHWC", (256, 256), depths=(1, 1, 2, 2)),
    _whole("swinv2_cr_tiny_ns_224", "stages", "NCHW", depths=(1, 1, 2, 2)),
    _whole("vitamin_small_224", "norm", "tokens"),
    _whole("tiny_vit_5m_224", "stages", "NCHW"),
    _whole("resnet50_clip", "final_conv", "NCHW"),
)
