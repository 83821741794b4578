"""LeGrad beside PyTorch's own derivatives: transformers of timm x exporters x batches. Needs torch and timm.

    python -m benchmarks.exactness.legrad [NAME ...] [--exporters legacydyn ptirdyn]

The oracle is the definition in float64: the weights of attention of each of the last four blocks are caught where
timm drops some of them in training, the scores are read from that block's own output through norm and head, and the
derivative of the best class's score by these weights is rectified, averaged over heads and queries, and summed over
the blocks. `own` is how far the same is off in PyTorch's float32. Networks have seeded random weights.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.exactness.autograd import BATCHES, built, exported  # before timm

import numpy as np  # isort: skip
import torch  # isort: skip

from benchmarks.lib.tables import Row, markdown_table
from xai_insert import Options, insert_file
from xai_insert.formats.backend import load

NAMES = (
    "vit_tiny_patch16_224",
    "vit_small_patch32_224",
    "deit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "flexivit_small",
    "vit_tiny_r_s16_p8_224",
    "vit_relpos_small_patch16_224",
    "vit_srelpos_small_patch16_224",
    "eva02_tiny_patch14_224",
    "beit_base_patch16_224",
)
_BLOCKS = 4


def _keep(kept: dict[int, torch.Tensor], number: int, module: object, inputs: object, output: torch.Tensor) -> None:
    del module, inputs
    kept[number] = output


def definition(model: torch.nn.Module, image: torch.Tensor) -> np.ndarray:
    """`[B, h, w]`."""
    weights: dict[int, torch.Tensor] = {}
    results: dict[int, torch.Tensor] = {}
    blocks = list(enumerate(model.blocks))[-_BLOCKS:]
    hooks = []
    for number, block in blocks:
        block.attn.fused_attn = False
        for module, kept in ((block.attn.attn_drop, weights), (block, results)):
            hooks.append(module.register_forward_hook(partial(_keep, kept, number)))
    best = model(image).argmax(dim=1)
    for hook in hooks:
        hook.remove()
    total = torch.zeros(())
    for number, _ in blocks:
        scores = model.forward_head(model.norm(results[number]))
        gradient = torch.autograd.grad(scores.gather(1, best[:, None]).sum(), weights[number], retain_graph=True)[0]
        total = total + gradient.clamp(min=0).mean((1, 2))
    height, width = model.patch_embed.grid_size
    return total[:, -height * width :].reshape(-1, height, width).numpy()


def rows(name: str, exporter: str, folder: Path) -> list[Row]:
    """A row for each batch."""
    model, side = built(name)
    path = exported(model, side, exporter, folder)
    new = path.with_stem("new")
    report = insert_file(path, new, Options(method="legrad", output_dtype="f32"))
    double = copy.deepcopy(model).double()
    found = []
    for batch in BATCHES:
        image = np.random.default_rng(batch).standard_normal((batch, 3, side, side)).astype(np.float32)
        loaded = load(new, {})
        runner = loaded.runner()
        outputs = runner.run({runner.inputs[0][0]: image})
        got = outputs[loaded.view().output_names.index("saliency_map")][:, 0]
        wanted = definition(double, torch.from_numpy(image).double())
        own = definition(model, torch.from_numpy(image))
        off, usual = (np.abs(item - wanted).max() / wanted.max() for item in (got, own))
        found.append(
            {
                "network": name,
                "exporter": exporter,
                "batch": str(batch),
                "off": f"{off:.1e}",
                "own": f"{usual:.1e}",
                "1 - correlation": f"{1 - np.corrcoef(got.ravel(), wanted.ravel())[0, 1]:.1e}",
                "predictions moved": f"{report.output_difference:.0e}",
            }
        )
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--exporters", nargs="+", default=["legacydyn", "ptirdyn"])
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    found: list[Row] = []
    for name, exporter in product(given.names, given.exporters):
        with tempfile.TemporaryDirectory() as folder:
            try:
                mine = rows(name, exporter, Path(folder))
            except Exception as err:  # an exporter's failure is that of one row
                mine = [{"network": name, "exporter": exporter, "note": f"{type(err).__name__}: {err}"[:200]}]
        found += mine
        print(*(" ".join(row.values()) for row in mine), sep="\n", flush=True)
    print(markdown_table(found))


if __name__ == "__main__":
    main()
