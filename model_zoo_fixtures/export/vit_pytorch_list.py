"""Which classifiers of vit-pytorch are in the zoo: patches cut out by reshapes, products written as Einsum."""

from typing import Any

from model_zoo_fixtures.export.architectures import Architecture

_VIT = {"image_size": 128, "patch_size": 16, "dim": 64, "depth": 3, "heads": 4, "mlp_dim": 128}
_T2T = {"image_size": 96, "dim": 64, "depth": 2, "heads": 4, "mlp_dim": 128}
_CCT = {
    "img_size": (96, 96),
    "embedding_dim": 64,
    "n_conv_layers": 2,
    "num_layers": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "positional_embedding": "learnable",
}
_NEST = {"image_size": 128, "patch_size": 4, "dim": 48, "heads": 3, "num_hierarchies": 3, "block_repeats": (1, 1, 2)}
_CROSSFORMER = {
    "dim": (32, 64, 96, 128),
    "depth": (1, 1, 1, 1),
    "global_window_size": (4, 2, 2, 1),
    "local_window_size": 4,
}
_TWINS = {f"s{stage}_emb_dim": width for stage, width in enumerate((32, 64, 96, 128), 1)}
_TWINS |= {f"s{stage}_local_patch_size": 4 for stage in (1, 2, 3)} | {"s4_local_patch_size": 2}
_TWINS |= {f"s{stage}_global_k": 4 for stage in (1, 2, 3, 4)} | {"s3_depth": 1, "s4_depth": 1}
_REGIONVIT = {"dim": (32, 64, 96, 128), "depth": (1, 1, 1, 1), "window_size": 4}


def _model(name: str, kind: str, feature: str, options: dict[str, Any], size: int = 128) -> Architecture:
    return Architecture(
        f"vitp_{name}",
        source="vit-pytorch",
        model=kind,
        size=(size, size),
        options=options,
        feature_module=feature,
    )


VIT_PYTORCH = (
    _model("vit", "vit.ViT", "transformer", _VIT),
    _model("simple_vit", "simple_vit.SimpleViT", "transformer", _VIT),
    _model("deepvit", "deepvit.DeepViT", "transformer", _VIT),
    _model("t2t", "t2t.T2TViT", "transformer", _T2T, size=96),
    _model("parallel", "parallel_vit.ViT", "transformer", _VIT),
    _model("vit5", "vit_5.ViT", "transformer", _VIT),
    _model("cct", "cct.CCT", "classifier.norm", _CCT, size=96),
    _model("nest", "nest.NesT", "mlp_head.0", _NEST),
    _model("crossformer", "crossformer.CrossFormer", "layers.3.1", _CROSSFORMER),
    _model("twins", "twins_svt.TwinsSVT", "layers.3", _TWINS),
    _model("regionvit", "regionvit.RegionViT", "layers.3.2.layers.0.1", _REGIONVIT),
    _model("cait", "cait.CaiT", "patch_transformer", _VIT | {"cls_depth": 2}),
)
