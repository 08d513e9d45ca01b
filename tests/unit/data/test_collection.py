"""The log of labels: what stands, what was never there, and what survives."""

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dist_net.data import collection as collection_module
from dist_net.data.collection import Collection
from dist_net.errors import CollectionError
from naming import naming

CLASSES = "cat", "dog"
IMAGE = "a" * 64
KILLED = """
import os, signal, sys
from pathlib import Path
from dist_net.data.collection import Collection

with Collection(Path(sys.argv[1])) as collection:
    for number in range(1000):
        label = collection.set_label(b"image %d" % number, "cat", sys.argv[2], ("cat",))
        print(label.image, flush=True)
"""


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    with Collection(tmp_path / "collection") as opened:
        yield opened


def test_a_withdrawn_label_has_never_been_there(collection: Collection) -> None:
    draw = random.Random(1)
    kept: dict[str, str] = {}
    for _ in range(200):
        image, label = draw.choice("abcdef") * 64, draw.choice(CLASSES)
        if draw.random() < 0.5:
            collection.set_label(image, label, "kept", CLASSES)
            kept[image] = label
        else:
            collection.set_label(image, label, "other", CLASSES)
    collection.withdraw(teacher="other")
    assert collection.current_labels() == dict(sorted(kept.items()))
    assert collection.withdraw(teacher="other") == []


def test_a_label_names_what_it_replaces_and_is_not_set_twice(collection: Collection) -> None:
    first = collection.set_label(IMAGE, "cat", "ann", CLASSES)
    assert collection.set_label(IMAGE, "cat", "ann", CLASSES) == first
    second = collection.set_label(IMAGE, None, "bob", CLASSES)
    assert second.replaces == first.number
    assert collection.current_labels() == {IMAGE: None}
    collection.withdraw([second.number])
    assert collection.current_labels() == {IMAGE: "cat"}
    (_, withdrawn) = collection.labels()
    assert withdrawn.withdrawn_by == second.number + 1


@pytest.mark.parametrize(
    ("image", "label", "teacher", "named"),
    [
        ("A" * 64, "cat", "ann", "A" * 64),
        ("../etc", "cat", "ann", "../etc"),
        (IMAGE, "Cat", "ann", "'cat'"),
        (IMAGE, "dogg", "ann", "'dog'"),
        (IMAGE, "x" * 1000, "ann", "1,000"),
        (IMAGE, " \n", "ann", "printed"),
        (IMAGE, "cat", "", "teacher"),
    ],
)
def test_what_no_label_can_be_is_refused(
    collection: Collection, image: str, label: str, teacher: str, named: str
) -> None:
    with pytest.raises(CollectionError, match=naming(named)):
        collection.set_label(image, label, teacher, CLASSES)
    assert collection.labels() == []


def test_a_class_that_resembles_another_is_begun_if_it_is_requested(collection: Collection) -> None:
    collection.set_label(IMAGE, "dogs", "ann", CLASSES, is_new=True)
    collection.set_label("b" * 64, "dogs", "ann", CLASSES)
    with pytest.raises(CollectionError, match=naming("DOGS", "'dogs'")):
        collection.set_label("c" * 64, "DOGS", "ann", CLASSES, is_new=True)
    for unknown in (0, 99):
        with pytest.raises(CollectionError, match=naming(unknown)):
            collection.withdraw([1, unknown])
    assert collection.withdraw([1, 1], "ann") == [1, 2]


def test_no_acknowledged_label_is_lost_or_doubled_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "collection"
    acknowledged: list[str] = []
    for count in (1, 20, 3):
        program = [sys.executable, "-c", KILLED, path, "ann"]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged += [process.stdout.readline().strip() for _ in range(count)]
            process.kill()
            acknowledged += process.stdout.read().split()
    with Collection(path) as collection:
        images = [each.image for each in collection.labels()]
        assert len(images) == len({*images})
        assert {*acknowledged} <= {*images}
        assert {*images} <= {each.name for each in collection.images.iterdir()}


FILLED = """
import hashlib, resource, sys
from pathlib import Path
from dist_net.data.collection import Collection
from dist_net.errors import CollectionError

def fill(collection, first):
    for number in range(first, first + 200):
        content = number.to_bytes(4, "big") * 100
        try:
            collection.set_label(content, "cat", "ann", ["cat"])
        except CollectionError as error:
            print(error, file=sys.stderr)
            return
        print(hashlib.sha256(content).hexdigest(), flush=True)

soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
with Collection(Path(sys.argv[1])) as collection:
    for limit in (100, 100_000):  # no image fits; the log is full after some labels
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        fill(collection, limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    print("room", flush=True)
    fill(collection, 0)
"""


def test_a_full_disk_refuses_labels_loses_none_and_labels_work_again(tmp_path: Path) -> None:
    path = tmp_path / "collection"
    Collection(path).close()
    program = [sys.executable, "-c", FILLED, path]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.count("free the disk")) == (0, 2), done.stderr
    before, after = (each.split() for each in done.stdout.split("room"))
    assert 0 < len(before) < len(after) == 200
    with Collection(path) as collection:
        assert [each.image for each in collection.labels()] == before + after
        stored = {each.name for each in collection.images.iterdir()}
        assert {*before, *after} <= stored
        assert len(stored) <= len(before + after) + 1  # that of the label that did not fit may stay


def test_two_teachers_at_once_lose_nothing(tmp_path: Path) -> None:
    program = [sys.executable, "-c", KILLED.replace("1000", "50"), tmp_path / "collection"]
    both = [subprocess.Popen([*program, name], stdout=subprocess.DEVNULL) for name in "ab"]
    assert [each.wait() for each in both] == [0, 0]
    with Collection(tmp_path / "collection") as collection:
        assert len(collection.labels()) >= 50
        assert len(collection.current_labels()) == 50


def test_a_damaged_or_unknown_log_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "labels.sqlite"
    log.write_bytes(b"no log" * 1000)
    with pytest.raises(CollectionError, match=naming(log)):
        Collection(tmp_path)
    assert log.read_bytes() == b"no log" * 1000
    log.unlink()
    Collection(tmp_path).close()
    with sqlite3.connect(log) as later:
        later.execute("PRAGMA user_version = 2")
    later.close()
    with pytest.raises(CollectionError, match=naming("version 2")):
        Collection(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(CollectionError, match="link"):
        Collection(tmp_path / "link")


def test_images_that_exceed_the_room_are_refused_with_their_labels(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection_module, "MAX_BYTES", 10)
    collection.set_label(b"12345678", "cat", "ann", CLASSES)
    collection.set_label(b"12345678", "dog", "ann", CLASSES)
    with pytest.raises(CollectionError, match=naming(3, 8, 10)):
        collection.set_label(b"123", "cat", "ann", CLASSES)
    assert len(collection.labels()) == 2
