"""The page of `xai-explain` in a real browser: what is drawn, filtered, sorted and enlarged; hostile names."""

import json
import os
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest

from model_zoo_fixtures.testbed.browser import open_browser
from model_zoo_fixtures.testbed.explaining import IMAGES, SHAPES, calls, fine, on_page
from xai_insert import Options, insert_file
from xai_insert.explain.draw import overlay
from xai_insert.explain.explained import Instance
from xai_insert.explain.page import is_maps_script, maps_script
from xai_insert.explain.preprocessing import View
from xai_insert.explain.scale import scaled

AXE = Path(os.environ.get("XAI_INSERT_NODE_MODULES", ""), "axe-core", "axe.min.js")

HOSTILE = "</script><img src=x onerror=document.title='hit'>\u2028'\"\\ $&.png"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    insert_file(SHAPES / "shapes_cnn.onnx", folder / "f32.onnx", Options(output_dtype="f32", check=False))
    fine(folder / "f32.onnx", *IMAGES, "-o", folder / "one", "--classes", "top3")
    fine(SHAPES / "shapes_vit.onnx", *IMAGES, "-o", folder / "two", "--beside", folder / "one", "--background", "gray")
    fine(SHAPES / "shapes_segmenter.onnx", *IMAGES, "-o", folder / "objects")
    return folder


