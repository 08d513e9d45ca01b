"""The chain of sources and the cache of verified files, without network or programs."""

import gzip
import hashlib
import io
import json
import os

import pytest
from rich.console import Console

from dist_net.cli import fetch as fetch_command
from dist_net.cluster.terminal import FetchProgress
from dist_net.data.cache import Cache, PublishedFile
from dist_net.data.fetch import (
    BytesReceived,
    CommandStarted,
    SourceDelivered,
    SourceFailed,
    SourceTried,
    fetch,
)
from dist_net.errors import CacheError, ContentError, DownloadError, NotFetchedError

CONTENTS = {"images": bytes(range(256)) * 40, "labels": b"0123456789" * 7}
IMAGES, LABELS = (
    PublishedFile(name, len(content), hashlib.sha256(content).hexdigest())
    for name, content in CONTENTS.items()
)


class Shelf:
    """A source that has some of the files, and counts what it was asked for."""

    def __init__(self, name, *has):
        self.name, self.has, self.requested = name, has, []

    def deliver(self, files, cache, progress):
        for file in files:
            self.requested.append(file.name)
            if file not in self.has:
                raise DownloadError(f"no {file.name} on this shelf")
            cache.store(file, io.BytesIO(gzip.compress(CONTENTS[file.name], mtime=0)))


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "made when needed" / "toy")


def fetch_all(cache, *sources):
    events = []
    fetch("toy", (IMAGES, LABELS), sources, cache, events.append, "or use another toy")
    return events


def test_sources_are_tried_in_order_until_one_delivers_and_shown(cache):
    empty, full, spare = Shelf("empty"), Shelf("full", IMAGES, LABELS), Shelf("spare")
    events = fetch_all(cache, empty, full, spare)
    here = f"cache directory {cache.directory}"
    assert events == [
        SourceTried("toy", here),
        SourceFailed(here, "images is not there"),
        SourceTried("toy", "empty"),
        SourceFailed("empty", "no images on this shelf"),
        SourceTried("toy", "full"),
        SourceDelivered("full"),
    ]
    assert spare.requested == []
    for file in (IMAGES, LABELS):
        assert cache.path(file).read_bytes() == CONTENTS[file.name]


def test_a_second_start_asks_nobody(cache):
    fetch_all(cache, Shelf("full", IMAGES, LABELS))
    shelf = Shelf("full", IMAGES, LABELS)
    assert [type(event) for event in fetch_all(cache, shelf)] == [SourceTried, SourceDelivered]
    assert shelf.requested == []


def test_what_one_source_delivered_the_next_need_not(cache):
    half, rest = Shelf("half", IMAGES), Shelf("rest", LABELS)
    fetch_all(cache, half, rest)
    assert rest.requested == ["labels"]


def test_without_any_source_the_error_lists_all_and_what_else_can_be_done(cache):
    with pytest.raises(NotFetchedError) as caught:
        fetch_all(cache, Shelf("first", IMAGES), Shelf("second"))
    assert str(caught.value).splitlines() == [
        "toy could not be fetched; tried:",
        f"  cache directory {cache.directory}: images is not there",
        "  first: no labels on this shelf",
        "  second: no labels on this shelf",
        f"connect to a network, or put into {cache.directory}, decompressed,",
        "  images, 10,240 bytes",
        "  labels, 70 bytes",
        "or use another toy",
    ]
    assert caught.value.exit_code == 1


def test_a_cache_directory_that_cannot_be_made_ends_the_chain(tmp_path):
    (tmp_path / "file").touch()
    spare = Shelf("spare", IMAGES, LABELS)
    with pytest.raises(CacheError, match=r"file/toy.*Not a directory.*give another one"):
        fetch_all(Cache(tmp_path / "file" / "toy"), Shelf("full", IMAGES, LABELS), spare)
    assert spare.requested == []


def store(cache, file, content):
    cache.store(file, io.BytesIO(content))


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_plain_and_compressed_content_is_stored_plain_and_stamped(cache, wrap):
    store(cache, LABELS, wrap(CONTENTS["labels"]))
    assert cache.path(LABELS).read_bytes() == CONTENTS["labels"]
    stamp = cache.directory / "labels.sha256"
    assert stamp.read_text() == f"{LABELS.sha256}  labels\n"
    assert sorted(cache.directory.iterdir()) == [cache.path(LABELS), stamp]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "received 0 bytes"),
        (CONTENTS["labels"][:-1], "received 69 bytes"),
        (b"x" * 70, "expected 70 with"),
        (gzip.compress(b"x" * 70, mtime=0), "expected 70 with"),
        (CONTENTS["labels"] + b"x", "more than 70 bytes"),
        (gzip.compress(CONTENTS["labels"], mtime=0)[:-9], "damaged gzip content"),
        (gzip.compress(CONTENTS["labels"], mtime=0)[:10] + b"\xff" * 20, "damaged gzip content"),
    ],
)
def test_other_content_is_refused_and_leaves_the_cache_as_it_was(cache, content, words):
    store(cache, IMAGES, CONTENTS["images"])
    before = sorted(cache.directory.iterdir())
    with pytest.raises(ContentError, match=f"labels: .*{words}"):
        store(cache, LABELS, content)
    assert sorted(cache.directory.iterdir()) == before
    assert not cache.holds(LABELS)


