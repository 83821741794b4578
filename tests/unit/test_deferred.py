"""A library imported without what it may never use: that is loaded when it is."""

import subprocess
import sys

SCRIPT = """
import sys
from xai_insert.formats.deferred import import_without
import_without("outer", ("inner", "outer.part"))
import outer
assert seen == ["outer"], seen
assert outer.use() == 5
assert seen == ["outer", "outer.part", "inner"], seen
assert not any(type(finder).__name__ == "_Later" for finder in sys.meta_path)
"""


def test_modules_wait_until_they_are_used(tmp_path):
    (tmp_path / "outer").mkdir()
    note = "import builtins; builtins.seen.append(__name__)\n"
    (tmp_path / "outer" / "__init__.py").write_text(
        note + "import inner\nfrom outer import part\ndef use(): return part.NUMBER + 1\n"
    )
    (tmp_path / "outer" / "part.py").write_text(note + "import inner\nNUMBER = inner.NUMBER * 2\n")
    (tmp_path / "inner.py").write_text(note + "NUMBER = 2\n")
    script = f"import builtins, sys; builtins.seen = []; sys.path.insert(0, {str(tmp_path)!r})\n{SCRIPT}"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_insertion_does_not_load_sympy():
    script = (
        "import sys; from xai_insert import insert; insert('model_zoo_fixtures/shapes/shapes_cnn.onnx')\n"
        "assert 'onnx_ir' in sys.modules and 'sympy.core' not in sys.modules\n"
        "import onnx_ir; assert str(onnx_ir.SymbolicDim('N') + 2) == 'N + 2'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_module_that_is_left_out_is_not_found(tmp_path):
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "__init__.py").write_text("try: from outer.part import NUMBER\nexcept ImportError: pass\n")
    (tmp_path / "outer" / "part.py").write_text("NUMBER = 2\n")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from xai_insert.formats.deferred import leave_out
leave_out("outer.part")
import outer
assert not hasattr(outer, "NUMBER")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
