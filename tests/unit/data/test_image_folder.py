"""Folders of images: what is in them, how they are split, and what is said of those that no use
can be made of. The files hold any bytes: listing decodes nothing."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import pytest

from dist_net.data.image_folder import ImageFolder
from dist_net.data.image_split import WaitingClass
from dist_net.errors import DatasetError
from drawn_images import cats_and_dogs, drawn_folder
from naming import naming

contents = count()


def fill(root: Path, *names: str, content: bytes | None = None) -> Path:
    """Files of these names, each with content of its own unless it is given."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % next(contents) if content is None else content)
    return root


def several(class_name: str, number: int) -> list[str]:
    return [f"{class_name}/{index}.jpg" for index in range(number)]


def parts(folder: ImageFolder) -> dict[str, str]:
    return {image.path: image.part for image in folder.images}


def reasons(folder: ImageFolder) -> dict[str, str]:
    return dict(folder.left_out)


# Layouts


def test_each_folder_is_a_class_with_all_that_lies_in_it(tmp_path: Path) -> None:
    names = ["cat/a.jpg", "cat/deep/er/b.PNG", "dog/a.webp", "dog/b.gif", "dog/c.bmp", "dog/d.tiff"]
    folder = ImageFolder.read(fill(tmp_path, *names))
    assert folder.class_names == ("cat", "dog")
    assert [image.path for image in folder.images] == names
    assert folder.labels == [0, 0, 1, 1, 1, 1]
    assert not folder.left_out


def test_names_may_have_spaces_and_any_letters(tmp_path: Path) -> None:
    folder = ImageFolder.read(fill(tmp_path, "Świnka morska/a b.jpg", "猫/一.jpg", "猫/二.jpg"))
    assert folder.class_names == ("Świnka morska", "猫")


def test_what_is_no_image_of_a_class_is_left_out_with_the_reason(tmp_path: Path) -> None:
    fill(tmp_path, *several("cat", 2), *several("dog", 2))
    fill(tmp_path, "cat/notes.txt", "cat/.hidden.jpg", ".git/a.jpg", "loose.jpg")
    (tmp_path / "cat" / "nowhere.jpg").symlink_to("absent")
    assert reasons(ImageFolder.read(tmp_path)) == {
        ".git": "its name begins with a dot",
        "cat/.hidden.jpg": "its name begins with a dot",
        "cat/notes.txt": "not named like a JPEG, PNG, WebP, GIF, BMP or TIFF file",
        "cat/nowhere.jpg": "cannot be read: No such file or directory",
        "loose.jpg": "lies in no class's folder",
    }


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    fill(tmp_path, *several("cat", 2), *several("dog", 2))
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat", target_is_directory=True)
    (tmp_path / "dog" / "itself").symlink_to("itself")
    folder = ImageFolder.read(tmp_path)
    assert len(folder.images) == 4
    assert reasons(folder) == {
        "cat/again": "a link to a folder that is read once",
        "dog/itself": "cannot be read: Too many levels of symbolic links",
    }


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", "a.jpg", "b.jpg")
    root = fill(tmp_path / "photos", *several("cat", 2))
    (root / "dog").symlink_to(elsewhere, target_is_directory=True)
    assert ImageFolder.read(root).class_names == ("cat", "dog")


@pytest.mark.parametrize("held_back", ["val", "valid", "Validation"])
def test_given_parts_are_kept(tmp_path: Path, held_back: str) -> None:
    names = ["train/cat/a.jpg", "train/dog/b.jpg", f"{held_back}/cat/c.jpg", "test/dog/d.jpg"]
    folder = ImageFolder.read(fill(tmp_path, *names))
    given = ["train", "train", "validation", "test"]
    assert parts(folder) == dict(zip(names, given, strict=True))
    assert folder.class_names == ("cat", "dog")


def test_with_a_test_part_alone_validation_is_split_off_the_rest(tmp_path: Path) -> None:
    fill(tmp_path, *several("train/cat", 5), *several("train/dog", 5), *several("test/cat", 3))
    folder = ImageFolder.read(tmp_path)
    found = [len(folder.of_part(part)) for part in ("train", "validation", "test")]
    assert found == [8, 2, 3]


def test_train_without_a_held_back_part_beside_it_is_a_class(tmp_path: Path) -> None:
    folder = ImageFolder.read(fill(tmp_path, *several("train", 2), "plane/b.jpg"))
    assert folder.class_names == ("plane", "train")


