"""Downloads from a real server on loopback that misbehaves, and Debian's programs, played."""

import gzip
import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dist_net.data import dataset_named, fashion_mnist
from dist_net.data.cache import Cache, PublishedFile
from dist_net.data.debian import ArchivedPackage, InstalledPackage
from dist_net.data.download import Download
from dist_net.data.fetch import BytesReceived, CommandStarted
from dist_net.errors import (
    ContentError,
    DatasetUnavailableError,
    DebianPackageError,
    DownloadError,
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
        if self.path != f"/mirror/{FILE.name}.gz" or len(server.ranges) > server.good_requests:
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
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}")
        if server.says_length:
            self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        self.wfile.write(server.body[start:][: server.cut_after])

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False
    body = BODY
    cut_after: int | None = None
    good_requests = 1000
    ignores_range = False
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
    with pytest.raises(ContentError, match=f"expected {len(CONTENT)} with {FILE.sha256}"):
        download(server, cache)
    assert files_in(cache) == []
    server.body = BODY
    download(server, cache)
    assert server.ranges == [None, None]
    assert cache.holds(FILE)


def test_a_body_that_never_ends_is_refused(server, cache):
    server.body = BODY * 3
    with pytest.raises(DownloadError, match=f"larger than the {len(CONTENT)} bytes expected"):
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


FORGETFUL = """
if [ $1 = update ]; then echo > {known}; exit 0; fi
if [ -e {known} ]; then echo deb > toy_1_all.deb; exit 0; fi
echo "W: noise" >&2; echo "E: Unable to locate package toy" >&2; exit 100
"""


def test_root_on_a_bare_machine_updates_the_lists_first(programs, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    unpacking(programs, tmp_path)
    programs("apt-get", FORGETFUL.format(known=tmp_path / "known"))
    assert deliver(ArchivedPackage("toy"), cache) == [
        "apt-get download toy",
        "apt-get update",
        "apt-get download toy",
        "dpkg-deb -x toy_1_all.deb root",
    ]


def test_another_user_is_told_why_apt_could_not(programs, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    programs("apt-get", FORGETFUL.format(known=tmp_path / "known"))
    with pytest.raises(DebianPackageError, match=r"^E: Unable to locate package toy$"):
        deliver(ArchivedPackage("toy"), cache)


def test_an_apt_that_leaves_nothing_is_noticed(programs, cache):
    programs("apt-get", "exit 0")
    with pytest.raises(DebianPackageError, match=r"left \[\], expected one \.deb"):
        deliver(ArchivedPackage("toy"), cache)


def test_fashion_mnist_with_every_source_failing(programs, server, tmp_path, monkeypatch):
    programs("apt-get", "echo 'E: no network' >&2; exit 100")
    monkeypatch.setattr(fashion_mnist, "BASE_URLS", (f"{server.url}official",))
    with pytest.raises(DatasetUnavailableError) as caught:
        dataset_named("fashion-mnist", tmp_path, mirrors=(f"{server.url}mine",))
    title, *reasons, _, offer = str(caught.value).splitlines()
    assert title == "fashion-mnist could not be fetched; tried:"
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
