"""Where quantised IRs are kept."""

import re
from pathlib import Path

import openvino as ov

FOLDER = Path(__file__).parent / "int8"


def save(model: ov.Model, name: str) -> None:
    """Write `int8/NAME.xml`, without indentation, which is an eighth of it."""
    path = FOLDER / f"{name}.xml"
    ov.save_model(model, path, compress_to_fp16=False)
    path.write_text(re.sub(r"(?m)^[\t ]+", "", path.read_text(encoding="utf-8")), encoding="utf-8")
