"""``dist-net reload --share``: a new version beside the old one, in a real pool under load."""

import threading
from io import BytesIO
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from benchmarks.served import TINY
from process import test_serve

pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra `web`)")

net, serve = test_serve.net, test_serve.serve


class ImageLoad(threading.Thread):
    """Sends images, one after another; keeps the status and the version of each answer."""

    def __init__(self, pool: test_serve.Pool) -> None:
        super().__init__()
        self._pool, self._stopped = pool, threading.Event()
        self.answers: list[tuple[int, int]] = []

    def run(self) -> None:
        file = BytesIO()
        Image.fromarray(np.full((28, 28), 200, np.uint8)).save(file, "PNG")
        while not self._stopped.is_set():
            status, answer = self._pool.post(f"/v1/models/{TINY}/classify", file.getvalue())
            self.answers.append((status, answer.get("version", 0)))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()


def reload(start, pool, *options: str) -> str:
    command = start("reload", TINY, "--connect", pool.address, *options)
    assert command.ends() == 0, command.stderr
    return command.stdout


@pytest.mark.main_path
def test_a_bad_version_is_withdrawn_and_a_good_one_confirmed(start, serve, net, eventually):
    pool = serve(net.source, "--workers", "2")
    (file,) = net.directory.glob("*.weights")
    good = file.read_bytes()
    bad = np.frombuffer(good, "<f4").copy()
    bad[-28 * 28 * 10 :] = 3e38  # whose outputs are finite for zeros alone
    rollout = lambda: pool.get("/pool")[1]["models"][0]["rollout"]  # noqa: E731
    with ImageLoad(pool) as load:
        file.write_bytes(bad.tobytes())
        assert "0.05 of requests" in reload(start, pool, "--share", "0.05")
        eventually(lambda: rollout()["outcome"])
        assert rollout()["outcome"] == "withdrawn: errors"
        assert 0 < rollout()["versions"]["2"]["answers"] <= 100
        refused = start("reload", TINY, "--connect", pool.address, "--confirm")
        assert refused.ends() == 1
        assert "no rollout" in refused.stderr

        file.write_bytes(good)
        reload(start, pool, "--share", "0.5")
        eventually(lambda: load.answers[-1][1] == 3)
        eventually(lambda: load.answers[-1][1] == 1)
        connection = urlopen(f"{pool.address}/metrics")
        assert f'dist_net_rollout_share{{model="{TINY}",version="3"}} 0.5' in (
            connection.read().decode()
        )
        assert "version 3" in reload(start, pool, "--confirm")
        eventually(lambda: {version for _, version in load.answers[-50:]} == {3})
    assert {status for status, _ in load.answers} == {200}
    assert {version for _, version in load.answers} == {1, 3}
