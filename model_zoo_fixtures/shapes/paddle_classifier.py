"""A tiny classifier of random weights as Paddle saves it, in the format that OpenVINO reads.

    pip install paddlepaddle
    FLAGS_enable_pir_api=0 python -m model_zoo_fixtures.shapes.paddle_classifier

Writes `paddle/tiny.pdmodel` with `paddle/tiny.pdiparams`, and prints Paddle's own scores for the image that
`tests/promises/test_other_files.py` has. The tests read the files, so that they do not need Paddle.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np
import paddle

GOAL = Path(__file__).parent / "paddle" / "tiny"


class Tiny(paddle.nn.Layer):
    """Two convolutions, a mean over the grid, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = paddle.nn.Conv2D(3, 6, 3, stride=2, padding=1)
        self.second = paddle.nn.Conv2D(6, 8, 3, stride=2, padding=1)
        self.pool = paddle.nn.AdaptiveAvgPool2D(1)
        self.head = paddle.nn.Linear(8, 5)

    def forward(self, image: Any) -> Any:
        x = paddle.nn.functional.relu(self.first(image))
        x = paddle.nn.functional.relu(self.second(x))
        return self.head(paddle.flatten(self.pool(x), 1))


def main() -> None:
    """Write the files."""
    paddle.seed(0)
    network = Tiny()
    network.eval()
    traceback.extract_stack = lambda *_, **__: []  # the file would hold where each operation was called from
    paddle.jit.save(network, str(GOAL), input_spec=[paddle.static.InputSpec([1, 3, 32, 32], "float32", "image")])
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32)
    print(network(paddle.to_tensor(image)).numpy().tolist())


if __name__ == "__main__":
    main()
