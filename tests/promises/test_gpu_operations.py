"""What is inserted into an IR is made of operations that OpenVINO's GPU plugin registers, for no GPU can be asked here.

The list is that of its public table of primitives in 2025, with what the passes in front of it lower to them.
"""

import openvino as ov
import pytest

from model_zoo_fixtures import fixtures, materialise
from model_zoo_fixtures.shapes import anomalies, keypoints, likeness, semantic
from model_zoo_fixtures.testbed import deployed, models
from xai_insert import Options, errors, insert
from xai_insert.graph.names import PREFIX

REGISTERED = {
    1: "Abs Acos Asin Atan Ceiling Clamp Concat Constant Convert Cos Cosh CumSum CTCGreedyDecoder DepthToSpace "
    "DetectionOutput Elu Erf Exp FakeQuantize Floor Gelu GRN HardSigmoid Log LRN MatMul MVN Negative NormalizeL2 "
    "Parameter PRelu PriorBox PriorBoxClustered Proposal PSROIPooling Relu Result RegionYolo ReorgYolo "
    "ReverseSequence ROIPooling Sigmoid Sqrt Selu Sin Sinh Sign SquaredDifference SpaceToDepth Squeeze ShapeOf "
    "ShuffleChannels Tan Tanh TensorIterator Tile Unsqueeze Add AvgPool BatchToSpace BinaryConvolution Broadcast "
    "ConvertLike Convolution ConvolutionBackpropData DeformableConvolution DeformablePSROIPooling Divide Equal "
    "FloorMod Gather GatherTree Greater GreaterEqual GroupConvolution GroupConvolutionBackpropData Less LessEqual "
    "LogicalAnd LogicalNot LogicalOr LogicalXor MaxPool Maximum Minimum Multiply NotEqual OneHot Pad Power ReduceMax "
    "ReduceLogicalAnd ReduceLogicalOr ReduceMean ReduceMin ReduceProd ReduceSum Reshape Reverse Subtract SpaceToBatch "
    "Softmax StridedSlice Select Split Transpose TopK VariadicSplit Mod NonMaxSuppression",
    3: "Asinh Acosh Atanh Broadcast Bucketize ExtractImagePatches NonZero ROIAlign ScatterUpdate ShapeOf TopK "
    "ScatterElementsUpdate ScatterNDUpdate Assign ReadValue NonMaxSuppression",
    4: "HSwish Interpolate LSTMCell Mish Proposal Range ReduceL1 ReduceL2 SoftPlus Swish CTCLoss NonMaxSuppression",
    5: "HSigmoid LogSoftmax LSTMSequence Round GatherND Loop NonMaxSuppression",
    6: "MVN GatherElements Assign ReadValue",
    7: "DFT Gather Gelu IDFT Roll",
    8: "Slice Gather GatherND DetectionOutput DeformableConvolution RandomUniform MaxPool AdaptiveAvgPool "
    "AdaptiveMaxPool Softmax PriorBox If",
    9: "GridSample SoftSign ROIAlign RDFT IRDFT Eye NonMaxSuppression",
    10: "IsFinite IsInf IsNaN Unique",
    11: "Interpolate TopK",
    12: "GroupNormalization Pad ScatterElementsUpdate",
    13: "Multinomial ScaledDotProductAttention BitwiseAnd BitwiseOr BitwiseXor FakeConvert",
    15: "ROIAlignRotated BitwiseRightShift BitwiseLeftShift SearchSorted STFT Col2Im",
}
# Of these the class (`v0::CumSum`, `v3::ScatterNDUpdate`) is older than the operation set that its type names.
RENAMED = {("CumSum", "opset3"), ("ScatterNDUpdate", "opset4")}
KNOWN = RENAMED | {(name, f"opset{version}") for version, names in REGISTERED.items() for name in names.split()}
QUICK = ["resnet18_gem.ptir", "swin_tiny_patch4_window7_224.ptir", "yolov8n.ptir", "yolov8n_seg.ptir"]
QUICK += ["clip_r3d.ptir", "hf_vitpose.ptir", "padim_resnet18.ptir", "hf_dinov2_embedding.legacydyn"]
FURTHER = {"hf_conditional_detr.ptir": {"method": "query-attention", "num_classes": 20, "per_box": True}}
# Unless outputs are named: see tests/zoo/test_zoo_detectors.py.
REFUSED = {"retina_raw_nc4_a3"}
BUNDLED = {
    "pooled": ("shapes_cnn", {}),
    "best classes": ("shapes_cnn", {"top_k": 2, "feature_vector": True, "saliency_size": (20, 20)}),
    "activation map": ("shapes_cnn", {"method": "activation-map"}),
    "masked runs": ("shapes_cnn", {"target_layer": "__module.stages.2/aten::relu/Relu_1"}),
    "tokens": ("shapes_vit", {}),
    "masked blocks": ("shapes_vit", {"block": 2}),
    "detector": ("shapes_detector", {}),
    "instances": ("shapes_segmenter", {}),
    "two stages": ("shapes_two_stage", {"per_box": True}),
    "range": ("shapes_cnn", {"range": True}),
    "layers fused": ("shapes_cnn", {"method": "layercam"}),
    "gradient at the input": ("shapes_cnn", {"method": "input-x-gradient"}),
    "gradient of tokens": ("shapes_vit", {"method": "hirescam"}),
    "gradient of attention": ("shapes_vit", {"method": "legrad"}),
    "class scores": (semantic.shape_segmenter, {}),
    "why a region": (semantic.shape_segmenter, {"method": "seg-recipro-cam"}),
    "key points": (keypoints.shape_keypoints, {"method": "keypoint-map"}),
    "anomalies": (anomalies.shape_inspector, {}),
    "likeness": (likeness.shape_embedding, {}),
}


