"""What the classes have in common that run a model and read its outputs, one for each kind of task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from xai_insert.explain.draw import Image
from xai_insert.explain.explained import Explained, OfOther, ScoreMeaning, Selection
from xai_insert.explain.feed import Feeder
from xai_insert.explain.outputs import Outputs
from xai_insert.explain.preprocessing import View
from xai_insert.explain.runtime import Engine


@dataclass(frozen=True)
class ReadyToRun(ABC):
    """A model that is ready to run on one image after another.

    Attributes:
        engine: the compiled model.
        feeder: makes its input from an image.
        meaning: what its scores mean, and the names that they go by.
        selection: which of its maps to draw.
    """

    engine: Engine
    feeder: Feeder
    meaning: ScoreMeaning
    selection: Selection = field(default_factory=Selection)

    @property
    def settings(self) -> Sequence[object]:
        """What its results depend on, besides the model."""
        return self.feeder, self.meaning, self.selection

    def explain(self, image: Image) -> Explained:
        """Run on one image, uint8 RGB `[H, W, 3]`.

        Raises:
            XaiInsertError: the model cannot be run, or see `read`.
        """
        feed, view = self.feeder.feed(image)
        outputs = self.engine.infer(feed)
        return replace(self.read(outputs, feed.shape, view), others=self.others(outputs))

    def others(self, outputs: Outputs) -> list[OfOther]:
        """What the outputs say of the other images that are fed.

        Raises:
            XaiInsertError: see `read`.
        """
        return [
            OfOther(
                item.input,
                self.feeder.picture(item.fed),
                self.read(item.outputs, item.fed.shape, View()),
                item.rectangle,
            )
            for item in outputs.others
        ]

    @abstractmethod
    def read(self, outputs: Outputs, shape: Sequence[int], view: View) -> Explained:
        """Read the outputs for the first image of an input of that shape.

        Raises:
            XaiInsertError: the model is of another task, or lacks a class that was asked for.
        """
