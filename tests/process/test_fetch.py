"""Downloads from a real server on loopback that misbehaves, and Debian's programs, played."""

import gzip
import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dist_net.cli import fetch as fetch_command
from dist_net.darknet.published import PUBLISHED, PublishedClassifier, fetch_weights
from dist_net.data import dataset_named, fashion_mnist
from dist_net.data.cache import Cache, PublishedFile
from dist_net.data.debian import ArchivedPackage, InstalledPackage
from dist_net.data.download import Download
from dist_net.data.fetch import BytesReceived, CommandStarted, SourceDelivered
from dist_net.errors import (
    ContentError,
    DebianPackageError,
    DownloadError,
    NotFetchedError,
)

CONTENT = os.urandom(400_000)
FILE = PublishedFile("toy-images", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
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
    return Cache(tmp_path / "cache")


def download(server, cache, timeout_s=10.0):
    events = []
    Download(server.url, timeout_s).deliver([FILE], cache, events.append)
    return events


def files_in(cache):
    return sorted(path.name for path in cache.directory.iterdir())


COMPLETE = [FILE.name, f"{FILE.name}.sha256"]


def test_a_download_is_verified_stored_and_shown(server, cache):
    events = download(server, cache)
    assert cache.path(FILE).read_bytes() == CONTENT
    assert files_in(cache) == COMPLETE
    assert events[0] == BytesReceived(FILE.name, 0, len(BODY))
    assert events[-1] == BytesReceived(FILE.name, len(BODY), len(BODY))


def test_a_connection_that_is_cut_is_taken_up_where_it_broke(server, cache):
    server.cut_after = HALF
    events = download(server, cache)
    assert server.ranges[:2] == [None, f"bytes={HALF}-"]
    assert BytesReceived(FILE.name, HALF, len(BODY)) in events
    assert cache.path(FILE).read_bytes() == CONTENT


def test_a_later_call_resumes_what_an_earlier_one_left(server, cache):
    server.cut_after, server.good_requests = HALF, 1
    with pytest.raises(DownloadError, match="HTTP 404"):
        download(server, cache)
    assert not cache.holds(FILE)
    server.cut_after, server.good_requests = None, 1000
    server.ranges.clear()
    download(server, cache)
    assert server.ranges == [f"bytes={HALF}-"]
    assert files_in(cache) == COMPLETE


def test_a_server_that_ignores_the_range_sends_it_all_again(server, cache):
    server.cut_after, server.good_requests = HALF, 1
    with pytest.raises(DownloadError):
        download(server, cache)
    server.cut_after, server.good_requests, server.ignores_range = None, 1000, True
    download(server, cache)
    assert server.ranges[-1] == f"bytes={HALF}-"
    assert cache.path(FILE).read_bytes() == CONTENT


def test_another_part_than_the_one_asked_for_is_refused_and_not_kept(server, cache):
    server.cut_after, server.range_off_by = HALF, 1
    with pytest.raises(DownloadError, match=f"sent another part than from byte {HALF} on"):
        download(server, cache)
    assert files_in(cache) == []


def test_a_part_that_is_whole_already_is_fetched_anew(server, cache):
    """As an interrupt between the last byte and the check leaves it."""

    def interrupt_at_the_end(event):
        if event.received == len(BODY):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Download(server.url).deliver([FILE], cache, interrupt_at_the_end)
    download(server, cache)
    assert server.ranges == [None, f"bytes={len(BODY)}-", None]
    assert files_in(cache) == COMPLETE


def test_a_body_that_is_always_cut_short_is_given_up(server, cache):
    server.cut_after, server.ignores_range = HALF, True
    with pytest.raises(DownloadError, match=f"cut off after {HALF} of {len(BODY)} bytes"):
        download(server, cache)
    assert not cache.holds(FILE)


def test_a_server_that_trickles_is_given_up_but_what_came_is_kept(server, cache):
    server.cut_after = 100
    with pytest.raises(DownloadError, match="cut off 8 times, 800 bytes kept"):
        download(server, cache)


def test_a_length_that_is_not_announced_is_shown_as_unknown(server, cache):
    server.says_length = False
    assert download(server, cache)[-1] == BytesReceived(FILE.name, len(BODY), None)
    assert cache.holds(FILE)


def test_an_unannounced_end_too_early_is_noticed_by_the_content(server, cache):
    server.says_length, server.cut_after = False, HALF
    with pytest.raises(ContentError, match="damaged gzip content"):
        download(server, cache)
    assert files_in(cache) == []


def test_other_content_is_refused_and_neither_cached_nor_resumed(server, cache):
    server.body = gzip.compress(CONTENT[:-1] + b"?")
    with pytest.raises(ContentError, match=f"expected {len(CONTENT):,} with {FILE.sha256}"):
        download(server, cache)
    assert files_in(cache) == []
    server.body = BODY
    download(server, cache)
    assert server.ranges == [None, None]
    assert cache.holds(FILE)


def test_a_body_that_never_ends_is_refused(server, cache):
    server.body = BODY * 3
    with pytest.raises(DownloadError, match=f"larger than the {len(CONTENT):,} bytes expected"):
        download(server, cache)
    assert files_in(cache) == []


def test_a_missing_file_says_so(server, cache):
    server.good_requests = 0
    with pytest.raises(DownloadError, match=rf"{FILE.name}\.gz: HTTP 404"):
        download(server, cache)
    assert files_in(cache) == []


def test_a_server_that_never_answers_is_left(server, cache):
    server.is_silent = True
    with pytest.raises(DownloadError, match="timed out"):
        download(server, cache, timeout_s=0.05)


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc", "host/x"])
def test_an_address_that_is_not_http_is_refused(cache, url):
    with pytest.raises(DownloadError, match="expected an http"):
        Download(url).deliver([FILE], cache, lambda _: None)


def test_a_malformed_address_is_refused(cache):
    with pytest.raises(DownloadError, match=r"http://\[bad/toy-images\.gz"):
        Download("http://[bad").deliver([FILE], cache, lambda _: None)


TWIN = """
import sys
from pathlib import Path
from dist_net.data.cache import Cache, PublishedFile
from dist_net.data.download import Download
name, size_bytes, sha256, url, directory = sys.argv[1:]
file, cache = PublishedFile(name, int(size_bytes), sha256), Cache(Path(directory))
print("ready", flush=True)
sys.stdin.readline()
Download(url).deliver([file], cache, lambda event: None)
assert cache.holds(file)
"""


def test_two_processes_that_fetch_at_once_both_get_it(server, cache):
    command = [sys.executable, "-c", TWIN, FILE.name, str(FILE.size_bytes), FILE.sha256]
    twins = [
        subprocess.Popen(
            [*command, server.url, str(cache.directory)],
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
    assert cache.path(FILE).read_bytes() == CONTENT
    assert files_in(cache) == COMPLETE


def test_a_part_file_in_use_by_another_is_left_alone(server, cache):
    """The second of two downloads begins while the first one is in the middle of its own."""
    inner = []

    def progress(event):
        if event.received == len(BODY) and not inner:
            inner.append(download(server, cache))

    Download(server.url).deliver([FILE], cache, progress)
    assert len(inner) == 1
    assert server.ranges == [None, None]
    assert files_in(cache) == COMPLETE


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


def deliver(source, cache):
    events = []
    source.deliver([FILE], cache, events.append)
    return [event.command for event in events if isinstance(event, CommandStarted)]


def test_an_installed_package_is_asked_where_its_files_are(programs, cache, tmp_path):
    (tmp_path / f"{FILE.name}.gz").write_bytes(BODY)
    programs("dpkg", f"echo /.; echo {tmp_path}; echo {tmp_path}/{FILE.name}.gz")
    assert deliver(InstalledPackage("toy"), cache) == ["dpkg -L toy"]
    assert cache.path(FILE).read_bytes() == CONTENT


def test_an_installed_package_whose_files_were_removed_says_so(programs, cache, tmp_path):
    programs("dpkg", f"echo {tmp_path}/{FILE.name}.gz")
    with pytest.raises(DebianPackageError, match=f"toy has no file {FILE.name}"):
        deliver(InstalledPackage("toy"), cache)


def test_a_package_that_is_not_installed_says_so(programs, cache):
    programs(
        "dpkg", "echo \"dpkg-query: package 'toy' is not installed\" >&2; echo hint >&2; exit 1"
    )
    with pytest.raises(DebianPackageError, match=r"^dpkg-query: package 'toy' is not installed$"):
        deliver(InstalledPackage("toy"), cache)


def test_another_system_has_no_dpkg(programs, cache):  # noqa: ARG001 - it empties the PATH
    with pytest.raises(DebianPackageError, match="no program dpkg on this system"):
        deliver(InstalledPackage("toy"), cache)


def unpacking(programs, tmp_path):
    """Play dpkg-deb -x: the files appear below the directory named."""
    (tmp_path / "packed.gz").write_bytes(BODY)
    programs(
        "dpkg-deb",
        f"/bin/mkdir -p $3/usr/share; /bin/cp {tmp_path}/packed.gz $3/usr/share/{FILE.name}.gz",
    )


def test_a_package_is_downloaded_and_unpacked_without_installing(programs, cache, tmp_path):
    unpacking(programs, tmp_path)
    programs("apt-get", "echo deb > toy_1_all.deb")
    commands = deliver(ArchivedPackage("toy"), cache)
    assert commands == ["apt-get download toy", "dpkg-deb -x toy_1_all.deb root"]
    assert cache.path(FILE).read_bytes() == CONTENT


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
        DebianPackageError,
        match=r"^E: Unable to locate package toy; .* as root: apt-get update$",
    ):
        deliver(ArchivedPackage("toy"), cache)
    assert record.read_text() == "download toy\n"


def test_an_apt_that_leaves_nothing_is_noticed(programs, cache):
    programs("apt-get", "exit 0")
    with pytest.raises(DebianPackageError, match=r"left \[\], expected one \.deb"):
        deliver(ArchivedPackage("toy"), cache)


def test_fashion_mnist_with_every_source_failing(programs, server, tmp_path, monkeypatch):
    programs("apt-get", "echo 'E: no network' >&2; exit 100")
    monkeypatch.setattr(fashion_mnist, "BASE_URLS", (f"{server.url}official",))
    with pytest.raises(NotFetchedError) as caught:
        dataset_named("fashion-mnist", tmp_path, mirrors=(f"{server.url}mine",))
    title, *lines, offer = str(caught.value).splitlines()
    assert title == "fashion-mnist could not be fetched; tried:"
    reasons, by_hand = lines[:5], lines[5:]
    assert by_hand[0].endswith(f"or put into {tmp_path}/fashion-mnist, decompressed,")
    assert by_hand[-1] == "  t10k-labels-idx1-ubyte, 10,008 bytes"
    for reason, expected in zip(
        reasons,
        [
            (f"  cache directory {tmp_path}/fashion-mnist: ", "is not there"),
            ("  installed Debian package dataset-fashion-mnist: ", "no program dpkg"),
            (f"  download from {server.url}mine: ", "HTTP 404"),
            (f"  download from {server.url}official: ", "HTTP 404"),
            ("  apt-get download dataset-fashion-mnist: ", "E: no network"),
        ],
        strict=True,
    ):
        assert reason.startswith(expected[0])
        assert expected[1] in reason
    assert "digits" in offer


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
        BytesReceived("toy.weights", len(WEIGHTS), len(WEIGHTS)),
        SourceDelivered(f"download from {published.url}"),
    ]
    assert fetch_toy(tmp_path)[0] == path
    assert published.ranges == [None]
    assert [file.name for file in path.parent.iterdir()] == ["toy.weights"]


def test_weights_are_resumed_where_an_earlier_call_was_cut_off(published, tmp_path):
    published.cut_after, published.good_requests = 50_000, 1
    with pytest.raises(NotFetchedError):
        fetch_toy(tmp_path)
    published.cut_after, published.good_requests = None, 1000
    path, _ = fetch_toy(tmp_path)
    assert published.ranges[-1] == "bytes=50000-"
    assert path.read_bytes() == WEIGHTS


def test_weights_come_whole_from_a_server_that_knows_no_ranges(published, tmp_path):
    published.cut_after, published.good_requests = 50_000, 1
    with pytest.raises(NotFetchedError):
        fetch_toy(tmp_path)
    published.cut_after, published.good_requests, published.ignores_range = None, 1000, True
    assert fetch_toy(tmp_path)[0].read_bytes() == WEIGHTS


def test_weights_with_the_header_of_another_version_are_as_good(published, tmp_path):
    published.body = b"\0" * 16 + NUMBERS
    assert fetch_toy(tmp_path)[0].read_bytes() == published.body


@pytest.mark.parametrize("body", [WEIGHTS[:-1], WEIGHTS + b"x", b"<html>", b""])
def test_weights_of_another_size_are_refused_and_not_kept(published, tmp_path, body):
    published.body = body
    with pytest.raises(NotFetchedError, match="124,020 or 124,016"):
        fetch_toy(tmp_path)
    assert files_in(Cache(tmp_path / "darknet")) == []


def test_a_mirror_is_asked_for_weights_first(published, tmp_path):
    published.file_name = "elsewhere/toy.weights"
    events = []
    path = fetch_weights(TOY, events.append, tmp_path, [f"{published.url}elsewhere"])
    assert path.read_bytes() == WEIGHTS
    assert published.ranges == [None]


def test_without_a_network_it_is_said_how_to_bring_the_weights_by_hand(published, tmp_path):
    published.good_requests = 0
    with pytest.raises(NotFetchedError) as caught:
        fetch_toy(tmp_path)
    assert str(caught.value).splitlines() == [
        "toy could not be fetched; tried:",
        f"  cache directory {tmp_path}/darknet: toy.weights is not there",
        f"  download from {published.url}: {published.url}toy.weights: HTTP 404 Not Found",
        f"connect to a network, or put into {tmp_path}/darknet, decompressed,",
        "  toy.weights, 124,020 or 124,016 bytes",
        "or say where the file is: dist-net predict toy --weights FILE IMAGE",
    ]
    (tmp_path / "darknet" / "toy.weights").write_bytes(WEIGHTS)
    assert fetch_toy(tmp_path)[0].read_bytes() == WEIGHTS


def test_the_command_fetches_a_published_classifier(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PUBLISHED, "toy", TOY)
    parser = fetch_command.argparse.ArgumentParser()
    fetch_command.add_arguments(parser)
    given = parser.parse_args(["toy", "--cache-dir", str(tmp_path), "--json"])
    assert fetch_command.run(given) == 0
    out, err = capsys.readouterr()
    path = tmp_path / "darknet" / "toy.weights"
    assert json.loads(out) == {"classifier": "toy", "weights": str(path), "bytes": 124_020}
    told, _, command = err.splitlines()[-1].partition("; next: ")
    assert told == f"Toy: 124,020 bytes in {path}"
    predict, name, picture, *options = shlex.split(command)[1:]
    assert (predict, name, options) == ("predict", "toy", ["--weights", str(path)])
    assert Path(picture).is_file()
    assert published.ranges == [None]


def test_a_real_one_is_known_by_its_exact_size():
    assert PUBLISHED["darknet53"].weights_file() == PublishedFile(
        "darknet53.weights", 20 + 4 * 41_645_640
    )