class Page:
    def __init__(self, browser, folder):
        self.browser = browser
        browser.get((folder / "index.html").as_uri())
        self.wait("return 'ready' in document.body.dataset")
        self.settle()

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, script):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 20).until(lambda _: self.run(script))

    def settle(self):
        self.wait(
            "const all = [...document.querySelectorAll('.frame')];"
            "return all.every((one) => one.querySelector('img')?.complete && "
            "(one.querySelector('canvas') || !one.matches('.map') || "
            "one.closest('figure').innerText.includes('no map of')))"
        )

    def set(self, field, value):
        self.run(
            "const one = document.getElementById(arguments[0]);"
            "if (one.type === 'checkbox') one.checked = arguments[1]; else one.value = arguments[1];"
            "for (const kind of ['input', 'change']) one.dispatchEvent(new Event(kind, { bubbles: true }))",
            field,
            value,
        )

    def names(self):
        return self.run("return [...document.querySelectorAll('#list h2')].map((one) => one.textContent)")

    def captions(self, row=0):
        script = "return [...document.querySelectorAll('#list > li')[arguments[0]].querySelectorAll('figcaption')]"
        return self.run(f"{script}.map((one) => one.textContent)", row)

    def press(self, key):
        from selenium.webdriver.common.keys import Keys

        self.browser.switch_to.active_element.send_keys(getattr(Keys, key))

    def complaints(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def page(results):
    with open_browser(1440, 1600) as browser:
        yield Page(browser, results / "one")


def test_rows_and_header(page, results):
    assert page.names() == [path.name for path in IMAGES]
    first = [f"{item['label']} {item['score']:.2f}" for item in on_page(results / "one")[0]["maps"]]
    assert page.captions() == ["image", *first]
    facts = page.run("return document.querySelector('dl').innerText")
    for text in ("f32.onnx", "recipro-cam", "NCHW 96x96, resize fit", "xai-explain", "onnxruntime", "20"):
        assert text in facts
    assert page.complaints() == []


def test_browser_draws_what_the_files_show(page, results):
    """Over black, the canvas of the predicted class is the overlay of draw.py."""
    record = on_page(results / "one")[0]
    entry = calls(results / "one" / record["data"])[0]["maps"][0]
    values = np.frombuffer(b64decode(entry["data"]), np.uint8).reshape(entry["h"], entry["w"])
    pixels = page.run(
        "const one = document.querySelector('#list canvas'), context = one.getContext('2d');"
        "return [one.width, one.height, ...context.getImageData(0, 0, one.width, one.height).data]"
    )
    drawn = np.array(pixels[2:]).reshape(pixels[1], pixels[0], 4).astype(float)
    black = np.zeros((pixels[1], pixels[0], 3), np.uint8)
    expected = overlay(black, np.ascontiguousarray(values), opacity=1).astype(float)
    difference = np.abs(drawn[..., :3] * drawn[..., 3:] / 255 - expected)
    assert difference.mean() < 2
    assert np.percentile(difference, 99) < 20, "a value beside another one in steep colours"


def test_opacity_colours_and_background(page):
    def pixel():
        return page.run(
            "const one = document.querySelector('#list canvas');"
            "return [...one.getContext('2d').getImageData(64, 30, 1, 1).data]"
        )

    before = pixel()
    page.set("opacity", "0.3")
    assert page.run("return getComputedStyle(document.querySelector('#list canvas')).opacity") == "0.3"
    page.set("palette", "gray")
    page.settle()
    after = pixel()
    assert after[0] == after[1] == after[2]
    assert before[:3] != after[:3]
    page.set("gray", True)
    shown = "return getComputedStyle(document.querySelector('#list .map img')).filter"
    assert page.run(shown) == "grayscale(1)"


def test_weak_classes_are_faint_until_each_has_its_own_scale(page):
    def most(index):
        return page.run(
            "const one = document.querySelectorAll('#list canvas')[arguments[0]];"
            "const { data } = one.getContext('2d').getImageData(0, 0, one.width, one.height);"
            "return data.filter((_, at) => at % 4 === 3).reduce((a, b) => Math.max(a, b))",
            index,
        )

    assert most(0) == 255
    assert most(1) <= 51, "a fifth"
    page.set("scale", "each")
    page.settle()
    assert (most(0), most(1)) == (255, 255)


def test_filter_and_sort(page, results):
    records = on_page(results / "one")
    page.set("text", "shape_3")
    page.wait("return document.querySelectorAll('#list > li').length === 1")
    assert page.run("return document.getElementById('count').textContent") == "1 of 5 images"
    page.set("text", "")
    page.wait("return document.querySelectorAll('#list > li').length === 5")
    page.set("class", "=star")
    page.set("least", "0.5")
    page.wait("return document.querySelectorAll('#list > li').length === 1")
    assert page.names() == ["shape_3.png"]
    page.set("class", "")
    page.set("least", "0")
    page.wait("return document.querySelectorAll('#list > li').length === 5")
    best = {record["source"].split("/")[-1]: record["predictions"][0] for record in records}
    page.set("sort", "low")
    assert page.names() == sorted(best, key=lambda name: best[name]["score"])
    page.set("sort", "class")
    assert page.names() == sorted(best, key=lambda name: best[name]["label"])
    page.set("sort", "doubt")
    doubt = {}
    for record in on_page(results / "one"):
        first, *others = record["predictions"]
        second = next((item["score"] for item in others if item["label"] != first["label"]), 0)
        doubt[record["source"].split("/")[-1]] = second / first["score"]
    assert page.names() == sorted(doubt, key=lambda name: -doubt[name])
    page.set("text", "nothing like it")
    page.wait("return document.querySelector('.none')")


def test_two_classes_side_by_side(page):
    page.set("first", "=circle")
    page.set("second", "=star")
    page.settle()
    assert page.captions(0) == ["image", "circle 0.97", "no map of star"]


def test_two_models_side_by_side(results):
    with open_browser(1440, 1600) as browser:
        page = Page(browser, results / "two")
        captions = page.captions()
        assert [caption.split(":")[0] for caption in captions[1:]] == ["shapes_vit.onnx", *["f32.onnx"] * 3]
        page.set("sort", "doubt")
        own, other = (on_page(results / name) for name in ("two", "one"))
        apart = {}
        for mine, theirs in zip(own, other, strict=True):
            (a, b) = (record["predictions"][0] for record in (mine, theirs))
            same = a["label"] == b["label"]
            apart[mine["source"].split("/")[-1]] = (
                abs(a["score"] - b["score"]) if same else 1 + min(a["score"], b["score"])
            )
        assert page.names() == sorted(apart, key=lambda name: -apart[name])
        assert page.run("return document.querySelectorAll('dl').length") == 2
        assert page.run("return document.body.classList.contains('gray')")
        assert page.complaints() == []


def test_enlarging_by_keyboard(page):
    page.run("document.querySelectorAll('#list button')[1].focus()")
    page.press("ENTER")
    title = "return document.querySelector('dialog[open] figcaption')?.textContent ?? ''"
    page.wait("return document.querySelector('dialog[open] canvas')")
    assert page.run(title).startswith("shape_0.png: circle 0.97one scale, colours from")
    page.press("ARROW_DOWN")
    assert page.run(title).startswith("shape_1.png: square")
    page.press("ARROW_LEFT")
    assert page.run(title) == "shape_1.png: image"
    page.press("ESCAPE")
    page.wait("return !document.querySelector('dialog').open")
    focused = "return document.activeElement.getAttribute('aria-label')"
    page.wait(f"{focused} === 'Enlarge shape_1.png: image'")


def test_objects_are_marked(results):
    with open_browser(1440, 900) as browser:
        page = Page(browser, results / "objects")
        assert page.run("return document.querySelector('#list .tag').textContent") == "circle 0.94"
        points = page.run("return document.querySelector('#list polygon').getAttribute('points')")
        assert points.count(" ") > 20, "an outline"


def test_a_phone_uses_the_full_width(results):
    with open_browser(390, 800, phone=True) as browser:
        page = Page(browser, results / "one")
        width = page.run("return document.querySelector('#list .frame').getBoundingClientRect().width")
        assert width >= 360
        assert page.run("return document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(results, dark):
    if not AXE.is_file():
        pytest.skip("set XAI_INSERT_NODE_MODULES to a node_modules with axe-core")
    with open_browser(1440, 900, dark=dark) as browser:
        page = Page(browser, results / "one")
        page.run("document.querySelectorAll('#list button')[1].click()")
        for state in ("enlarged", "list"):
            page.run(AXE.read_text(encoding="utf-8"))
            found = browser.execute_async_script(
                "axe.run().then((found) => arguments[0](found.violations.map((one) => "
                "[one.id, ...one.nodes.map((node) => node.html)].join(' | '))))"
            )
            assert found == [], state
            page.run("document.querySelector('dialog').close()")


def test_hostile_names_stay_text(tmp_path):
    """In the name of the file, in labels, in the command."""
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"{number}{HOSTILE}".replace("\u2028", "") for number in range(8)))
    (tmp_path / "in").mkdir()
    odd = tmp_path / "in" / HOSTILE.replace("/", "_")
    odd.write_bytes(IMAGES[0].read_bytes())
    out = tmp_path / "out"
    fine(SHAPES / "shapes_cnn.onnx", odd, "-o", out, "--labels", names, "--classes", "top2")
    with open_browser(1440, 900) as browser:
        page = Page(browser, out)
        assert page.names() == [odd.name]
        assert page.captions()[1].startswith("0</script><img")
        page.run("document.querySelectorAll('#list button')[1].click()")
        page.wait("return document.querySelector('dialog[open] canvas')")
        assert page.run("return document.title") != "hit"
        assert page.run("return [...document.images].every((one) => one.complete && one.naturalWidth)")
        assert page.complaints() == []


