"""Reading the metadata of an OpenVINO model."""

from __future__ import annotations

import openvino as ov

from xai_insert.errors import ModelFileError


def entries(model: ov.Model, section: str) -> dict[str, str]:
    """What stands below a section of the model's metadata, as text; nothing where there is no such section.

    Raises:
        ModelFileError: it is no text.
    """
    if not model.has_rt_info([section]):
        return {}
    try:
        return {str(key): str(getattr(item, "value", item)) for key, item in model.get_rt_info([section]).value.items()}
    except UnicodeDecodeError as err:
        raise ModelFileError(f"the metadata {section!r} of the model is no text in UTF-8; is the file whole?") from err
