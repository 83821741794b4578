"""Run an inserted model on images and look at what it explains.

`Explainer` runs a model from Python; `overlay` draws a map on an image, `read_outputs` finds the map among the outputs
of a runtime. Runs over folders are behind the command `xai-explain`.
"""

from xai_insert.explain.draw import COLORMAPS, overlay
from xai_insert.explain.explainer import Explainer, Explanation
from xai_insert.explain.outputs import Outputs, read_outputs
from xai_insert.explain.picture import Look

__all__ = ["COLORMAPS", "Explainer", "Explanation", "Look", "Outputs", "overlay", "read_outputs"]
