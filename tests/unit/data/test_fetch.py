"""The chain of sources and the cache of verified files, without network or programs."""

import gzip
import hashlib
import io
import json
import os

import pytest
from rich.console import Console

from dist_net.cli import main
from dist_net.data.published_files import FetchEvent, PublishedFile, fetch
from dist_net.errors import FetchError, SourceError
from dist_net.processes.terminal import FetchProgress
from naming import naming

CONTENTS = {"images": bytes(range(256)) * 40, "labels": b"0123456789" * 7}
IMAGES, LABELS = (
    PublishedFile(name, (len(content),), hashlib.sha256(content).hexdigest())
    for name, content in CONTENTS.items()
)


class Shelf:
    """A source that has some of the files, and records the files requested from it."""

    def __init__(self, *has):
        self.has, self.requested = has, []

    def __call__(self, files, directory, progress):
        for file in files:
            self.requested.append(file.name)
            if file not in self.has:
                raise SourceError(f"no {file.name} on this shelf")
            store(directory, file, gzip.compress(CONTENTS[file.name], mtime=0))


def store(directory, file, content):
    directory.mkdir(parents=True, exist_ok=True)
    file.store(io.BytesIO(content), directory)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "made when needed" / "toy"


def fetch_all(cache, **sources):
    events = []
    fetch("toy", (IMAGES, LABELS), cache, sources, events.append, "or use another toy")
    return [event.text for event in events]


def test_sources_are_tried_in_order_until_one_delivers_and_shown(cache):
    spare = Shelf()
    lines = fetch_all(cache, empty=Shelf(), full=Shelf(IMAGES, LABELS), spare=spare)
    assert lines == [
        f"toy: trying cache directory {cache}",
        "  no: images is missing",
        "toy: trying empty",
        "  no: no images on this shelf",
        "toy: trying full",
        "  ok",
    ]
    assert spare.requested == []
    for name, content in CONTENTS.items():
        assert (cache / name).read_bytes() == content


def test_a_second_start_asks_nobody(cache):
    shelf = Shelf(IMAGES, LABELS)
    fetch_all(cache, full=shelf)
    shelf.requested.clear()
    assert fetch_all(cache, full=shelf) == [f"toy: trying cache directory {cache}", "  ok"]
    assert shelf.requested == []


def test_what_one_source_delivered_the_next_need_not(cache):
    rest = Shelf(LABELS)
    fetch_all(cache, half=Shelf(IMAGES), rest=rest)
    assert rest.requested == ["labels"]


def test_without_any_source_the_error_lists_all_and_what_else_can_be_done(cache):
    with pytest.raises(FetchError) as caught:
        fetch_all(cache, first=Shelf(IMAGES), second=Shelf())
    message = str(caught.value)
    for part in (
        f"cache directory {cache}: images is missing; ",
        "first: no labels on this shelf; ",
        "second: no labels on this shelf. ",
        f"{cache}, decompressed: images (10,240 bytes), labels (70 bytes); or use another toy",
    ):
        assert part in message
    assert "\n" not in message
    assert caught.value.exit_code == 1


def test_a_cache_directory_that_cannot_be_made_ends_the_chain(tmp_path):
    (tmp_path / "file").touch()
    spare = Shelf(IMAGES, LABELS)
    with pytest.raises(FetchError, match=r"file/toy.*Not a directory"):
        fetch_all(tmp_path / "file" / "toy", spare=spare)
    assert spare.requested == []


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_plain_and_compressed_content_is_stored_plain_and_stamped(cache, wrap):
    store(cache, LABELS, wrap(CONTENTS["labels"]))
    assert (cache / "labels").read_bytes() == CONTENTS["labels"]
    assert LABELS.is_cached(cache)
    stamp = cache / "labels.sha256"
    assert stamp.read_text() == f"{LABELS.sha256}  labels\n"
    assert sorted(cache.iterdir()) == [cache / "labels", stamp]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes.*70"),
        (CONTENTS["labels"][:-1], "69 bytes.*70"),
        (b"x" * 70, f"expected {LABELS.sha256}"),
        (gzip.compress(b"x" * 70, mtime=0), f"expected {LABELS.sha256}"),
        (CONTENTS["labels"] + b"x", "70 bytes"),
        (gzip.compress(bytes(1 << 20)), "70 bytes"),
        (gzip.compress(CONTENTS["labels"], mtime=0)[:-9], "damaged gzip"),
        (gzip.compress(CONTENTS["labels"], mtime=0)[:10] + b"\xff" * 20, "damaged gzip"),
    ],
)
def test_other_content_is_refused_and_leaves_the_cache_as_it_was(cache, content, words):
    store(cache, IMAGES, CONTENTS["images"])
    before = sorted(cache.iterdir())
    with pytest.raises(SourceError, match=f"labels .*{words}"):
        store(cache, LABELS, content)
    assert sorted(cache.iterdir()) == before
    assert not LABELS.is_cached(cache)


