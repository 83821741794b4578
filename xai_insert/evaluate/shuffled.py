"""The model that has learned nothing: the same network, its weights in random order, with the same kind of map.

A map that stays as it was explains the network's shape or the image's edges, and not what was learned (Adebayo et al.,
"Sanity Checks for Saliency Maps", 2018, https://arxiv.org/abs/1810.03292).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xai_insert.errors import ModelFileError
from xai_insert.explain.outputs import Array
from xai_insert.formats.backend import LoadedModel, load
from xai_insert.options import Options
from xai_insert.pipeline import SALIENCY_MAP, insert_loaded
from xai_insert.strip import own_outputs, without_map
from xai_insert.verify import afresh, options_of
from xai_insert.writing import write_model

_SEED = 0


def write_shuffled(path: Path, maps: Array, folder: Path) -> Path:
    """Write a model with shuffled weights, and a map as the original's.

    Args:
        path: `.xml` or `.onnx`, with a map or without.
        maps: the map of some image, `[1, K, h, w]` or `[1, h, w]`.
        folder: where to write it.

    Raises:
        XaiInsertError: no map can be inserted into it.
    """
    whole = load(path, {})
    names = whole.view().output_names
    options, has_map = Options(check=False), SALIENCY_MAP in names
    if has_map:
        own = own_outputs(names)
        options = replace(options_of(whole.read_metadata(), maps, own), check=False)

    def plain() -> LoadedModel:
        loaded = load(path, {})
        if has_map:
            loaded, _ = without_map(loaded, names)
        if not loaded.shuffle(_SEED):
            raise ModelFileError("the model stores no weights of a convolution or product that could be shuffled")
        return loaded

    result = afresh(plain, options, maps) if has_map else insert_loaded(plain, options, "")[0]
    output = folder / f"shuffled{path.suffix.lower()}"
    write_model(result, output)
    return output