def operations(model):
    """Type and operation set of every node, those in the bodies of loops too."""
    for node in model.get_ordered_ops():
        yield node
        if node.get_type_name() == "Loop":
            yield from operations(node.get_function())


def kind(node):
    return node.get_type_name(), node.get_type_info().version_id


def unknown(plain, inserted):
    """What the plugin does not register, of what was added, but for types of the model's own layers."""
    own = {kind(node) for node in operations(plain)}
    names = {node.get_friendly_name() for node in operations(plain)}
    added = {kind(node) for node in operations(inserted) if node.get_friendly_name() not in names}
    return added - own - KNOWN


@pytest.mark.parametrize("case", BUNDLED)
def test_every_operation_that_is_inserted_is_one_of_the_gpu(case):
    name, chosen = BUNDLED[case]
    plain = deployed.plain(name, ".xml") if isinstance(name, str) else models.as_format(name(), "openvino")
    new = insert(plain, Options(check=False, **chosen)).model
    assert any(node.get_friendly_name().startswith(PREFIX) for node in operations(new))
    assert not unknown(plain, new)


def pytest_generate_tests(metafunc):
    if "fixture" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--zoo")
        known = [f for f in fixtures() if f.format == "ir" or f.task in ("embedding", "image-text")]
        chosen = [f for f in known if (whole and not {f.arch, f.id} & REFUSED) or f.id in [*QUICK, *FURTHER]]
        metafunc.parametrize("fixture", chosen, ids=[f.id for f in chosen])


def inserted(plain, fixture, chosen):
    try:
        return insert(plain, Options(check=False, **chosen)).model
    except errors.AmbiguousModelError:  # undecoded heads, whose widths fit several readings
        return insert(plain, Options(check=False, num_classes=fixture.expected["classes"])).model


@pytest.mark.long
def test_in_the_zoo(fixture, tmp_path):
    plain = ov.Core().read_model(materialise(fixture, tmp_path))
    ways = [FURTHER.get(fixture.id, {})]
    if fixture.task == "classification":
        ways.append({"method": "hirescam"})
    refused = []
    for chosen in ways:
        try:
            new = inserted(plain, fixture, chosen)
        except errors.XaiInsertError as err:
            refused.append(str(err))
            continue
        assert not unknown(plain, new)
    assert len(refused) < len(ways), refused
