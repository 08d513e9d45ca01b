"""Names of classes: those of ImageNet, and a file of one's own."""

from pathlib import Path

import pytest

from dist_net.errors import ModelFileError
from dist_net.images.labels import read_labels
from dist_net.nets.darknet.published import imagenet_labels
from naming import naming


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "names.txt"


def test_imagenet_has_a_thousand_names_in_darknets_order() -> None:
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert all(label == label.strip() != "" for label in labels)
    assert (labels[0], labels[1], labels[999]) == ("kit fox", "English setter", "dumbbell")
    assert [index for index, label in enumerate(labels) if label == "crane"] == [428, 544]
    assert len(set(labels)) == 998


def test_a_file_has_a_name_a_line(file: Path) -> None:
    for text in ("cat\nwild dog\n", "cat\r\nwild dog", "\ufeffcat \n wild dog\n\n\n"):
        file.write_bytes(text.encode())
        assert read_labels(file, 2) == ("cat", "wild dog")


def test_a_name_may_be_in_any_language(file: Path) -> None:
    file.write_text("gefüllte Nelke\n犬\n", encoding="utf-8")
    assert read_labels(file, 2) == ("gefüllte Nelke", "犬")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 names.*3 classes"),
        (b"\n\n", "0 names"),
        (b"a\nb\n", "2 names.*3 classes"),
        (b"a\nb\nc\nd\n", "4 names.*3 classes.*head -n 3 .*names.txt"),
        (b"a\n\nc\n", "line 2"),
        (b"a\n\xff\xfe\n", "byte 2.*UTF-8"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(file: Path, content: bytes, says: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ModelFileError, match=f"{file}.*{says}"):
        read_labels(file, 3)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelFileError, match=naming(tmp_path / "none", "No such file or directory")
    ):
        read_labels(tmp_path / "none", 3)
    with pytest.raises(ModelFileError, match=naming(tmp_path, "Is a directory")):
        read_labels(tmp_path, 3)
