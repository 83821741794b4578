"""What bf16 costs a map of derivatives: the values that the model computes, or the branch that reads them.

    python -m benchmarks.exactness.forward_values

LayerCAM of the bundled CNN, one and two stages before the last map, on twelve scenes. The inserted model runs in
float32 and in bf16; then the inserted part alone runs in float32 on what it read in the bf16 run, and all that lies
behind the explained layer on what that layer gave in the bf16 run. Prints the correlation of the map in bf16 with that
in float32 and with that of the part alone (1 if all that is lost was lost before it), and that of the last run with the
map in float32: what would be won if nothing behind the layer were computed in bf16.
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


def behind(model: ov.Model, layer: str, name: str) -> tuple[ov.Model, ov.Model]:
    """The model with what a layer gives as one more output, and all behind that layer with it as the first input."""
    whole, end = model.clone(), model.clone()
    whole.add_results([opset13.result(_given_by(whole, layer))])
    source = _given_by(end, layer)
    entry = opset13.parameter(source.get_partial_shape(), source.get_element_type())
    for reader in list(source.get_target_inputs()):
        reader.replace_source_output(entry.output(0))
    found = end.output(name).get_node().input_value(0)
    return whole, ov.Model([opset13.result(found)], [entry, *end.get_parameters()], "end")


def _given_by(model: ov.Model, layer: str) -> ov.Output:
    return next(node for node in model.get_ordered_ops() if node.get_friendly_name() == layer).output(0)


def row(*cells: str) -> None:
    """One row of a table in Markdown."""
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Run from the command line."""
    core = ov.Core()
    titles = ("bf16 with float32, lowest", "mean", "with the branch alone, lowest", "float32 behind the layer, lowest")
    row("target layer", *titles)
    row(*["---"] * 5)
    for layer in ("-2", "-3"):
        made = insert(_MODEL, Options(method="layercam", target_layer=layer, output_dtype="f32"))
        model, target = made.model, made.report.target["name"]
        whole, branch = apart(model, "saliency_map")
        explained, end = behind(model, target, "saliency_map")
        end_alone = core.compile_model(end, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        explained_half = core.compile_model(explained, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
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
            feature = np.array(list(explained_half(image).values())[-1])
            late = np.array(end_alone([feature, image])[0]).ravel()
            pairs = ((rough, exact), (rough, again), (late, exact))
            found.append([np.corrcoef(one, other)[0, 1] for one, other in pairs])
        plain, fed, ended = np.array(found).T
        row(layer, f"{plain.min():.4f}", f"{plain.mean():.4f}", f"{fed.min():.6f}", f"{ended.min():.4f}")


if __name__ == "__main__":
    main()