def test_no_request_leaves_the_folder(results):
    """The page forbids itself everything but files."""
    with open_browser(1440, 900) as browser:
        page = Page(browser, results / "one")
        page.run(
            "addEventListener('securitypolicyviolation', (event) => { window.refused = event.blockedURI; });"
            "document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/x.png' }))"
        )
        page.wait("return window.refused === 'http://127.0.0.1:9/x.png'")


def test_only_rows_in_view_exist(tmp_path):
    from model_zoo_fixtures.testbed.page_results import write_results

    write_results(tmp_path, 300, 3)
    with open_browser(1440, 900) as browser:
        page = Page(browser, tmp_path)
        count = "return document.querySelectorAll('#list > li').length"
        assert page.run(count) < 10
        page.run("scrollTo(0, document.body.scrollHeight)")
        page.wait(
            "return [...document.querySelectorAll('#list h2')].some((one) => one.textContent === 'photo00299.jpg')"
        )
        page.settle()
        assert page.run(count) < 10
        assert page.run("return document.querySelector('#list > li:last-child').ariaSetSize") == "300"


# The data, without a browser


def test_maps_lie_on_what_the_model_saw():
    """A letterboxed map reaches beyond the image; of a crop, the rest is outside."""
    saliency = np.array([[0, 255]], np.uint8)
    item = Instance(0, "cat", 0.5, (0.25, 0.25, 0.75, 0.75))
    drawn = [(saliency, scaled([saliency], [0.5], "shared")[0], [item])]

    def data(view, rectangle=None):
        content = maps_script(drawn, view, rectangle)
        assert is_maps_script(content)
        return json.loads(content[len("xai.maps(") : -len(");\n")])

    boxed = data(View(in_input=(0, 0.25, 1, 0.75)))
    assert (boxed["place"], boxed["seen"]) == ([0, -0.5, 1, 1.5], None)
    assert boxed["objects"][0]["text"] == "cat 0.50"
    assert boxed["maps"][0]["objects"] == [0]
    cropped = data(View(in_image=(0.25, 0, 0.75, 1)))
    assert (cropped["place"], cropped["seen"]) == ([0.25, 0, 0.75, 1], [0.25, 0, 0.75, 1])
    part = data(View(), (0.0, 0.25, 1.0, 0.75))
    assert (part["place"], part["seen"]) == ([0.25, 0, 0.75, 1], [0.25, 0, 0.75, 1])


def test_large_maps_are_made_smaller():
    saliency = np.zeros((480, 320), np.float32)
    content = maps_script([(saliency, scaled([saliency], [None], "each")[0], [])], View(), None)
    assert '"w":64,"h":96' in content.decode()
    assert len(content) < 10_000


@pytest.mark.parametrize(
    "planted", ["alert(1)", "xai.maps(alert(1));\n", "xai.maps([]);\n", "xai.maps({});alert(1);\n"]
)
def test_no_other_script_is_taken_for_maps(tmp_path, planted):
    """The page runs what it finds in data/, so a run that goes on there writes what is not its own anew."""
    assert not is_maps_script(planted.encode())
    fine(SHAPES / "shapes_cnn.onnx", IMAGES[0], "-o", tmp_path)
    (script,) = (tmp_path / "data").iterdir()
    before = script.read_bytes()
    script.write_text(planted)
    assert "1 drawn" in fine(SHAPES / "shapes_cnn.onnx", IMAGES[0], "-o", tmp_path).stdout
    assert script.read_bytes() == before
