"""Detectors of ultralytics, from their configuration files alone; licence AGPL-3.0, no weights of theirs."""

import os
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_OFFLINE", "true")

import torch
from torch import nn

from model_zoo_fixtures.export import vision_ops
from model_zoo_fixtures.export.detectors.base import Detector

_PACKAGE, _LICENCE = "ultralytics", "AGPL-3.0-only"


class _Dense(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answer = self.network(images)
        return answer[0] if isinstance(answer, (tuple, list)) else answer


def yolo(
    config: str,
    nc: int = 80,
    end2end: bool = False,
    nms: bool = False,
    size: tuple[int, int] = (256, 320),
    dynamic: bool = False,
    suffix: str = "",
    **fields: Any,
) -> Detector:
    """Build a YOLO of ultralytics the way its own exporter prepares it.

    Args:
        config: Name of the configuration file, with the letter of the size; of a detector or a pose model.
        nc: Number of classes.
        end2end: Whether the one-to-one head is exported, with its selection of the best boxes.
        nms: Whether suppression is put into the graph.
        size: Height and width.
        dynamic: Whether the head computes its grid from the input.
        suffix: Added to the name.
        **fields: Other fields of the detector.

    Returns:
        The detector.
    """
    vision_ops.install()
    from ultralytics.engine.exporter import NMSModel
    from ultralytics.nn.tasks import DetectionModel, PoseModel

    is_pose = "-pose" in config
    network: Any = (PoseModel if is_pose else DetectionModel)(config, ch=3, nc=nc, verbose=False)
    network.names = {index: str(index) for index in range(nc)}
    network.task = "pose" if is_pose else "detect"
    network.eval()
    head = network.model[-1]
    if hasattr(head, "_end2end") or getattr(head, "one2one_cv2", None) is not None:
        network.end2end = end2end
    wrapped = _Dense(network)
    if nms:
        arguments = SimpleNamespace(
            format="onnx", dynamic=dynamic, batch=1, max_det=50, conf=0.25, iou=0.7, agnostic_nms=False, opset=17
        )
        wrapped = _Dense(NMSModel(network, arguments))
    detector = Detector(
        id="",
        model=wrapped,
        score_heads=[],
        size=size,
        classes=nc,
        anchors=[1] * head.nl,
        package=_PACKAGE,
        licence=_LICENCE,
        kept=lambda name: ".dfl." in name,
        outputs=("output0",),
        **fields,
    )

    def finish() -> None:
        network.fuse(verbose=False)
        for module in network.modules():
            if type(module) is type(head):
                module.dynamic, module.export, module.format, module.max_det = dynamic, True, "onnx", 50
                module.xyxy = nms
            elif hasattr(module, "forward_split") and type(module).__name__.startswith("C2f"):
                module.forward = module.forward_split
        one = head.cv3 is None
        detector.score_heads = [branch[-1] for branch in (head.one2one_cv3 if one else head.cv3)]
        boxes = head.one2one_cv2 if one else head.cv2
        detector.box_heads = [(branch[-1], 1.0 if head.reg_max > 1 else 2.0) for branch in boxes]

    detector.finish = finish
    parts = [config.partition(".")[0].replace("-", "_")] + ([f"nc{nc}"] if nc != (1 if is_pose else 80) else [])
    parts += [word for word, on in (("e2e", end2end), ("nms", nms), ("dyn", dynamic)) if on]
    detector.id = "_".join(parts) + suffix
    return detector
