"""A run on a folder of images, served: what it knows, what it does not, and how it changes."""

import http.client
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from dist_net import Client
from dist_net.images import decoding
from image_runs import write_run
from process import test_hosts, test_serve

serve = test_serve.serve
hosts, keys = test_hosts.hosts, test_hosts.keys

GREY = (90, 90, 90)


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
    status, refusal = pool.post("/v1/classify", heic((2048, 2048), (64, 64)))
    assert status == 400, refusal
    status, answer = pool.post("/v1/classify", heic((640, 480), (640, 480)))
    assert (status, answer["predictions"][0]["label"]) == (200, "red")
