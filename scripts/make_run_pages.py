"""Recreate docs/learn/run_pages, as root on Linux: .venv/bin/python scripts/make_run_pages.py

Trains three times on two hosts, ``desk`` and ``laptop``, which are network namespaces joined by a
wire: a normal run; one in which a worker is killed and the wire is cut; one whose server's host is
lost. Needs the extra ``web``, iproute2 and util-linux, and takes two minutes.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGES = Path(__file__).parents[1] / "docs" / "learn" / "run_pages"
DESK, LAPTOP = "10.79.0.1", "10.79.0.2"
DIST_NET = [sys.executable, "-m", "dist_net"]
TRAIN = "train", "fashion-mnist-conv", "--listen", "tcp://0.0.0.0:0"
WITHIN_S = 300


def main() -> None:
    PAGES.mkdir(exist_ok=True)
    for host in ("desk", "laptop"):
        ip("netns", "add", host)
    try:
        ip(
            "-n",
            "desk",
            *["link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", "laptop"],
        )
        for host, address in (("desk", DESK), ("laptop", LAPTOP)):
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", host, "link", "set", "wire", "up")
        with tempfile.TemporaryDirectory() as directory:
            for number, make in enumerate((normal, worker_lost, host_lost)):
                place = Path(directory, str(number))
                place.mkdir()
                make(place)
                page = PAGES / f"{make.__name__}.html"
                subprocess.run(
                    [*DIST_NET, "watch", place / make.__name__, "--export", page], check=True
                )
                print(f"{page}: {page.stat().st_size:,} bytes", flush=True)
    finally:
        for host in ("desk", "laptop"):
            ip("netns", "delete", host)


def normal(place: Path) -> None:
    desk, token, _ = desk_trains(place, "--workers", "1", "--run-dir", "normal", "--epochs", "2")
    laptop_joins(place, token, "--workers", "1")
    desk.wait(WITHIN_S)


def worker_lost(place: Path) -> None:
    desk, token, _ = desk_trains(
        place, "--workers", "2", "--run-dir", "worker_lost", "--epochs", "1"
    )
    laptop_joins(place, token, "--workers", "1")
    time.sleep(5)
    [worker] = [each for each in children(desk) if "worker-1" in words_of(each)]
    os.kill(worker, signal.SIGKILL)
    time.sleep(4)
    ip("-n", "laptop", "link", "set", "wire", "down")
    time.sleep(4)
    ip("-n", "laptop", "link", "set", "wire", "up")
    desk.wait(WITHIN_S)


def host_lost(place: Path) -> None:
    options = "--workers", "1", "--run-dir", "desk", "--epochs", "1", "--takeover-after", "3"
    desk, _, token = desk_trains(place, *options)
    laptop = laptop_joins(place, token, "--workers", "1", "--run-dir", "host_lost")
    time.sleep(10)
    for process_id in (desk.pid, *children(desk)):
        os.kill(process_id, signal.SIGKILL)
    laptop.wait(WITHIN_S)


def desk_trains(place: Path, *options: str) -> tuple[subprocess.Popen[bytes], str, str]:
    """Return the process, and the tokens for a host with workers and for a standby."""
    desk = started("desk", place, *TRAIN, "--contact", DESK, *options)
    for _ in range(10 * WITHIN_S):
        text = (place / "desk.log").read_text()
        if len(tokens := re.findall(r"echo (\w+) \| dist-net join", text)) == 2:
            return desk, *tokens
        assert desk.poll() is None, text
        time.sleep(0.1)
    raise TimeoutError(text)


def laptop_joins(place: Path, token: str, *options: str) -> subprocess.Popen[bytes]:
    return started("laptop", place, "join", token, "--trust-recipe", *options)


def started(host: str, place: Path, *arguments: str) -> subprocess.Popen[bytes]:
    named = (
        "ip",
        "netns",
        "exec",
        host,
        "unshare",
        "--uts",
        "sh",
        "-c",
        'hostname "$0" && exec "$@"',
    )
    with (place / f"{host}.log").open("wb") as log:
        return subprocess.Popen(
            [*named, host, *DIST_NET, *arguments], cwd=place, stdout=log, stderr=log
        )


def children(parent: subprocess.Popen[bytes]) -> list[int]:
    listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
    return [*map(int, listed.split())]


def words_of(process_id: int) -> list[str]:
    return Path(f"/proc/{process_id}/cmdline").read_text().split("\0")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    main()
