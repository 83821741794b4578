"""What bf16 costs a map of derivatives: the values that the model computes, or the branch that reads them.

    python -m benchmarks.exactness.forward_values

LayerCAM of the bundled CNN, one and two stages before the last map, on twelve scenes. The inserted model runs in
float32 and in bf16; then the inserted part alone runs in float32 on what it read in the bf16 run. Prints the
correlation of the map in bf16 with that in float32, and with that of the part alone: 1 if all that is lost was lost
before it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13

from model_zoo_fixtures.shapes.dataset import HELD_OUT_SEED, classification_scene
from xai_insert import Options, insert
from xai_insert.graph.names import PREFIX

_MODEL = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes" / "shapes_cnn.xml"
_SCENES = 12


def _is_inserted(node: ov.Node) -> bool:
    return str(node.get_friendly_name()).startswith(PREFIX)


def read_by_branch(model: ov.Model) -> list[ov.Output]:
    """What the inserted operations read of the model."""
    nodes = [node for node in model.get_ordered_ops() if _is_inserted(node)]
    read = {(source.get_node().get_friendly_name(), source.get_index()): source
            for node in nodes for source in node.input_values() if not _is_inserted(source.get_node())}  # fmt: skip
    return [source for source in read.values() if source.get_node().get_type_name() != "Constant"]


def apart(model: ov.Model, name: str) -> tuple[ov.Model, ov.Model]:
    """The model with what its branch reads as further outputs, and the branch alone with these as inputs."""
    whole, branch = model.clone(), model.clone()
    whole.add_results([opset13.result(source) for source in read_by_branch(whole)])
    inputs = []
    for source in read_by_branch(branch):
        inputs.append(opset13.parameter(source.get_partial_shape(), source.get_element_type()))
        for reader in list(source.get_target_inputs()):
            if _is_inserted(reader.get_node()):
                reader.replace_source_output(inputs[-1].output(0))
    found = branch.output(name).get_node().input_value(0)
    return whole, ov.Model([opset13.result(found)], inputs, "branch")


def row(*cells: str) -> None:
    """One row of a table in Markdown."""
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Run from the command line."""
    core = ov.Core()
    row("target layer", "bf16 with float32, lowest", "mean", "with the branch alone, lowest")
    row(*["---"] * 4)
    for layer in ("-2", "-3"):
        model = insert(_MODEL, Options(method="layercam", target_layer=layer, output_dtype="f32")).model
        whole, branch = apart(model, "saliency_map")
        single, half = (
            core.compile_model(whole, "CPU", {"INFERENCE_PRECISION_HINT": kind}) for kind in ("f32", "bf16")
        )
        alone = core.compile_model(branch, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = []
        for index in range(_SCENES):
            image = classification_scene(HELD_OUT_SEED + index).model_input()
            exact, rough = (np.array(run(image)["saliency_map"]).ravel() for run in (single, half))
            given = [np.array(value) for value in half(image).values()][len(model.outputs) :]
            again = np.array(alone(given)[0]).ravel()
            found.append([np.corrcoef(rough, other)[0, 1] for other in (exact, again)])
        plain, fed = np.array(found).T
        row(layer, f"{plain.min():.4f}", f"{plain.mean():.4f}", f"{fed.min():.6f}")


if __name__ == "__main__":
    main()
