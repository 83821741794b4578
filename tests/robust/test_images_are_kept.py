"""`xai-explain` changes no file but its own results, whatever folder it is given, and no bad name ends a run."""

import json
import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

from model_zoo_fixtures.testbed.explaining import IMAGES, WithMap, call, fine, on_page, records, tree
from xai_insert.explain import files
from xai_insert.explain.errors import ImageFileError

MODEL = WithMap("shapes_cnn.xml")
PICTURE = IMAGES[0].read_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "i").mkdir()
    for image in IMAGES[:2]:
        shutil.copy(image, tmp_path / "i" / image.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["images/shape_0.jpg", "overlays/mine", "maps/shape_0.png", "index.html"])
@pytest.mark.parametrize("given", ["i", ".", "images"])
def test_a_folder_of_others_is_refused(folder, name, given):
    for part in ("images", Path(name).parent):
        Path(part).mkdir(exist_ok=True)
    Path("images/a.png").write_bytes(PICTURE)
    Path(name).write_bytes(PICTURE)
    before = tree(folder)
    result = call(MODEL, given, "-o", ".")
    assert result.exit_code == 1
    assert "it is not of an earlier run" in result.stderr or "no images in images" in result.stderr
    assert tree(folder) == before


def test_images_below_the_output_folder(folder):
    Path("top.png").write_bytes(PICTURE)
    kept = tree(folder)
    for _ in range(2):
        fine(MODEL, ".", "-o", ".")
        assert {item["name"] for item in records(folder)} == {"i_shape_0", "i_shape_1", "top"}
    assert kept.items() <= tree(folder).items()


@pytest.mark.parametrize("way", ["plain", "link", "folder link"])
@pytest.mark.parametrize("name", ["images/shape_0.jpg", "images/mine.jpg", "overlays/shape_0.x.jpg"])
def test_an_image_among_the_results_is_refused_and_the_rest_goes_on(folder, way, name):
    fine(MODEL, "i", "-o", "o")
    image = Path("o", name)
    if not image.exists():
        image.write_bytes(PICTURE)
    given = image
    if way == "link":
        given = Path("shape_0.jpg")
        given.symlink_to(image)
    elif way == "folder link":
        Path("elsewhere").symlink_to(image.parent)
        given = Path("elsewhere", image.name)
    before = image.read_bytes()
    result = call(MODEL, given, "i", "-o", "o", "--opacity", "0.3")
    assert result.exit_code == 1
    assert "lies among the results" in result.stderr
    assert "2 drawn, 1 not readable" in result.stdout
    assert name == "images/shape_0.jpg" or image.read_bytes() == before


BAD = {
    "pipe": os.mkfifo,
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "broken link": lambda path: path.symlink_to("gone"),
    "loop": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "huge": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 200 << 30),
}


@pytest.mark.parametrize("given", [["i"], ["i/shape_0.png", "i/m.png", "i/shape_1.png"]])
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_fails_alone(folder, kind, given):
    BAD[kind](Path("i/m.png"))
    result = call(MODEL, *given, "-o", "o")
    assert result.exit_code == 1
    assert "error: cannot read i/m.png: " in result.stderr
    assert "2 drawn, 1 not readable" in result.stdout
    assert [item["name"] for item in records(folder / "o")] == ["shape_0", "shape_1"]
    assert len(on_page(Path("o"))) == 2


