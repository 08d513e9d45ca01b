"""Downloads from a misbehaving server on loopback, and Debian packages from fake programs."""

import gzip
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from dist_net.cli import fetch as fetch_command
from dist_net.data import dataset_named, named_datasets, published_files
from dist_net.data.published_files import (
    FetchEvent,
    PublishedFile,
    copy_from_archive,
    copy_from_directory,
)
from dist_net.errors import FetchError, SourceError
from dist_net.nets.darknet.published import PUBLISHED, PublishedClassifier, fetch_weights
from naming import naming

CONTENT = os.urandom(400_000)
FILE = PublishedFile("toy-images", (len(CONTENT),), hashlib.sha256(CONTENT).hexdigest())
BODY = gzip.compress(CONTENT, mtime=0)
HALF = len(BODY) // 2


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.body``, as badly as ``server`` says, and notes each Range asked for."""

    def do_GET(self):
        server = self.server
        asked = self.headers["Range"]
        server.ranges.append(asked)
        if server.is_silent:
            server.released.wait()
            return
        if self.path != f"/mirror/{server.file_name}" or len(server.ranges) > server.good_requests:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if server.ignores_range:
            start = 0
        if start >= len(server.body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            first = start + server.range_off_by
            self.send_header("Content-Range", f"bytes {first}-{len(server.body) - 1}")
        if server.says_length:
            self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        self.wfile.write(server.body[start:][: server.cut_after])

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False
    body = BODY
    file_name = f"{FILE.name}.gz"
    cut_after: int | None = None
    good_requests = 1000
    ignores_range = False
    range_off_by = 0
    says_length = True
    is_silent = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.released = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/mirror/"


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def ignore(_):
    pass


def fetch_from(server, cache, progress=ignore):
    events = []
    published_files.download(
        server.url, ".gz", [FILE], cache, lambda event: (events.append(event), progress(event))
    )
    return events


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


COMPLETE = [FILE.name]


def test_a_connection_that_is_cut_is_taken_up_where_it_broke(server, cache):
    server.cut_after = HALF
    events = fetch_from(server, cache)
    assert server.ranges[:2] == [None, f"bytes={HALF}-"]
    assert FetchEvent(FILE.name, HALF, len(BODY)) in events
    assert (cache / FILE.name).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("behaviour", "asked"),
    [
        ({}, [f"bytes={HALF}-"]),
        ({"ignores_range": True}, [f"bytes={HALF}-"]),
        ({"range_off_by": 1}, [f"bytes={HALF}-", None]),
    ],
    ids=["resumed", "sent whole", "begun anew"],
)
def test_a_later_call_resumes_what_an_earlier_one_left(server, cache, behaviour, asked):
    server.cut_after, server.good_requests = HALF, 1
    with pytest.raises(SourceError, match=naming(f"{FILE.name}.gz", "HTTP 404")):
        fetch_from(server, cache)
    assert not FILE.is_cached(cache)
    server.ranges.clear()
    vars(server).update({"cut_after": None, "good_requests": 1000} | behaviour)
    fetch_from(server, cache)
    assert server.ranges == asked
    assert (cache / FILE.name).read_bytes() == CONTENT
    assert names_in(cache) == COMPLETE


def test_a_part_that_is_whole_already_is_fetched_anew(server, cache):
    """As an interrupt between the last byte and the check leaves it."""

    def interrupt_at_the_end(event):
        if event.received == len(BODY):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_from(server, cache, interrupt_at_the_end)
    fetch_from(server, cache)
    assert server.ranges == [None, f"bytes={len(BODY)}-", None]
    assert names_in(cache) == COMPLETE


def test_a_body_that_is_always_cut_short_is_given_up(server, cache):
    server.cut_after, server.ignores_range = HALF, True
    with pytest.raises(SourceError, match=naming(f"{HALF:,}", f"{len(BODY):,} bytes")):
        fetch_from(server, cache)
    assert not FILE.is_cached(cache)


def test_a_server_that_trickles_is_given_up_but_what_came_is_kept(server, cache):
    server.cut_after = 100
    with pytest.raises(SourceError, match=naming(800, f"{len(BODY):,} bytes")):
        fetch_from(server, cache)


def test_a_length_that_is_not_announced_is_shown_as_unknown(server, cache):
    server.says_length = False
    assert fetch_from(server, cache)[-1] == FetchEvent(FILE.name, len(BODY), None)
    assert FILE.is_cached(cache)


def test_other_content_is_refused_and_neither_cached_nor_resumed(server, cache):
    server.body = gzip.compress(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(SourceError, match=naming(FILE.sha256)):
        fetch_from(server, cache)
    assert names_in(cache) == []
    server.body = BODY
    fetch_from(server, cache)
    assert server.ranges == [None, None]
    assert FILE.is_cached(cache)


def test_a_server_that_never_answers_is_left(server, cache, monkeypatch):
    server.is_silent = True
    monkeypatch.setattr(published_files, "TIMEOUT_S", 0.05)
    with pytest.raises(SourceError, match="timed out"):
        fetch_from(server, cache)


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc", "host/x"])
def test_an_address_that_is_not_http_is_refused(cache, url):
    with pytest.raises(SourceError, match=naming(repr(url), "http")):
        fetch_from(SimpleNamespace(url=url), cache)


def test_a_malformed_address_is_refused(cache):
    with pytest.raises(SourceError, match=r"http://\[bad/toy-images\.gz"):
        fetch_from(SimpleNamespace(url="http://[bad"), cache)


TWIN = """
import sys
from pathlib import Path
from dist_net.data.published_files import PublishedFile, download
name, size_bytes, sha256, url, directory = sys.argv[1:]
file, cache = PublishedFile(name, (int(size_bytes),), sha256), Path(directory)
print("ready", flush=True)
sys.stdin.readline()
download(url, ".gz", [file], cache, lambda event: None)
assert file.is_cached(cache)
"""


def test_two_processes_that_fetch_at_once_both_get_it(server, cache):
    command = [sys.executable, "-c", TWIN, FILE.name, str(len(CONTENT)), FILE.sha256]
    twins = [
        subprocess.Popen(
            [*command, server.url, str(cache)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for twin in twins:
        assert twin.stdout.readline() == "ready\n"
    for twin in twins:
        twin.stdin.write("go\n")
        twin.stdin.flush()
    assert [twin.communicate(timeout=30) and twin.returncode for twin in twins] == [0, 0]
    assert (cache / FILE.name).read_bytes() == CONTENT
    assert names_in(cache) == [FILE.name, f"{FILE.name}.sha256"]


def test_a_part_file_in_use_by_another_is_left_alone(server, cache):
    """The second of two downloads begins while the first one is in the middle of its own."""
    inner = []

    def progress(event):
        if event.received == len(BODY) and not inner:
            inner.append(fetch_from(server, cache))

    fetch_from(server, cache, progress)
    assert len(inner) == 1
    assert server.ranges == [None, None]
    assert names_in(cache) == COMPLETE


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH of its own: programs are put there as shell scripts."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))

    def put(name, script):
        path = directory / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return put


def test_files_are_copied_from_the_directory_of_an_installed_package(cache, tmp_path):
    (tmp_path / f"{FILE.name}.gz").write_bytes(BODY)
    copy_from_directory(tmp_path, [FILE], cache, ignore)
    assert (cache / FILE.name).read_bytes() == CONTENT


DIRECTORY = Path("/usr/share/toys")


def from_archive(cache):
    events = []
    copy_from_archive("toy", DIRECTORY, [FILE], cache, events.append)
    return [event.text for event in events]


def test_another_system_has_no_apt(programs, cache):  # noqa: ARG001 - it empties the PATH
    with pytest.raises(SourceError, match=naming("apt-get")):
        from_archive(cache)


def unpacking(programs, tmp_path):
    """Play dpkg-deb -x: the files appear below the directory named."""
    (tmp_path / "packed.gz").write_bytes(BODY)
    programs(
        "dpkg-deb",
        f"/bin/mkdir -p $3{DIRECTORY}; /bin/cp {tmp_path}/packed.gz $3{DIRECTORY}/{FILE.name}.gz",
    )


def test_a_package_is_downloaded_and_unpacked_without_installing(programs, cache, tmp_path):
    unpacking(programs, tmp_path)
    programs("apt-get", "echo deb > toy_1_all.deb")
    lines = from_archive(cache)
    assert lines == ["  running apt-get download toy", "  running dpkg-deb -x toy_1_all.deb ."]
    assert (cache / FILE.name).read_bytes() == CONTENT


@pytest.mark.parametrize("user", [0, 1000])
def test_the_system_is_left_alone_and_it_is_said_what_helps(
    programs, cache, tmp_path, monkeypatch, user
):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    record = tmp_path / "record"
    programs(
        "apt-get",
        f"echo $* >> {record}; echo W: noise >&2; echo E: Unable to locate package toy >&2; exit 1",
    )
    with pytest.raises(
        SourceError,
        match=naming("E: Unable to locate package toy", "apt-get update"),
    ):
        from_archive(cache)
    assert record.read_text() == "download toy\n"


def test_an_apt_that_leaves_nothing_is_noticed(programs, cache):
    programs("apt-get", "exit 0")
    programs("dpkg-deb", "echo dpkg-deb: no archive $2 >&2; exit 2")
    with pytest.raises(SourceError, match=naming("dpkg-deb", "no archive")):
        from_archive(cache)


def test_fashion_mnist_with_every_source_failing(programs, server, tmp_path, monkeypatch):
    programs("apt-get", "echo 'E: no network' >&2; exit 100")
    monkeypatch.setattr(named_datasets, "BASE_URL", f"{server.url}official")
    monkeypatch.setattr(named_datasets, "DEBIAN_DIRECTORY", tmp_path / "not installed")
    with pytest.raises(FetchError) as caught:
        dataset_named("fashion-mnist", tmp_path, mirrors=(f"{server.url}mine",))
    reasons, _, remedy = str(caught.value).partition(". Connect")
    places = (
        rf"cache directory {tmp_path}/fashion-mnist: .* is missing",
        "installed Debian package dataset-fashion-mnist: .*No such file.*",
        f"download from {server.url}mine: .*HTTP 404.*",
        f"download from {server.url}official: .*HTTP 404.*",
        "apt-get download dataset-fashion-mnist: E: no network; .*apt-get update",
    )
    assert re.search("; ".join(places), reasons)
    assert f"{tmp_path}/fashion-mnist" in remedy
    assert "t10k-labels-idx1-ubyte (10,008 bytes)" in remedy
    assert "digits" in remedy


def layers():
    yield "[convolutional]\nfilters=1000\nsize=3\nbatch_normalize=1\nactivation=leaky"
    yield "[avgpool]"
    yield "[softmax]"


TOY = PublishedClassifier("toy", "Toy", 8, layers)
NUMBERS = os.urandom(4 * 1000 * (4 + 3 * 3 * 3))  # each filter's batch norm and kernel
WEIGHTS = b"\0" * 20 + NUMBERS


@pytest.fixture
def published(server, monkeypatch):
    """The site where the weights of Toy are published."""
    server.file_name, server.body = "toy.weights", WEIGHTS
    monkeypatch.setattr(sys.modules[fetch_weights.__module__], "SITE", server.url)
    return server


def fetch_toy(tmp_path):
    events = []
    return fetch_weights(TOY, events.append, tmp_path), events


def test_weights_are_fetched_as_they_are_and_only_once(published, tmp_path):
    path, events = fetch_toy(tmp_path)
    assert path == tmp_path / "darknet" / "toy.weights"
    assert path.read_bytes() == WEIGHTS
    assert events[-2:] == [
        FetchEvent("toy.weights", len(WEIGHTS), len(WEIGHTS)),
        FetchEvent("  ok"),
    ]
    assert fetch_toy(tmp_path)[0] == path
    assert published.ranges == [None]
    assert [file.name for file in path.parent.iterdir()] == ["toy.weights"]


def test_a_mirror_is_asked_for_weights_first(published, tmp_path):
    published.file_name = "elsewhere/toy.weights"
    events = []
    path = fetch_weights(TOY, events.append, tmp_path, [f"{published.url}elsewhere"])
    assert path.read_bytes() == WEIGHTS
    assert published.ranges == [None]


def test_the_command_fetches_a_published_classifier(published, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(PUBLISHED, "toy", TOY)
    parser = fetch_command.argparse.ArgumentParser()
    fetch_command.add_arguments(parser)
    given = parser.parse_args(["toy", "--cache-dir", str(tmp_path), "--json"])
    assert fetch_command.run(given) == 0
    out, _ = capfd.readouterr()
    path = tmp_path / "darknet" / "toy.weights"
    text, summary = out.splitlines()
    assert json.loads(summary) == {"classifier": "toy", "weights": str(path), "bytes": 124_020}
    told, _, command = text.partition("; next: ")
    assert told == f"Toy: 124,020 bytes in {path}"
    predict, name, image, *options = shlex.split(command)[1:]
    assert (predict, name, options) == ("predict", "toy", ["--weights", str(path)])
    assert Path(image).is_file()
    assert published.ranges == [None]
