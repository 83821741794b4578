"""What is located in a detector."""

from __future__ import annotations

from dataclasses import dataclass

from xai_insert.graph.view import Value
from xai_insert.locate.affine import Affine
from xai_insert.locate.frontier import Head
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.levels import Level


@dataclass(frozen=True)
class Channels:
    """Where the class scores lie among the channels of a head.

    Class `k` as the head counts them, of anchor `a`, is channel `start + a * stride + k`, or `start + k * anchors + a`
    if classes come first. Other channels may stand before, between and behind.

    Attributes:
        start: first class channel.
        classes: number of classes of the head, a background included.
        anchors: number of anchors per location.
        stride: channels per anchor.
        classes_first: whether classes, not anchors, are the slower index.
        picked: the head's class of each class of the outputs, where these have another order or are fewer; else empty.
    """

    start: int
    classes: int
    anchors: int
    stride: int
    classes_first: bool = False
    picked: tuple[int, ...] = ()

    @property
    def labels(self) -> int:
        """Number of classes of the outputs, a background included."""
        return len(self.picked) or self.classes

    def channel(self, anchor: int, label: int) -> int:
        """The channel of a class of the outputs, of an anchor."""
        label = self.picked[label] if self.picked else label
        return self.start + (label * self.anchors + anchor if self.classes_first else anchor * self.stride + label)

    def label(self, channel: int) -> int:
        """The head's class of a channel; one of the anchor's other channels, where there are such, has no class."""
        return (channel - self.start) // self.anchors if self.classes_first else (channel - self.start) % self.stride

    @property
    def block(self) -> tuple[int, int]:
        """Where the channels begin and end that a reshape sets apart into anchors and what each of them has."""
        if self.classes_first or self.anchors == 1:
            return self.start, self.start + self.classes * self.anchors
        first = max(0, self.start + self.classes - self.stride)
        return first, first + self.anchors * self.stride

    @property
    def within(self) -> tuple[int, int]:
        """Where the classes of an anchor begin and end among the channels that `block` gives it."""
        first = self.start - self.block[0]
        return first, first + self.classes


@dataclass(frozen=True)
class ClassLevel:
    """Class scores of one grid.

    Attributes:
        head: the layer they come from.
        level: the grid.
        channels: which of the head's channels they are.
        more: other heads of the same grid, with the scores of more anchors.
        affine: what is still done to the scores before a sigmoid or softmax.
    """

    head: Head
    level: Level
    channels: Channels
    more: tuple[ClassLevel, ...] = ()
    affine: Affine | None = None

    @property
    def feature(self) -> FeatureMap:
        """The scores as a map."""
        level, head = self.level, self.head
        grid = (level.height, level.width)
        return FeatureMap(head.value, head.channel_axis, level.grid_axes, grid, level.start, level.frame)

    @property
    def parts(self) -> tuple[ClassLevel, ...]:
        """It and its other heads."""
        return (self, *self.more)


@dataclass(frozen=True)
class Detector:
    """A detector with a class score at every location.

    Attributes:
        levels: from the finest grid to the coarsest.
        classes: number of classes, a background included.
        background: its index among the classes; None if no class stands back from the detections.
        evidence: how the class scores were told from boxes, for people.
        is_exclusive: whether an output gives all classes, of which the others fall where one rises, as after a softmax.
    """

    levels: tuple[ClassLevel, ...]
    classes: int
    background: int | None
    evidence: str
    is_exclusive: bool = False

    @property
    def parts(self) -> list[ClassLevel]:
        """The levels, and the other heads of their grids."""
        return [part for level in self.levels for part in level.parts]

    @property
    def middle(self) -> ClassLevel:
        """The level whose grid the map has."""
        return self.levels[len(self.levels) // 2]

    @property
    def batch(self) -> int | None:
        return self.middle.head.value.sizes[0]


@dataclass(frozen=True)
class Regions:
    """A detector without class scores at locations: a region head or queries read its features.

    Attributes:
        feature: the map that they read; the coarsest where there are several.
        readers: what reads it, for people.
        has_region_head: whether that is a region head.
    """

    feature: FeatureMap
    readers: str
    has_region_head: bool = False

    @property
    def value(self) -> Value:
        return self.feature.value
