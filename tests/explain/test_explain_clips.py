"""Models of clips: a video in, a video with the maps of each frame's own time out."""

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_zoo_fixtures.testbed.explaining import IMAGES, call
from xai_insert.explain.clips import _at
from xai_insert.explain.errors import PreprocessingError
from xai_insert.explain.feed import Feeder
from xai_insert.explain.preprocessing import Preprocessing
from xai_insert.explain.shown import ImageInput

SIDE, FRAMES = 32, 8


@pytest.fixture
def model(tmp_path):
    """Two classes, bright and dark, from means over 2 frames and 4 x 4 pixels."""
    weight = np.full((2, 3, 2, 4, 4), 1 / 96, np.float32)
    weight[1] *= -1
    constants = {"w": weight, "shift": np.float32([0, 100]).reshape(1, 2, 1, 1, 1), "eye": np.eye(2, dtype=np.float32)}
    nodes = [
        helper.make_node("Transpose", ["clip"], ["x"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 4, 4]),
        helper.make_node("Add", ["y", "shift"], ["z"]),
        helper.make_node("Relu", ["z"], ["f"]),
        helper.make_node("GlobalAveragePool", ["f"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("MatMul", ["flat", "eye"], ["scores"]),
    ]
    clip = helper.make_tensor_value_info("clip", TensorProto.FLOAT, [1, FRAMES, 3, SIDE, SIDE])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "net", [clip], [scores], stored),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(made, tmp_path / "clips.onnx")
    return tmp_path / "clips.onnx"


@pytest.fixture
def video(tmp_path):
    """Eleven frames: a white square on the left, and from the fifth on, on the right."""
    path = tmp_path / "moving.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (160, 120))
    for number in range(11):
        frame = np.zeros((120, 160, 3), np.uint8)
        left = 10 if number < 4 else 110
        frame[40:80, left : left + 40] = 255
        writer.write(frame)
    writer.release()
    return path


def test_each_frame_has_the_map_of_its_time(model, video, tmp_path):
    result = call(model, video, "-o", tmp_path / "out", "--classes", "0", "--background", "gray")
    assert result.exit_code == 0, result.output
    source = cv2.VideoCapture(str(tmp_path / "out" / "videos" / "moving.mp4"))
    drawn = []
    while (read := source.read())[0]:
        drawn.append(read[1])
    assert len(drawn) == 11
    for number, frame in enumerate(drawn):
        red = frame[..., 2].astype(int) - frame[..., :2].max(axis=2) > 60
        _, columns = np.nonzero(red[: frame.shape[1] * 3 // 4])  # without the caption
        wanted = 30 if number < 4 else 130
        assert abs(np.median(columns) / frame.shape[1] - wanted / 160) < 0.12, number


def test_an_image_is_no_clip(model, tmp_path):
    result = call(model, IMAGES[0], "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "the model takes clips of 8 frames: give a video" in result.output + result.stderr


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 3, 4, 8, 8), "NCTHW"), ((1, 4, 3, 8, 8), "NTCHW"), ((2, 4, 8, 8, 1), "NTHWC")],
)
def test_layouts(shape, layout):
    feeder = Feeder.of(ImageInput("clip", shape, "float32"), Preprocessing())
    frames = [np.full((10, 10, 3), number, np.uint8) for number in range(3)]
    feed, _ = feeder.clip(frames)
    assert (feeder.layout, feed.shape) == (layout, shape)
    times = np.moveaxis(feed, layout.index("T"), 0).reshape(4, -1)
    assert [row.min() for row in times] == [row.max() for row in times]
    assert times[2, 0] == times[3, 0] > times[1, 0] > times[0, 0]


@pytest.mark.parametrize(
    ("shape", "message"), [((1, None, 3, 8, 8), "number of frames open"), ((1, 3, 3, 8, 8), "1 or 3 channels on one")]
)
def test_layouts_that_are_not_told_are_refused(shape, message):
    with pytest.raises(PreprocessingError, match=message):
        Feeder.of(ImageInput("clip", shape, "float32"), Preprocessing())


def test_between_two_times_a_map_is_between_theirs():
    maps = np.uint8([[[[0]], [[100]]]])
    assert [int(_at(maps, place)[0, 0, 0]) for place in (-1, 0, 0.25, 1, 2)] == [0, 0, 25, 100, 100]
