"""Keeping the branch in float32 where the rest of the model runs in bf16 (CPUs that have it) or f16 (GPUs).

The map of a masked run is a small difference on a large common part, which half precision drowns. The attribute that
exempts a layer can't be set through Python; it must stand in the serialised model, from where it is read and kept.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import openvino as ov

from xai_insert.graph.names import PREFIX

_MARK = '<rt_info><attribute name="DisablePrecisionConversion" version="0" value="dynamic:bf16,f16" /></rt_info>'
_LAYER = re.compile(rf'<layer [^>]*name="{PREFIX}[^>]*>(?:\s*<data [^>]*/>)?')


def mark_branch(xml: Path) -> None:
    """Mark every inserted layer of the model file `xml`."""
    text = xml.read_text(encoding="utf-8")
    xml.write_text(_LAYER.sub(lambda match: match.group(0) + _MARK, text), encoding="utf-8")


def marked(model: ov.Model) -> ov.Model:
    """The same model with its inserted layers marked, by way of a serialised copy."""
    with tempfile.TemporaryDirectory(prefix="xai-insert-") as folder:
        xml = Path(folder, "model.xml")
        ov.save_model(model, xml, compress_to_fp16=False)
        mark_branch(xml)
        core = ov.Core()
        core.set_property({"ENABLE_MMAP": False})  # the files go away
        return core.read_model(xml)
