"""Images and text: a score for each image and prompt (CLIP, SigLIP)."""

from __future__ import annotations

from dataclasses import dataclass

from xai_insert.graph.view import fixed
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.logits import Logits, scored_outputs, vector_size
from xai_insert.locate.prompts import find_prompts
from xai_insert.methods.reading import ToPrompts
from xai_insert.tasks.base import NotMine, Study, Task
from xai_insert.tasks.known.classification import FoundClassifier, located


@dataclass(frozen=True)
class FoundPrompts(FoundClassifier):
    """A model that compares images with prompts."""

    task = "image and text"


class PromptScores(Task):
    """The product of an image's embedding with those of prompts."""

    rank = 40
    takes = frozenset({"target_layer"})

    def is_likely(self, study: Study) -> bool:
        return len(study.graph.inputs) > 1

    def recognise(self, study: Study) -> FoundPrompts | NotMine:
        graph = study.graph
        images, output = image_inputs(graph), study.options.output
        found = find_prompts(graph, images, output)
        if found is None or (found.text.is_constant and scored_outputs(graph, images, output)):
            return NotMine("")
        (width,) = fixed([vector_size(found.image.sizes)])
        parts = located(study, Logits(found.image, found.output_name, width))
        count = found.text.sizes[1 if found.text_transposed else 0]
        reading = ToPrompts(
            count, width, found.text, found.text_transposed, found.product, found.tail, found.scores,
            found.scores_transposed,
        )  # fmt: skip
        return FoundPrompts(parts, reading=reading)


TASK = PromptScores()