def test_a_stamped_file_is_not_hashed_again(cache, monkeypatch):
    store(cache, IMAGES, CONTENTS["images"])
    assert IMAGES.is_cached(cache)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed"))
    assert IMAGES.is_cached(cache)


def test_a_file_put_there_by_hand_is_hashed_once_and_stamped(cache):
    cache.mkdir(parents=True)
    (cache / "images").write_bytes(CONTENTS["images"])
    assert IMAGES.is_cached(cache)
    assert (cache / "images.sha256").is_file()


@pytest.mark.parametrize("content", [b"x" * len(CONTENTS["images"]), b"", b"x"])
def test_a_file_that_was_changed_after_its_stamp_is_replaced(cache, content):
    fetch_all(cache, full=Shelf(IMAGES, LABELS))
    assert IMAGES.is_cached(cache)
    (cache / "images").write_bytes(content)
    stamped_ns = (cache / "images.sha256").stat().st_mtime_ns
    os.utime(cache / "images", ns=(stamped_ns + 1, stamped_ns + 1))
    assert not IMAGES.is_cached(cache)
    fetch_all(cache, full=Shelf(IMAGES, LABELS))
    assert (cache / "images").read_bytes() == CONTENTS["images"]


def test_a_stamp_of_other_content_is_not_believed(cache):
    store(cache, IMAGES, CONTENTS["images"])
    assert IMAGES.is_cached(cache)
    other = PublishedFile("images", IMAGES.sizes_bytes, "0" * 64)
    with pytest.raises(SourceError, match=naming(IMAGES.sha256, "0" * 64)):
        other.check_cached(cache)


SIZED = PublishedFile("sized", (70, 66))


@pytest.mark.parametrize("size_bytes", [66, 70])
def test_a_file_without_a_checksum_is_known_by_its_size(cache, size_bytes):
    store(cache, SIZED, b"y" * size_bytes)
    assert SIZED.is_cached(cache)
    assert sorted(cache.iterdir()) == [cache / "sized"]


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 bytes.*70.*66"),
        (69, "69 bytes.*70.*66"),
        (71, "70.*66 bytes"),
    ],
)
def test_a_file_without_a_checksum_and_of_another_size_is_refused(cache, size_bytes, words):
    with pytest.raises(SourceError, match=f"sized .*{words}"):
        store(cache, SIZED, b"y" * size_bytes)
    (cache / "sized").write_bytes(b"y" * size_bytes)
    with pytest.raises(SourceError, match=naming("sized", size_bytes, 70, 66)):
        SIZED.check_cached(cache)


EVENTS = [
    FetchEvent("toy: trying shelf [b]"),
    FetchEvent("  no: no network"),
    FetchEvent("toy: trying web"),
    FetchEvent("images", 0, None),
    FetchEvent("images", 512, 1024),
    FetchEvent("labels", 1024, 1024),
    FetchEvent("  ok"),
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
        "  ok",
    ]


def test_a_bar_is_drawn_on_a_terminal():
    text = shown(is_terminal=True)
    assert "0/1.0 kB" in text or "512/1,024 bytes" in text
    assert "labels" in text


def test_the_command_says_what_is_there(capfd):
    assert main(["fetch", "digits", "--json"]) == 0
    printed, said = capfd.readouterr()
    assert json.loads(printed) == {
        "dataset": "digits",
        "train_samples": 1437,
        "test_samples": 360,
        "image_shape": [8, 8],
        "classes": 10,
    }
    assert "digits: 1437" in said
