"""Run an inserted model on images and look at what it explains.

`overlay` draws a map on an image, `read_outputs` finds the map among the outputs of a runtime; the rest is behind the
command `xai-explain`.
"""

from xai_insert.explain.draw import COLORMAPS, overlay
from xai_insert.explain.outputs import Outputs, read_outputs

__all__ = ["COLORMAPS", "Outputs", "overlay", "read_outputs"]
