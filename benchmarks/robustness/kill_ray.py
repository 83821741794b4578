"""A Ray cluster of two nodes that loses a worker and then a node while it explains: is every image there once?

    python -m benchmarks.robustness.kill_ray [--images 10000] [--model PATH]

Both nodes are processes of this machine and listen on the loopback alone; the images are hard links to those of the
bundled shapes. A worker is ended when a fifth of the parts are there, the node that is not the head at two fifths.
Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lib.many_images import SHAPES, link_images
from benchmarks.lib.tables import Setting
from xai_insert.explain.columns import sources_in


def workers(raylet: int) -> list[int]:
    """Processes that a node has started to explain images."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            name = (path / "cmdline").read_text()
        except OSError:
            continue
        if parent == raylet and "MapWorker" in name:
            found.append(int(path.name))
    return found


def open_ports(process: int) -> Iterator[str]:
    """Addresses other than the loopback on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        try:
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                host = fields[1].partition(":")[0]
                if host not in ("0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"):
                    yield f"{fields[1]} of {process}"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--model", type=Path, default=SHAPES / "shapes_cnn.xml")
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - an extra

    start = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {text}", flush=True)

    own = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "num_cpus": 1, "object_store_memory": 200 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=own)
    node = cluster.add_node(**{key: value for key, value in own.items() if key != "include_dashboard"})
    with tempfile.TemporaryDirectory() as scratch:
        images, output = Path(scratch, "images"), Path(scratch, "out")
        images.mkdir()
        link_images(images, arguments.images)
        log(f"cluster of {len(cluster.list_all_nodes())} nodes at {cluster.address}, {arguments.images} images")
        command = [sys.executable, "-m", "xai_insert.cli.explain", str(arguments.model), str(images), "-o", str(output)]
        command += ["--format", "parquet", "--engine", "ray", "--address", cluster.address]
        run = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        try:
            _kill_both(run, cluster, node, output, arguments.images, log)
            code = run.wait()
        finally:
            run.kill()
            cluster.shutdown()
        count = Counter(source for part in output.glob("part-*.parquet") for source in sources_in(part))
        log(f"exit code {code}; {len(count)} images have a row, {sum(n > 1 for n in count.values())} of them several")
        print(Setting.here("benchmarks.robustness.kill_ray").text())
        return int(code != 0 or len(count) != arguments.images or set(count.values()) != {1})


def _kill_both(run, cluster, node, output, count, log) -> None:  # type: ignore[no-untyped-def]
    """End a worker, then the node that is not the head, when so many parts are there."""
    from xai_insert.explain.on_ray import PART  # noqa: PLC0415 - beside Ray

    total = -(-count // PART)
    head = cluster.head_node
    raylets = {name: one.all_processes["raylet"][0].process.pid for name, one in (("head", head), ("second", node))}
    for share, what in ((0.2, "worker"), (0.4, "node")):
        while run.poll() is None and len(list(output.glob("part-*"))) < share * total:
            time.sleep(0.05)
        there = len(list(output.glob("part-*")))
        if what == "worker":
            listening = [port for pid in raylets.values() for port in open_ports(pid)]
            log(f"listening beyond the loopback: {', '.join(listening) or 'nobody'}")
            name, pid = next((name, pid) for name, raylet in raylets.items() for pid in workers(raylet))
            os.kill(pid, signal.SIGKILL)
            log(f"{there} of {total} parts: ended worker {pid} of the {name} node")
        else:
            cluster.remove_node(node, allow_graceful=False)
            log(f"{there} of {total} parts: ended the second node; {len(cluster.list_all_nodes())} left")


if __name__ == "__main__":
    sys.exit(main())