def test_a_folder_beside_the_parts_is_left_out(tmp_path: Path) -> None:
    names = ["train/cat/a.jpg", "train/dog/b.jpg", "val/cat/c.jpg", "unsorted/d.jpg"]
    folder = ImageFolder.read(fill(tmp_path, *names))
    assert reasons(folder) == {"unsorted": "a folder beside train/ that is no part"}


# The split


def test_a_fifth_of_each_class_is_split_off(tmp_path: Path) -> None:
    fill(tmp_path, *several("cat", 50), *several("dog", 10), *several("eel", 2))
    folder = ImageFolder.read(tmp_path)
    held_back = [folder.labels[index] for index in folder.of_part("validation")]
    assert [held_back.count(label) for label in range(3)] == [10, 2, 1]


def test_a_share_and_a_seed_may_be_chosen(tmp_path: Path) -> None:
    fill(tmp_path, *several("cat", 20), *several("dog", 20))
    first, same, other = (
        ImageFolder.read(tmp_path, validation=0.5, seed=seed).of_part("validation")
        for seed in (1, 1, 2)
    )
    assert len(first) == len(other) == 20
    assert first == same != other


def test_the_split_is_the_same_for_ever(tmp_path: Path) -> None:
    folder = ImageFolder.read(fill(tmp_path, *several("cat", 10), *several("dog", 5)), seed=3)
    assert folder.of_part("validation") == [5, 7, 11]


def test_most_images_stay_where_they_were_when_one_is_added(tmp_path: Path) -> None:
    fill(tmp_path, *several("cat", 50), *several("dog", 50))
    before = parts(ImageFolder.read(tmp_path))
    fill(tmp_path, "cat/new.jpg")
    after = parts(ImageFolder.read(tmp_path))
    assert sum(after[path] != part for path, part in before.items()) <= 1


def test_both_sides_have_each_class_that_has_two_images(tmp_path: Path) -> None:
    fill(tmp_path, *several("cat", 2), *several("dog", 1))
    for share in (0.01, 0.99):
        folder = ImageFolder.read(tmp_path, validation=share)
        sides = [part for path, part in parts(folder).items() if path.startswith("cat")]
        assert sorted(sides) == ["train", "validation"]
        assert parts(folder)["dog/0.jpg"] == "train"


@pytest.mark.parametrize("seed", range(8))
def test_equal_images_never_lie_on_both_sides(tmp_path: Path, seed: int) -> None:
    copies = several("cat/copies", 6)
    fill(tmp_path, *copies, content=b"the same")
    fill(tmp_path, *several("cat", 3), *several("dog", 3))
    found = parts(ImageFolder.read(tmp_path, seed=seed))
    assert len({found[path] for path in copies}) == 1
    assert {part for path, part in found.items() if "cat" in path} == {"train", "validation"}


