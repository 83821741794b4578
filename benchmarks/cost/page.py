"""The page of `xai-explain` in headless Chromium: time to the first view, frames while scrolling, memory.

    python -m benchmarks.cost.page [--images 2000] [--classes 5] [--folder FOLDER]

Photographs of 640x480 are made of coloured noise, so that no two are alike and JPEG cannot spare much; maps have 14x14
cells. Above 2,000 images the files of photographs come again under other names. The first view is there when every
picture in the window is decoded and every map on it is drawn, counted from the start of the navigation. Scrolling runs
through `scrollBy` by 60 pixels in every frame for five seconds, about four rows a second at 60 frames. Memory is the
proportional set size of the page's own process after that, and of all processes of the browser.

Needs selenium and Chromium with its driver.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from model_zoo_fixtures.testbed.page_results import write_results

_FIRST_VIEW = """
const isThere = () => {
  if (!document.body || !("ready" in document.body.dataset)) return false;
  const figures = [...document.querySelectorAll("#list figure")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.top < innerHeight && box.bottom > 0 && box.left < innerWidth;
  });
  return figures.length > 0 && figures.every((one) => {
    const image = one.querySelector("img");
    return image?.complete && (one.querySelector("canvas") || !one.querySelector(".map"));
  });
};
const look = () => { if (isThere()) window.firstView = performance.now(); else requestAnimationFrame(look); };
requestAnimationFrame(look);
"""
_SCROLL = """
const done = arguments[arguments.length - 1], start = performance.now(), gaps = [];
let last = start;
const step = (now) => {
  gaps.push(now - last);
  last = now;
  scrollBy(0, 60);
  if (now - start < 5000) requestAnimationFrame(step);
  else done([gaps.length / ((now - start) / 1000), Math.max(...gaps)]);
};
requestAnimationFrame(step);
"""


def memory(pids: list[int]) -> float:
    """Proportional set size in MB."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def _processes(root: int) -> dict[int, str]:
    """Processes below one, with their command lines."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, waiting = {}, [root]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return found


def measure(folder: Path) -> str:
    """Open the page and scroll."""
    from model_zoo_fixtures.testbed.browser import open_browser  # noqa: PLC0415 - wants selenium

    with open_browser(1440, 900) as browser:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _FIRST_VIEW})
        browser.get((folder / "index.html").as_uri())
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and browser.execute_script("return window.firstView") is None:
            time.sleep(0.05)
        first = browser.execute_script("return window.firstView")
        rate, longest = browser.execute_async_script(_SCROLL)
        time.sleep(1)
        processes = _processes(browser.service.process.pid)
        renderers = {pid: memory([pid]) for pid, line in processes.items() if "--type=renderer" in line}
        whole = memory([pid for pid, line in processes.items() if "chromedriver" not in line])
    return (
        f"first view {first / 1000:.2f} s, {rate:.0f} frames/s while scrolling (longest gap {longest:.0f} ms), "
        f"page {max(renderers.values()):.0f} MB, browser {whole:.0f} MB"
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the results lie or are written")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        if not (folder / "index.html").exists():
            write_results(folder, given.images, given.classes)
        print(f"{given.images} images x {given.classes} classes: {measure(folder)}")


if __name__ == "__main__":
    main()
