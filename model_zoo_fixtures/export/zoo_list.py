"""Which classifiers are in the zoo: the smallest representative of every family, and heads and options that matter."""

import torch
from torch import nn

from model_zoo_fixtures.export.architectures import Architecture, GeneralizedMeanPool
from model_zoo_fixtures.export.transformers_list import TRANSFORMERS
from model_zoo_fixtures.export.vit_pytorch_list import VIT_PYTORCH

_ALL = ("legacy", "dynamo", "ptir", "onnxir", "legacydyn", "ptirdyn")

_FAMILIES = """
beit_base_patch16_224 botnet26t_256 resnet50_clip cait_xxs24_224 coat_lite_tiny convit_tiny convmixer_768_32
convnext_tiny cpubone_b0_bfrobust crossvit_9_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
deit_tiny_distilled_patch16_224 densenet121 dla34 dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientnet_b0 efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8
focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_a hgnet_tiny hiera_tiny_224 hieradet_small hrnet_w18_small
iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128 lowformer_b0
mambaout_femto coatnet_nano_rw_224 caformer_s18 resmlp_12_224 mobilenetv3_large_100 mobilevit_xxs mvitv2_tiny
naflexvit_base_patch16_gap nest_tiny nextvit_small nfnet_l0 pit_ti_224 pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002
repghostnet_050 repvit_m0_9 res2net50_14w_8s resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18
sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_s3_tiny_224 swinv2_tiny_window8_256
swinv2_cr_tiny_ns_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_pcpvt_small vgg11_bn visformer_tiny
vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224
volo_d1_224 ese_vovnet19b_slim legacy_xception xception41 xcit_nano_12_p16_224
"""

_MORE = """
halonet26t lambda_resnet26rpt_256 resnet50_clip_gap repvgg_a0 mobileone_s0 gernet_s regnetz_b16 resnet32ts
gcresnext26ts bat_resnext26ts coat_tiny convnext_atto convnextv2_atto convnext_zepto_rms convnext_tiny_hnf cspresnet50
darknet17 deit3_small_patch16_224 dla46x_c dpn68 efficientnet_b0_gn efficientnet_cc_b0_4e efficientnet_es
efficientnet_lite0 efficientnetv2_rw_t tf_efficientnetv2_b0 mixnet_s mnasnet_small mobilenetv1_100 mobilenetv2_050
tinynet_e fbnetc_100 efficientvim_m1_dist eva02_base_patch16_clip_224 vit_small_patch16_rope_224
vit_small_patch16_rope_mixed_224 vit_small_patch16_dinov3 vit_pe_core_tiny_patch16_384
vit_medium_patch16_rope_reg1_gap_256 fastvit_mci0 ghostnetv2_100 ghostnetv3_050 hgnetv2_b0 iformer_m_distilled
levit_conv_128s maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256 coatnext_nano_rw_224 convformer_s18 poolformer_s12
poolformerv2_s12 gmixer_12_224 gmlp_ti16_224 mixer_s32_224 mobilenetv3_small_050 lcnet_035 fbnetv3_b
mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium_075 mobilevitv2_050 mvitv2_small_cls naflexvit_base_patch16_map
dm_nfnet_f0 nf_regnet_b0 nf_resnet26 pit_ti_distilled_224 regnety_002 resnetaa34d resnetblur18 ecaresnet26t
seresnext26t_32x4d resnet50_gn resnetv2_50x1_bit tnt_s_patch16_224 twins_svt_small vit_small_patch14_dinov2
vit_small_patch14_reg4_dinov2 vit_base_patch16_siglip_224 vit_base_patch32_clip_224 vit_wee_patch16_reg1_gap_256
vit_dwee_patch16_reg1_gap_256 vit_dpwee_patch16_reg1_gap_256 vit_small_patch16_18x2_224 flexivit_small
beit3_base_patch16_224 vit_small_r26_s32_224 vit_base_mci_224 vit_relpos_base_patch16_clsgap_224
vit_srelpos_small_patch16_224 vovnet39a
"""

_LARGE = """
deepseek_vit_412m gemma4_vit_167m mobilenetv5_base nasnetalarge pnasnet5large
"""

# What experiments on the model do not tell, or name otherwise than the manifest does.
_KNOWN: dict[str, dict[str, object]] = {
    "vgg11": {"collapse": "grid_conv"},
    "vgg11_bn": {"collapse": "grid_conv"},
    "resnet50_clip": {"collapse": "attention_pool"},
    "pit_ti_224": {"grid": [7, 7], "prefix_tokens": 1, "collapse": "class_token"},
    "pit_ti_distilled_224": {"grid": [7, 7], "prefix_tokens": 2, "collapse": "class_tokens"},
    "volo_d1_224": {"collapse": "class_token_and_max"},
}

_SIZES = {
    "vit_small_patch14_dinov2": (224, 224),
    "vit_small_patch14_reg4_dinov2": (224, 224),
    "vit_pe_core_tiny_patch16_384": (224, 224),
    "nasnetalarge": (224, 224),
    "pnasnet5large": (224, 224),
    "mobilenetv5_base": (256, 256),
    "hieradet_small": (256, 256),
    "qwen3_vit_88m": (256, 256),
    "gemma4_vit_167m": (256, 256),
    "deepseek_vit_412m": (252, 252),
}

