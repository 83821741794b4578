"""Detectors of transformers (Apache-2.0) with small configurations."""

from typing import Any

import torch
from torch import nn

from model_zoo_fixtures.export.detectors.base import Detector, Levels
from model_zoo_fixtures.export.detectors.transformer_levels import encoder_scores, grids_of

_FACTS: dict[str, Any] = {
    "package": "transformers",
    "licence": "Apache-2.0",
    "unit_images": False,
    "outputs": ("logits", "pred_boxes"),
}


class _Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        answer = self.network(pixel_values=images)
        return answer.logits, answer.pred_boxes


def _resnet(module: Any, stages: tuple[str, ...]) -> Any:
    return module(
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=list(stages),
    )


_SMALL = {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
_OWN_BACKBONE = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}


def rt_detr(version: int = 1, classes: int = 20, size: tuple[int, int] = (256, 320)) -> Detector:
    """RT-DETR and RT-DETRv2 with a ResNet of their own kind."""
    import transformers as hf

    backbone = _resnet(hf.RTDetrResNetConfig, ("stage2", "stage3", "stage4"))
    options: dict[str, Any] = {
        "backbone_config": backbone,
        "encoder_hidden_dim": 64,
        "encoder_in_channels": [32, 48, 64],
        "feat_strides": [8, 16, 32],
        "decoder_in_channels": [64, 64, 64],
        "num_queries": 40,
        "decoder_layers": 2,
        "num_labels": classes,
        "anchor_image_size": None,
        **_SMALL,
        **_HEADS,
    }
    if version == 1:
        network: Any = hf.RTDetrForObjectDetection(hf.RTDetrConfig(**options))
    else:
        network = hf.RTDetrV2ForObjectDetection(hf.RTDetrV2Config(**options))
    return _encoder(network, "hf_rt_detr" + ("_v2" if version == 2 else ""), classes, size, (8, 16, 32))


def d_fine(classes: int = 20, size: tuple[int, int] = (256, 320)) -> Detector:
    """D-FINE with a small HGNetV2."""
    import transformers as hf

    backbone = hf.HGNetV2Config(
        stem_channels=[3, 16, 16],
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        stage_in_channels=[16, 16, 32, 48],
        stage_mid_channels=[8, 8, 16, 16],
        stage_out_channels=[16, 32, 48, 64],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
        out_features=["stage2", "stage3", "stage4"],
    )
    configuration = hf.DFineConfig(
        backbone_config=backbone,
        encoder_hidden_dim=64,
        encoder_in_channels=[32, 48, 64],
        feat_strides=[8, 16, 32],
        decoder_in_channels=[64, 64, 64],
        num_queries=40,
        decoder_layers=2,
        num_labels=classes,
        anchor_image_size=None,
        eval_idx=-1,
        **_SMALL,
        **_HEADS,
    )
    network: Any = hf.DFineForObjectDetection(configuration)
    return _encoder(network, "hf_d_fine", classes, size, (8, 16, 32))


def _encoder(network: Any, name: str, classes: int, size: tuple[int, int], strides: tuple[int, ...]) -> Detector:
    return Detector(
        id=name,
        model=_Logits(network),
        score_heads=[network.model.enc_score_head],
        levels=encoder_scores(grids_of(size, strides)),
        size=size,
        classes=classes,
        anchors=[1] * len(strides),
        kind="encoder_scores",
        kept=lambda key: "anchors" in key or "valid_mask" in key or ".up" in key or "reg_scale" in key,
        **_FACTS,
    )


def deformable_detr(two_stage: bool, classes: int = 20, size: tuple[int, int] = (256, 320)) -> Detector:
    """Deformable DETR; with two stages, the last class head scores every token of the encoder first."""
    import transformers as hf

    configuration = hf.DeformableDetrConfig(
        backbone_config=_resnet(hf.ResNetConfig, ("stage2", "stage3", "stage4")),
        num_queries=40,
        encoder_layers=2,
        decoder_layers=2,
        two_stage=two_stage,
        two_stage_num_proposals=40,
        with_box_refine=two_stage,
        num_labels=classes,
        **_OWN_BACKBONE,
        **_SMALL,
        **_HEADS,
    )
    network: Any = hf.DeformableDetrForObjectDetection(configuration)
    detector = Detector(
        id="hf_deformable_detr" + ("_two_stage" if two_stage else ""),
        model=_Logits(network),
        score_heads=[],
        size=size,
        classes=classes,
        anchors=[1] * 4 if two_stage else [],
        kind="encoder_scores" if two_stage else "query",
        **_FACTS,
    )
    if two_stage:
        detector.score_heads = [network.model.decoder.class_embed[-1]]
        detector.levels = encoder_scores(grids_of(size, (8, 16, 32, 64)))
    else:
        _encoder_feature(detector, network.model.encoder, grids_of(size, (8, 16, 32, 64)))
    return detector


def _encoder_feature(detector: Detector, encoder: nn.Module, grids: list[tuple[int, int]]) -> None:
    from model_zoo_fixtures.export.detectors.transformer_levels import split_tokens

    def pick(outputs: list[Any]) -> Levels:
        tokens = outputs[0]
        return split_tokens(tokens if isinstance(tokens, torch.Tensor) else tokens[0], grids)

    detector.features, detector.feature_maps = [encoder], pick
    detector.levels = lambda outputs: []


def detr(name: str, classes: int = 20, size: tuple[int, int] = (256, 320)) -> Detector:
    """DETR and Conditional DETR: queries only; the encoder's feature is what remains."""
    import transformers as hf

    options: dict[str, Any] = {
        "backbone_config": _resnet(hf.ResNetConfig, ("stage4",)),
        "num_queries": 30,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_labels": classes,
        **_OWN_BACKBONE,
        **_SMALL,
        **_HEADS,
    }
    network: Any
    if name == "detr":
        network = hf.DetrForObjectDetection(hf.DetrConfig(**options))
    elif name == "conditional_detr":
        network = hf.ConditionalDetrForObjectDetection(hf.ConditionalDetrConfig(**options))
    else:
        network = hf.DabDetrForObjectDetection(hf.DabDetrConfig(**options))
    background = classes if name == "detr" else -1
    detector = Detector(
        id=f"hf_{name}",
        model=_Logits(network),
        score_heads=[],
        size=size,
        classes=classes + (background >= 0),
        anchors=[],
        background=background,
        activation="softmax" if name == "detr" else "sigmoid",
        kind="query",
        **_FACTS,
    )
    _encoder_feature(detector, network.model.encoder, grids_of(size, (32,)))
    return detector


def yolos(classes: int = 20, size: tuple[int, int] = (256, 320)) -> Detector:
    """YOLOS: detection tokens at the end of a plain ViT."""
    import transformers as hf

    configuration = hf.YolosConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=list(size),
        patch_size=16,
        num_detection_tokens=20,
        num_labels=classes,
        use_mid_position_embeddings=True,
    )
    network: Any = hf.YolosForObjectDetection(configuration)
    rows, columns = size[0] // 16, size[1] // 16
    detector = Detector(
        id="hf_yolos",
        model=_Logits(network),
        score_heads=[],
        size=size,
        classes=classes + 1,
        anchors=[],
        background=classes,
        activation="softmax",
        kind="query",
        **_FACTS,
    )

    def pick(outputs: list[Any]) -> Levels:
        tokens = outputs[0][:, 1 : 1 + rows * columns]
        return [tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)]

    detector.features, detector.feature_maps = [network.vit.layernorm], pick
    detector.levels = lambda outputs: []
    return detector
