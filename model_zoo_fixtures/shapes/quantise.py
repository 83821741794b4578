"""INT8 IRs of the bundled classifiers: post-training quantisation with NNCF.

    pip install nncf
    python -m model_zoo_fixtures.shapes.quantise

Writes `int8/shapes_cnn.xml`, `int8/shapes_vit.xml` and, with nothing but compressed weights,
`int8/shapes_vit_weights.xml`. The tests read the files, so that they do not need NNCF.
"""

from pathlib import Path

import nncf
import openvino as ov

from model_zoo_fixtures.shapes.dataset import classification_scene
from model_zoo_fixtures.shapes.saving import save

FOLDER = Path(__file__).parent
_CALIBRATION_IMAGES = 100


def main() -> None:
    """Write the files."""
    core = ov.Core()
    (FOLDER / "int8").mkdir(exist_ok=True)
    images = nncf.Dataset([classification_scene(seed).model_input() for seed in range(_CALIBRATION_IMAGES)])
    for name, kind in (("shapes_cnn", None), ("shapes_vit", nncf.ModelType.TRANSFORMER)):
        model = core.read_model(FOLDER / f"{name}.xml")
        quantised = nncf.quantize(model, images, subset_size=_CALIBRATION_IMAGES, model_type=kind)
        save(quantised, name)
    model = core.read_model(FOLDER / "shapes_vit.xml")
    compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    save(compressed, "shapes_vit_weights")


if __name__ == "__main__":
    main()