# Giants are cut down: their blocks are all alike.
_OPTIONS: dict[str, dict[str, object]] = {
    "gemma4_vit_167m": {"depth": 4},
    "deepseek_vit_412m": {"depth": 4, "img_size": 252},
}

_TORCHVISION = {
    "alexnet": "avgpool",
    "convnext_tiny": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "googlenet": "inception5b",
    "maxvit_t": "blocks.3",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "regnet_x_400mf": "trunk_output",
    "resnet18": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_1": "classifier.2",
    "swin_t": "norm",
    "swin_v2_t": "norm",
    "vgg11": "avgpool",
    "vit_b_32": "encoder",
}


def _use_gem(model: nn.Module) -> None:
    model.global_pool = GeneralizedMeanPool()


def _sum_over_grid(model: nn.Module) -> None:
    model.global_pool = _SumPool()


def _use_ml_decoder(model: nn.Module) -> None:
    """Queries of classes attend to the grid (Ridnik et al., arXiv 2111.12933)."""
    from timm.layers.ml_decoder import add_ml_decoder_head

    add_ml_decoder_head(model)
    model.fc.decoder = _InTurn(model.fc.decoder.layers)  # torch's decoder now calls layers with what these do not take


class _InTurn(nn.Module):
    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, queries: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            queries = layer(queries, places)
        return queries


class _SumPool(nn.Module):
    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        return feature.sum(dim=(2, 3))


def _end_with_softmax(model: nn.Module) -> None:
    model.fc = nn.Sequential(model.fc, nn.Softmax(dim=-1))


def _end_with_sigmoid(model: nn.Module) -> None:
    model.head.fc = nn.Sequential(model.head.fc, nn.Sigmoid())


def _timm(name: str) -> Architecture:
    options = dict(_OPTIONS.get(name, {}))
    if name in _SIZES and name.startswith("vit_"):
        options["img_size"] = _SIZES[name]
    return Architecture(name, size=_SIZES.get(name), options=options, expected=_KNOWN.get(name, {}))


def _torchvision(name: str, feature_module: str) -> Architecture:
    known = {"densenet121": {"collapse": "global_average"}, "vgg11": {"collapse": "flatten_linear"}}.get(name, {})
    return Architecture(
        name if name == "squeezenet1_1" else f"torchvision_{name}",
        source="torchvision",
        model=name,
        options={"aux_logits": False, "init_weights": False} if name == "googlenet" else {},
        feature_module=feature_module,
        expected=known,
    )


def _resnet18(suffix: str, **settings: object) -> Architecture:
    return Architecture(f"resnet18_{suffix}", model="resnet18", **settings)  # type: ignore[arg-type]


_TALL = (320, 192)
_VARIANTS = (
    Architecture("resnet50", exporters=_ALL),
    Architecture("swin_tiny_patch4_window7_224", exporters=_ALL),
    Architecture("vgg11", expected=_KNOWN["vgg11"]),
    _resnet18("catavgmax", options={"global_pool": "catavgmax"}),
    _resnet18("avgmax", options={"global_pool": "avgmax"}),
    _resnet18("max", options={"global_pool": "max"}),
    _resnet18("gem", edit=_use_gem),
    _resnet18("sum", edit=_sum_over_grid, expected={"collapse": "sum"}),
    _resnet18(
        "ml_decoder",
        edit=_use_ml_decoder,
        options={"num_classes": 40},
        exporters=("legacy", "ptir"),
        expected={"collapse": "attention_pool"},
    ),
    _resnet18("softmax", edit=_end_with_softmax, options={"num_classes": 20}),
    _resnet18("two_classes", options={"num_classes": 2}, exporters=_ALL),
    _resnet18("tall", size=_TALL, exporters=_ALL),
    Architecture("convnext_atto_tall", model="convnext_atto", size=_TALL),
    Architecture("convnext_atto_sigmoid", model="convnext_atto", options={"num_classes": 7}, edit=_end_with_sigmoid),
    Architecture(
        "vit_tiny_patch16_tall",
        model="vit_tiny_patch16_224",
        size=_TALL,
        options={"img_size": _TALL},
        exporters=_ALL,
    ),
    Architecture("vit_base_patch16_224_avg", model="vit_base_patch16_224", options={"global_pool": "avg"}),
    Architecture("vit_tiny_patch16_224_avgmax", model="vit_tiny_patch16_224", options={"global_pool": "avgmax"}),
)

CLASSIFIERS: tuple[Architecture, ...] = (
    *_VARIANTS,
    *(_timm(name) for name in _FAMILIES.split()),
    *(_torchvision(name, module) for name, module in _TORCHVISION.items()),
    *TRANSFORMERS,
    *VIT_PYTORCH,
    *(_timm(name) for name in (_MORE + _LARGE).split()),
)