def test_a_folder_that_cannot_be_listed_is_said(folder, monkeypatch):
    Path("i/secret").mkdir()
    (real_scan, real_list) = os.scandir, os.listdir

    def refusing(real):
        def ask(path="."):
            if str(path).endswith("secret"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        return ask

    monkeypatch.setattr(os, "scandir", refusing(real_scan))
    monkeypatch.setattr(os, "listdir", refusing(real_list))
    result = call(MODEL, "i", "-o", "o")
    assert "cannot read i/secret: Permission denied" in result.stderr
    assert "2 drawn, 1 not readable" in result.stdout


@pytest.mark.parametrize("name", ["猫" * 82, "a\\b", "..", "a\x1b[2Jb", "x" * 251, "e\u0301" * 80, "\u202egnp", "a\nb"])
def test_odd_names_of_images(folder, name):
    Path(f"i/{name}.png").write_bytes(PICTURE)
    labels = folder / "labels.txt"
    labels.write_text("\n".join(["非常に長い名前" * 20] * 8), encoding="utf-8")
    for word in ("3 drawn", "3 already there"):
        assert word in fine(MODEL, "i", "-o", "o", "--labels", labels).stdout
    assert len(records(folder / "o")) == 3
    assert len(tree(folder / "o")) == 3 * 4 + 3


def test_a_name_that_the_drive_does_not_take_fails_alone(folder, monkeypatch):
    real = files.replace_whole

    def replace(path, content, mode=None):
        if "shape_0" in path.name:
            raise OSError(36, "File name too long")
        real(path, content, mode)

    monkeypatch.setattr(files, "replace_whole", replace)
    result = call(MODEL, "i", "-o", "o")
    assert "File name too long" in result.stderr
    assert "1 drawn, 1 not readable" in result.stdout


def test_names_do_not_steer_the_terminal(folder):
    for name in ("\x1b[2J\x07", "two\nlines"):
        Path(f"i/{name}.png").touch()
    result = call(MODEL, "i", "gone\x1b", "-o", "o\x1b[31m")
    assert "\x1b" not in result.output
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 3
    result = call("gone\x1b.xml", "i", "-o", "o")
    assert result.stderr == "error: no such file: gone\\x1b.xml\n"


def test_an_image_of_equal_size_and_time_with_other_content(folder):
    pixels = bytes(range(256)) * 108
    for number, content in enumerate((pixels, pixels[::-1])):
        Path("x.ppm").write_bytes(b"P6 96 96 255\n" + content)
        os.utime("x.ppm", (1, 1))
        assert "1 drawn" in fine(MODEL, "x.ppm", "-o", "o").stdout, number


def test_the_page_is_there_when_a_run_ends_early(folder):
    fine(MODEL, IMAGES[2], "-o", "o")
    Path("o/index.html").unlink()
    assert call(MODEL, "i", "-o", "o", "--classes", "8").exit_code == 1
    assert len(on_page(Path("o"))) == 1


BAD_RECORDS = {
    "a size beyond floats": {"size": [int("9" * 400), 1]},
    "a score beyond floats": {"predictions": [{"label": "a", "score": int("9" * 400)}]},
    "half a letter": {"source": "\ud800"},
    "half a letter in a label": {"predictions": [{"label": "\ud800", "score": 0.5}]},
    "half a letter in a name": {"name": "\ud800"},
    "a note that is no text": {"note": {}},
    "a note that is half a letter": {"note": "\udfff"},
    "a grid of texts": {"maps": [{"title": "a", "grid": ["1", "1"], "overlay": None, "raw": None}]},
    "a score of text in a map": {"maps": [{"title": "a", "grid": [1, 1], "overlay": None, "raw": None, "score": "1"}]},
    "a map without files": {"maps": [{"title": "a", "grid": [1, 1]}]},
    "files that are numbers": {"maps": [{"title": "a", "grid": [1, 1], "overlay": 1, "raw": 2}]},
    "its own file in a folder below": {"image": "images/shape_1.x/../../../i/shape_1.png"},
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_records_that_no_run_has_written(folder, name):
    """One more beside a sound one: the page shows both images, and the line is kept aside."""
    fine(MODEL, "i", "-o", "o")
    first, second = records(folder / "o")
    line = json.dumps({**second, **BAD_RECORDS[name]})
    Path("o/results.jsonl").write_text(json.dumps(first) + "\n" + line + "\n")
    before = tree(folder / "i")
    result = fine(MODEL, "i", "-o", "o")
    assert "1 drawn, 1 already there" in result.stdout
    assert "1 lines of an earlier results.jsonl were set aside" in result.stderr
    assert Path("o/results.set-aside.txt").read_text() == line + "\n"
    assert len(on_page(Path("o"))) == 2
    assert tree(folder / "i") == before


def test_scores_that_are_no_numbers_are_sound(folder):
    """A model may give them."""
    fine(MODEL, IMAGES[0], "-o", "o")
    (line,) = records(folder / "o")
    line["predictions"][0]["score"] = float("nan")
    line["maps"][0]["score"] = float("inf")
    Path("o/results.jsonl").write_text(json.dumps(line) + "\n")
    assert "1 already there" in fine(MODEL, IMAGES[0], "-o", "o").stdout


def test_an_endless_line_is_read_in_pieces(folder):
    fine(MODEL, IMAGES[0], "-o", "o")
    with Path("o/results.jsonl").open("ab") as file:
        file.truncate(file.tell() + (40 << 20))
    fine(MODEL, IMAGES[0], "-o", "o")
    assert len(records(folder / "o")) == 1


def test_endless_labels(folder):
    result = call(MODEL, "i", "-o", "o", "--labels", "/dev/zero")
    assert result.exit_code == 1
    assert "larger than 64 MB" in result.stderr


def test_new_files_have_the_usual_rights(folder):
    before = os.umask(0o027)
    try:
        files.write(Path("a"), b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat("a").st_mode) == 0o640


def test_a_result_that_is_a_link_is_drawn_again(folder):
    """What it leads to is not the result."""
    fine(MODEL, IMAGES[0], "-o", "o")
    image = Path("o/images/shape_0.jpg")
    image.rename("mine.jpg")
    image.symlink_to(Path("mine.jpg").resolve())
    assert "1 drawn" in fine(MODEL, IMAGES[0], "-o", "o").stdout
    assert not image.is_symlink()
    assert Path("mine.jpg").is_file()


def test_a_picture_that_is_swapped_for_a_pipe(folder, monkeypatch):
    """Between the question and the opening."""
    os.mkfifo("p.png")
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: real("i/shape_0.png" if str(path) == "p.png" else path, **how))
    with pytest.raises(ImageFileError, match="not a regular file"):
        files.read(Path("p.png"))
