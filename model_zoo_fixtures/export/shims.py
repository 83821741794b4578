"""Let torchvision be imported where its compiled operators are missing or were built for another torch.

torchvision registers meta kernels for ``torchvision::nms`` and ``torchvision::qnms`` at import time, which raises when
its compiled library did not load. Exporting classifiers never calls these operators, so to declare them will do.

Import this module before ``torchvision`` or ``timm``.
"""

import importlib.util

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_LIBRARIES: list[torch.library.Library] = []  # a Library undoes its definitions when it is collected


def _operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True
    from pathlib import Path

    for library in Path(spec.submodule_search_locations[0]).glob("_C*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return hasattr(torch.ops.torchvision, "nms")


def declare_missing_operators() -> None:
    """Declare the schemas that torchvision's import needs, once, and only where its compiled library does not load."""
    if _LIBRARIES or _operators_load():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _LIBRARIES.append(library)


def operators_are_declared_only() -> bool:
    """Tell whether torchvision's operators have a schema here and no kernel."""
    return bool(_LIBRARIES)


declare_missing_operators()
