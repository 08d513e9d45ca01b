"""A run on a folder of images, served: what it knows, what it does not, and how it changes."""

import http.client
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dist_net import Client
from dist_net.errors import ReloadError
from dist_net.ground.checkpoint import read_checkpoint, write_checkpoint
from dist_net.images import decoding
from dist_net.nets.run_directory import RunDirectory
from image_runs import colour_weights, write_calibration, write_run
from naming import naming
from process import test_hosts, test_serve, test_serve_hosts

serve = test_serve.serve
hosts, keys = test_hosts.hosts, test_hosts.keys

GREY = (90, 90, 90)
ASK = """
import sys
from dist_net import Client
from dist_net.errors import ReloadError

with Client(sys.argv[1], sys.argv[2], timeout_s=30) as client:
    for image in sys.argv[3:]:
        outputs = client.submit_image("run", image).result()
        print(outputs.likeliest(1)[0].label, outputs.is_unknown())
"""


def image(colour: tuple[int, int, int]) -> bytes:
    """A PNG file of one colour."""
    file = BytesIO()
    Image.new("RGB", (20, 10), colour).save(file, "PNG")
    return file.getvalue()


def content_at(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_a_run_knows_its_samples_and_says_what_it_does_not_know(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    pool = serve(f"colours={write_run(tmp_path / 'run', threshold=0.5)}", "--workers", "1")
    _, listed = pool.get("/v1/models/colours/samples")
    assert [each["label"] for each in listed] == ["red", "green", "blue"] * 4
    for each in listed[:3]:
        status, answer = pool.post("/v1/classify", content_at(pool.port, each["path"]))
        assert (status, answer["unknown"], answer["unknown_below"]) == (200, False, 0.5)
        assert answer["predictions"][0]["label"] == each["label"]
    _, answer = pool.post("/v1/classify", image(GREY))
    assert answer["unknown"] is True
    assert len(answer["predictions"]) == 3
    with Client(pool.address) as client:
        asked = [client.submit_image("colours", image(each)) for each in ((255, 0, 0), GREY)]
        assert [each.result().is_unknown() for each in asked] == [False, True]


def heic(size: tuple[int, int], stated: tuple[int, int]) -> bytes:
    """A red HEIC file, whose header states another size than its frame has."""
    decoding.iso_formats()  # registers the plugin
    file = BytesIO()
    Image.new("RGB", size, (255, 0, 0)).save(file, "HEIF", quality=10)
    sizes = (struct.pack(">II", *each) for each in (size, stated))
    return file.getvalue().replace(*sizes)


def test_a_photo_of_a_telephone_is_answered_beside_one_whose_header_lies(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    pool = serve(f"colours={write_run(tmp_path / 'run')}", "--workers", "1")
    status, refusal = pool.post("/v1/classify", heic((8192, 8192), (64, 64)))
    assert status == 400, refusal
    status, answer = pool.post("/v1/classify", heic((640, 480), (640, 480)))
    assert (status, answer["predictions"][0]["label"]) == (200, "red")


def test_a_reload_brings_new_weights_and_a_new_threshold(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", threshold=0.5)
    pool = serve(f"colours={run}", "--workers", "1")

    def answer() -> tuple[int, float, bool]:
        _, told = pool.post("/v1/classify?top=1", image((255, 0, 0)))
        return told["version"], told["predictions"][0]["probability"], told["unknown"]

    assert answer() == (1, pytest.approx(4 / 6), False)
    checkpoint = read_checkpoint(RunDirectory(run).best)
    checkpoint.weights[...] = colour_weights(8)
    write_checkpoint(RunDirectory(run).best, checkpoint)
    write_calibration(run, threshold=0.9)
    with Client(pool.address) as client:
        assert not client.submit_image("colours", image((255, 0, 0))).result().is_unknown()
        assert client.reload("colours", timeout_s=60) == 2
        assert client.submit_image("colours", image((255, 0, 0))).result().is_unknown()
    assert answer() == (2, pytest.approx(8 / 10), True)


def test_a_reload_of_a_half_copied_run_keeps_the_served_version(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    run = RunDirectory(write_run(tmp_path / "run"))
    checkpoint = read_checkpoint(run.best)
    write_checkpoint(run.best, replace(checkpoint, version=2), kept=3, previous_version=1)
    pool = serve(f"colours={run.path}", "--workers", "1")
    whole = run.best.read_bytes()
    run.best.write_bytes(whole[: len(whole) // 2])
    with Client(pool.address) as client:
        with pytest.raises(ReloadError, match=naming(run.best)):
            client.reload("colours", timeout_s=60)
        red = image((255, 0, 0))
        assert client.submit_image("colours", red).result().version == 1
        run.best.write_bytes(whole)
        number = client.reload("colours", timeout_s=60)
        assert client.submit_image("colours", red).result().version == number


def test_workers_of_other_hosts_get_the_recipe_and_the_threshold(
    start: Callable[..., Any],
    hosts: Any,
    keys: Path,
    eventually: Callable[[Callable[[], Any]], Any],
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "run", threshold=0.5)
    where = f"tcp://{test_hosts.SERVER}:0"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"client {test_serve_hosts.TOKEN}\n")
    gateway = start(
        *("serve", f"run={run}", "--workers", "0", "--http", f"{test_hosts.SERVER}:0"),
        *("--listen-workers", where, "--keys", str(keys), "--token-file", str(tokens)),
        prefix=hosts.on("server"),
    )
    address = gateway.says(r"--connect (tcp://\S+)")[1]
    start(
        *("inference-worker", "--connect", address, "--keys", str(keys / "worker")),
        *("--directory", str(tmp_path / "fetched")),
        prefix=[*hosts.on("worker-0"), *test_serve_hosts.without([run, gateway.temporary])],
    )
    clients = test_serve_hosts.clients_address(gateway, eventually)
    for name, colour in (("blue.png", (0, 0, 255)), ("grey.png", GREY)):
        (tmp_path / name).write_bytes(image(colour))
    asked = [clients, test_serve_hosts.TOKEN, *map(str, sorted(tmp_path.glob("*.png")))]
    command = [*hosts.on("worker-1"), sys.executable, "-c", ASK, *asked]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.splitlines() == ["blue False", "red True"]
