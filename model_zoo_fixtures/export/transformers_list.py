"""Which classifiers of transformers are in the zoo, small ones by their configuration: there is no hub here."""

from typing import Any

from model_zoo_fixtures.export.architectures import Architecture

_VIT = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
_DINOV2 = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3}
_SWIN = {"embed_dim": 48, "depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 16]}
_RESNET = {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2]}
_CONVNEXT = {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 4, 2]}
_EFFICIENTNET = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
_HIERA = {"embed_dim": 48, "depths": [1, 2, 4, 2]}
_TOKENS = {"grid": [14, 14], "layout": "tokens", "prefix_tokens": 1}


def _model(
    name: str, kind: str, feature: str, options: dict[str, Any], size: int = 224, **expected: Any
) -> Architecture:
    return Architecture(
        f"hf_{name}",
        source="transformers",
        model=f"{kind}ForImageClassification",
        size=(size, size),
        options=options,
        exporters=("legacy", "dynamo", "ptir"),
        feature_module=f"network.{feature}",
        expected=expected,
    )


TRANSFORMERS = (
    _model("vit", "ViT", "vit.layernorm", _VIT),
    Architecture(
        "hf_deit_distilled",
        source="transformers",
        model="DeiTForImageClassificationWithTeacher",
        size=(224, 224),
        options=_VIT,
        exporters=("legacy", "dynamo", "ptir"),
        feature_module="network.deit.layernorm",
    ),
    _model("beit", "Beit", "beit.layers.3", _VIT | {"use_relative_position_bias": True}),
    _model("dinov2", "Dinov2", "dinov2.layernorm", _DINOV2, collapse="class_token_and_mean"),
    _model(
        "dinov2_registers",
        "Dinov2WithRegisters",
        "dinov2_with_registers.layernorm",
        _DINOV2 | {"num_register_tokens": 4},
        collapse="class_token_and_mean",
    ),
    _model("vit_msn", "ViTMSN", "vit.layernorm", _VIT),
    _model("siglip", "Siglip", "vision_model.post_layernorm", {"vision_config": _VIT}),
    _model("clip", "CLIP", "vision_model.encoder.layers.3", {"vision_config": _VIT}),
    _model("ijepa", "IJepa", "ijepa.layernorm", _VIT | {"patch_size": 16}),
    _model("swin", "Swin", "swin.layernorm", _SWIN),
    _model("swinv2", "Swinv2", "swinv2.layernorm", _SWIN),
    _model("focalnet", "FocalNet", "focalnet.layernorm", {"embed_dim": 48, "depths": [2, 2, 2, 2]}),
    _model("convnextv2", "ConvNextV2", "convnextv2.encoder.stages.3", _CONVNEXT),
    _model("resnet", "ResNet", "resnet.encoder.stages.3", _RESNET | {"layer_type": "basic"}),
    _model("regnet", "RegNet", "regnet.encoder.stages.3", _RESNET | {"groups_width": 16}),
    _model("bit", "Bit", "bit.norm", _RESNET | {"num_groups": 8}),
    _model("mobilenet_v1", "MobileNetV1", "mobilenet_v1.layer.25", {"depth_multiplier": 0.25}),
    _model("mobilenet_v2", "MobileNetV2", "mobilenet_v2.conv_1x1", {"depth_multiplier": 0.35}),
    _model("mobilevit", "MobileViT", "mobilevit.conv_1x1_exp", {"hidden_sizes": [48, 64, 80]}, size=256),
    _model("efficientnet", "EfficientNet", "efficientnet.encoder.top_bn", _EFFICIENTNET),
    _model("poolformer", "PoolFormer", "norm", {}),
    _model("segformer", "Segformer", "segformer.stages.3", {}),
    _model("pvt", "Pvt", "pvt.encoder.layer_norm", {}),
    _model("cvt", "Cvt", "cvt.encoder.stages.2", {"depth": [1, 2, 4]}, collapse="class_token", **_TOKENS),
    _model("hiera", "Hiera", "hiera.encoder.stages.3", _HIERA),
)