def test_an_image_in_two_given_parts_stays_in_the_one_held_back(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/same.jpg", "val/cat/same.jpg", content=b"the same")
    fill(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg")
    folder = ImageFolder.read(tmp_path)
    assert reasons(folder) == {
        "train/cat/same.jpg": "the same image as val/cat/same.jpg, which is held back"
    }
    assert parts(folder)["val/cat/same.jpg"] == "validation"


def test_an_image_in_two_classes_has_no_known_label(tmp_path: Path) -> None:
    fill(tmp_path, "cat/x.jpg", "dog/y.jpg", content=b"the same")
    fill(tmp_path, *several("cat", 2), *several("dog", 2))
    folder = ImageFolder.read(tmp_path)
    assert reasons(folder) == {
        "cat/x.jpg": "the same image as dog/y.jpg, which is of class 'dog'",
        "dog/y.jpg": "the same image as cat/x.jpg, which is of class 'cat'",
    }


def test_a_class_of_nothing_else_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "cat/x.jpg", "dog/y.jpg", content=b"the same")
    fill(tmp_path, *several("cat", 2))
    with pytest.raises(DatasetError, match=naming("'dog'")):
        ImageFolder.read(tmp_path)


# Labels from a file


def labelled(tmp_path: Path, text: str) -> ImageFolder:
    (tmp_path / "labels.csv").write_text(text)
    root = fill(tmp_path / "photos", "a.jpg", "b.jpg", "deep/c.jpg", "deep/d.jpg", "unlabelled.jpg")
    return ImageFolder.read(root, tmp_path / "labels.csv")


@pytest.mark.parametrize("header", ["", "path,label\n", "\ufefffile name,class\n"])
def test_a_file_of_labels_says_what_is_used(tmp_path: Path, header: str) -> None:
    folder = labelled(
        tmp_path, f'{header}a.jpg,cat\nb.jpg,"dog, big"\n\n./deep/c.jpg,cat\na.jpg,cat\n'
    )
    assert folder.class_names == ("cat", "dog, big")
    assert [image.path for image in folder.images] == ["a.jpg", "b.jpg", "deep/c.jpg"]


def test_a_path_may_be_absolute_if_it_lies_in_the_folder(tmp_path: Path) -> None:
    folder = labelled(tmp_path, f"{tmp_path}/photos/a.jpg,cat\nb.jpg,dog\ndeep/c.jpg,dog\n")
    assert folder.images[0].path == "a.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("absent.jpg,cat\n", "line 1.*'absent.jpg'"),
        ("a.jpg,cat\n../x.jpg,dog\n", r"line 2.*'\.\./x\.jpg'.*photos"),
        ("/etc/x.jpg,cat\n", "line 1.*'/etc/x.jpg'"),
        ("a.jpg,cat\na.jpg,dog\n", "line 2.*'a.jpg'.*'dog'.*'cat'"),
        ("a.jpg,\n", "line 1.*'a.jpg'"),
        ("path,label\ndeep,cat\n", "line 2.*'deep'"),
        ("a.jpg\n", "line 1.*1 fields.*2.*path,label"),
        ("a.jpg,cat\n", "photos.*'cat'"),
        ("path,label\n", "photos"),
        ("a.jpg,cat\nb.jpg,Cat\n", "'Cat'.*'cat'"),
    ],
)
def test_a_file_of_labels_that_fits_nothing(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        labelled(tmp_path, text)


def test_a_file_of_labels_that_is_no_text(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "labels.csv", content=b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=naming("labels.csv", "UTF-8")):
        ImageFolder.read(tmp_path, tmp_path / "labels.csv")
    with pytest.raises(DatasetError, match=naming("absent.csv")):
        ImageFolder.read(tmp_path, tmp_path / "absent.csv")


# What is no folder of images


def one_class(root: Path) -> None:
    fill(root, *several("cat", 3))


def empty_class(root: Path) -> None:
    fill(root, *several("cat", 3), *several("dog", 3), "eel/notes.txt")


def nothing(root: Path) -> None:
    root.mkdir()


def only_text(root: Path) -> None:
    fill(root, "cat/a.txt", "dog/b.txt")


def loose_images(root: Path) -> None:
    fill(root, "a.jpg", "b.jpg")


def case(root: Path) -> None:
    fill(root, "Cat/a.jpg", "cat/b.jpg")


def composed(root: Path) -> None:
    fill(root, "caf\u00e9/a.jpg", "cafe\u0301/b.jpg")


def unprintable(root: Path) -> None:
    fill(root, "cat/a.jpg", "d\nog/b.jpg")


def one_image_each(root: Path) -> None:
    fill(root, "cat/a.jpg", "dog/b.jpg")


def not_trained(root: Path) -> None:
    fill(root, "train/cat/a.jpg", "train/dog/a.jpg", "val/eel/a.jpg")


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (one_class, "'cat'"),
        (empty_class, "'eel'"),
        (nothing, "JPEG.*CLASS"),
        (only_text, r"cat/a.txt.*1 more"),
        (loose_images, r"a.jpg"),
        (case, "'Cat'.*'cat'"),
        (composed, "caf"),
        (unprintable, r"'d\\nog'"),
        (one_image_each, ".*two.*images"),
        (not_trained, "'eel'.*train/"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_says_why(
    tmp_path: Path, arrange: Callable[[Path], None], message: str
) -> None:
    root = tmp_path / "photos"
    arrange(root)
    with pytest.raises(DatasetError, match=f"^{root}: .*{message}"):
        ImageFolder.read(root)


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    with pytest.raises(DatasetError, match=naming("file")):
        ImageFolder.read(tmp_path / "file")
    with pytest.raises(DatasetError, match=naming("absent")):
        ImageFolder.read(tmp_path / "absent")


@pytest.mark.parametrize("share", [0, 1, -1, float("nan")])
def test_a_share_that_leaves_nothing(tmp_path: Path, share: float) -> None:
    with pytest.raises(DatasetError, match=naming(0, 1)):
        ImageFolder.read(tmp_path, validation=share)


@pytest.mark.parametrize("run", [".", "photos/run", "photos"])
def test_the_run_is_written_elsewhere(tmp_path: Path, run: str) -> None:
    root = fill(tmp_path / "photos", *several("cat", 2), *several("dog", 2))
    ImageFolder.read(root, run_directory=tmp_path / "run")
    with pytest.raises(DatasetError, match=naming(root, tmp_path / run)):
        ImageFolder.read(root, run_directory=tmp_path / run)


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (("training", "testing"), {"train", "validation", "test"}),
        (("train",), {"train", "validation"}),
    ],
)
def test_parts_may_have_longer_names_and_train_may_lie_alone(
    tmp_path: Path, folders: tuple[str, ...], parts: set[str]
) -> None:
    names = [f"{part}/{name}/{i}.png" for part in folders for name in "ab" for i in range(4)]
    folder = drawn_folder(tmp_path / "photos", names)
    assert folder.class_names == ("a", "b")
    assert {image.part for image in folder.images} == parts


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_third_column_of_labels_names_the_part(tmp_path: Path, separator: str) -> None:
    names = [f"{i}.png" for i in range(8)]
    drawn_folder(tmp_path / "photos", [f"x/{name}" for name in names] + ["y/a.png", "y/b.png"])
    rows = [("path", "label", "split")]
    rows += [
        (f"x/{name}", "ab"[i % 2], "test" if i > 5 else "train") for i, name in enumerate(names)
    ]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(map(separator.join, rows)))
    folder = ImageFolder.read(tmp_path / "photos", labels)
    tested = [image.path for image in folder.images if image.part == "test"]
    assert tested == ["x/6.png", "x/7.png"]
    labels.write_text("\n".join(separator.join((*row[:2], "wide")) for row in rows[1:]))
    folder = ImageFolder.read(tmp_path / "photos", labels)
    assert str(labels) in [each.path for each in folder.left_out]