def test_a_stamped_file_is_not_hashed_again(cache, monkeypatch):
    store(cache, IMAGES, CONTENTS["images"])
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed"))
    assert cache.holds(IMAGES)


def test_a_file_put_there_by_hand_is_hashed_once_and_stamped(cache):
    cache.directory.mkdir(parents=True)
    cache.path(IMAGES).write_bytes(CONTENTS["images"])
    assert cache.holds(IMAGES)
    assert (cache.directory / "images.sha256").is_file()


@pytest.mark.parametrize("content", [b"x" * len(CONTENTS["images"]), b"", b"x"])
def test_a_file_that_was_changed_after_its_stamp_is_replaced(cache, content):
    store(cache, IMAGES, CONTENTS["images"])
    cache.path(IMAGES).write_bytes(content)
    stamped_ns = (cache.directory / "images.sha256").stat().st_mtime_ns
    os.utime(cache.path(IMAGES), ns=(stamped_ns + 1, stamped_ns + 1))
    assert not cache.holds(IMAGES)
    fetch_all(cache, Shelf("full", IMAGES, LABELS))
    assert cache.path(IMAGES).read_bytes() == CONTENTS["images"]


def test_a_stamp_of_other_content_is_not_believed(cache):
    store(cache, IMAGES, CONTENTS["images"])
    other = PublishedFile("images", IMAGES.size_bytes, "0" * 64)
    with pytest.raises(ContentError, match=f"has sha256 {IMAGES.sha256}, expected 0000"):
        cache.require(other)


SIZED = PublishedFile("sized", 70, other_sizes_bytes=(66,))


@pytest.mark.parametrize("size_bytes", [66, 70])
def test_a_file_without_a_checksum_is_known_by_its_size(cache, size_bytes):
    store(cache, SIZED, b"y" * size_bytes)
    assert cache.holds(SIZED)
    assert sorted(cache.directory.iterdir()) == [cache.path(SIZED)]


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "received 0 bytes, expected 70 or 66"),
        (69, "received 69 bytes, expected 70 or 66"),
        (71, "more than 70 or 66 bytes"),
    ],
)
def test_a_file_without_a_checksum_and_of_another_size_is_refused(cache, size_bytes, words):
    with pytest.raises(ContentError, match=f"^sized: {words}$"):
        store(cache, SIZED, b"y" * size_bytes)
    cache.path(SIZED).write_bytes(b"y" * size_bytes)
    with pytest.raises(ContentError, match=f"^sized has {size_bytes} bytes, expected 70 or 66$"):
        cache.require(SIZED)


EVENTS = [
    SourceTried("toy", "shelf [b]"),
    SourceFailed("shelf [b]", "no network"),
    SourceTried("toy", "web"),
    CommandStarted("apt-get download toy"),
    BytesReceived("images", 0, None),
    BytesReceived("images", 512, 1024),
    BytesReceived("labels", 1024, 1024),
    SourceDelivered("web"),
]


def shown(is_terminal):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=200)
    with FetchProgress(console) as progress:
        for event in EVENTS:
            progress(event)
    return console.file.getvalue()


def test_the_chain_is_shown_in_lines_where_there_is_no_terminal():
    assert shown(is_terminal=False).splitlines() == [
        "toy: trying shelf [b]",
        "  no: no network",
        "toy: trying web",
        "  running apt-get download toy",
        "  ok",
    ]


def test_a_bar_is_drawn_on_a_terminal():
    text = shown(is_terminal=True)
    assert "0/1.0 kB" in text or "512/1,024 bytes" in text
    assert "labels" in text


def test_the_command_says_what_is_there(capsys):
    parser = fetch_command.argparse.ArgumentParser()
    fetch_command.add_arguments(parser)
    assert fetch_command.run(parser.parse_args(["digits", "--json"])) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "dataset": "digits",
        "train_samples": 1437,
        "test_samples": 360,
        "image_shape": [8, 8],
        "classes": 10,
    }
    assert "digits: 1437 images" in err
