"""Videos in, videos out."""

import os

import cv2
import numpy as np
import pytest

from model_zoo_fixtures.testbed.explaining import IMAGES, SHAPES, call, fine
from xai_insert.explain.errors import ImageFileError
from xai_insert.explain.video import Video, _opened, split

SIDES = (300, 201)
"""Width and height; odd, which the encoder does not take."""


@pytest.fixture
def clip(tmp_path):
    """Nine frames: the circle, then the star, then the square, at 10 a second."""
    path = tmp_path / "a clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, SIDES)
    for number in (0, 3, 1):
        for _ in range(3):
            writer.write(cv2.resize(cv2.imread(str(IMAGES[number])), SIDES))
    writer.release()
    return path


def frames(path):
    source = cv2.VideoCapture(str(path))
    found = []
    while (read := source.read())[0]:
        found.append(read[1])
    return found, source.get(cv2.CAP_PROP_FPS)


def redness(frame):
    """Where the map is high: red beyond the other colours, as shares of the picture."""
    rows, columns = np.nonzero((frame[..., 2].astype(int) - frame[..., :2].max(axis=2) > 60)[:201])
    return np.median(columns) / 300, np.median(rows) / 201


def test_every_frame_is_explained(clip, tmp_path):
    out = tmp_path / "out"
    result = fine(SHAPES / "shapes_cnn.onnx", clip, "-o", out, "--background", "gray")
    assert f"video: {out / 'videos' / 'a clip.mp4'}" in result.stdout
    drawn, rate = frames(out / "videos" / "a clip.mp4")
    assert len(drawn) == 9
    assert rate == pytest.approx(10)
    assert drawn[0].shape[1] == 300
    assert drawn[0].shape[0] > 201, "a caption below"
    for index, place in ((1, (0.67, 0.22)), (4, (0.32, 0.22))):  # of circle and star
        np.testing.assert_allclose(redness(drawn[index]), place, atol=0.12)
    assert [path.name for path in (out / "videos").iterdir()] == ["a clip.mp4"]


def test_some_frames_beside_images(clip, tmp_path):
    result = fine(SHAPES / "shapes_detector.onnx", clip, IMAGES[0], "-o", tmp_path / "out", "--frames", "4")
    assert "1 drawn" in result.stdout
    assert len(frames(tmp_path / "out" / "videos" / "a clip.mp4")[0]) == 4


def test_what_is_no_video_is_told_in_one_line(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    odd = os.fsdecode(b"caf\xe9.mp4")
    (tmp_path / odd).write_bytes(b"no video")
    for name, message in (("bad.mp4", "not a video"), ("gone.mp4", "no such file"), (odd, "OpenCV takes no such name")):
        result = call(SHAPES / "shapes_cnn.onnx", tmp_path / name, "-o", tmp_path / "out", "-q")
        assert result.exit_code == 1
        assert f": {message}" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not list((tmp_path / "out" / "videos").iterdir())


def test_cameras_are_told_by_number(tmp_path):
    videos, rest = split([tmp_path / "a.png", type(tmp_path)("camera:7"), tmp_path / "b.MOV", tmp_path])
    assert videos == [Video(7, "camera7"), Video(tmp_path / "b.MOV", "b")]
    assert rest == [tmp_path / "a.png", tmp_path]
    twice, _ = split([tmp_path / "a.mp4", tmp_path / "b" / "a.avi"])
    assert [video.name for video in twice] == ["a", "a~1"]
    with pytest.raises(ImageFileError, match="cannot read camera 7: no such camera"):
        _opened(videos[0])