def test_a_group_stays_on_one_side_and_does_not_leak_into_the_test(tmp_path: Path) -> None:
    names = [f"train/{name}/{i}.png" for name in "ab" for i in range(6)]
    folder = drawn_folder(tmp_path / "photos", [*names, "test/a/0.png", "test/b/0.png"])
    paths = [image.path for image in folder.images]
    groups = list(range(len(paths)))
    groups[paths.index("train/a/1.png")] = groups[paths.index("test/a/0.png")]
    for name in ("2", "3"):
        groups[paths.index(f"train/b/{name}.png")] = 99
    for seed in range(5):
        found = folder.regrouped(groups, 0.3, seed)
        part_of = {image.path: image.part for image in found.images}
        assert part_of["train/a/1.png"] == ""
        assert part_of["train/b/2.png"] == part_of["train/b/3.png"]
        assert "train/a/1.png" in [each.path for each in found.left_out]


def test_a_new_class_of_few_groups_waits_and_says_what_it_lacks(tmp_path: Path) -> None:
    names = [f"{name}/{i}.png" for name in ("a", "b", "new") for i in range(6)]
    folder = replace(drawn_folder(tmp_path / "photos", names), new_classes=("new",))
    for different, missing in ((1, "images in 2 more groups"), (2, "images in 1 more group")):
        groups = [*range(12), *(100 + i % different for i in range(6))]
        found = folder.regrouped(groups, 0.3, 0)
        assert found.class_names == ("a", "b")
        assert found.waiting == (WaitingClass("new", 6, different),)
        assert found.waiting[0].missing == missing
        assert {each.reason for each in found.left_out} == {str(found.waiting[0])}
    assert not folder.regrouped(range(18), 0.3, 0).waiting


@pytest.mark.parametrize("seed", range(4))
def test_similar_images_of_two_classes_are_on_one_side(tmp_path: Path, seed: int) -> None:
    folder = cats_and_dogs(tmp_path)
    groups = [index % 10 for index in range(20)]  # each cat with a dog
    parts = [image.part for image in folder.regrouped(groups, 0.3, seed).images]
    assert parts[:10] == parts[10:]
    assert parts[:10].count("validation") == 3


def test_a_class_of_one_group_is_divided_nevertheless(tmp_path: Path) -> None:
    folder = cats_and_dogs(tmp_path)
    found = folder.regrouped([0] * 10 + [*range(1, 11)], 0.3, 0)
    cats = [image.part for image in found.images][:10]
    assert 3 <= cats.count("validation") <= 4
    is_held_back = [part == "validation" for part in cats]
    changes = sum(one != other for one, other in pairwise(is_held_back))
    assert changes <= 2  # a run of consecutive images
