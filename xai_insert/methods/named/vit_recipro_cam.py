"""ViT Recipro-CAM: the class scores when the tokens of a block are zero but those around one patch."""

from __future__ import annotations

from xai_insert.locate.classifier import Wanted
from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.of_classifier import NO_BOXES, OF_VECTORS
from xai_insert.methods.of_tokens import tokens_plan
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.plan import Plan


class VitReciproCam(Method):
    """Of transformers that read class tokens."""

    summary = "class scores with the tokens around one patch kept"
    paper = "Byun and Lee, ViT-ReciproCAM: Gradient and attention-free visual explanations for ViT, 2023"
    page = "vit-recipro-cam.md"
    tasks = frozenset({"classification", "embedding", "prompts"})
    options = OF_VECTORS | {"output", "target_layer", "top_k", "classes", "form", "mask_batch", "block", "kernel"}
    excludes = NO_BOXES
    reads = Wanted.TOKENS

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        readout = found.parts.readout if isinstance(found, FoundClassifier) else None
        if not isinstance(found, FoundClassifier) or readout is None or readout.is_pool:
            return Refusal("no block with class tokens")
        return tokens_plan(study, found, "vit-recipro-cam", readout, study.options.kernel)


METHOD = VitReciproCam()
