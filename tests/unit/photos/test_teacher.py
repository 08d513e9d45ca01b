"""A teacher's head is a function of the images and the labels that were not withdrawn."""

import random
import shutil
from itertools import cycle
from pathlib import Path

import pytest

import dist_net
from dist_net.data.collection import Collection
from dist_net.data.image_folder import file_digest
from dist_net.errors import CollectionError
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nets.recipe_origins import image_recipe_of
from dist_net.nets.recipes.image_recipe import ImageRecipe
from dist_net.nets.run_contents import read_run
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.teaching.teacher import Stage, Teacher
from drawn_images import draw_shapes
from naming import naming
from selection import few

CLASSES = "circle", "square", "triangle"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    root = tmp_path_factory.mktemp("taught")
    photos = draw_shapes(root / "photos", 9)
    dist_net.train(photos, base="none", epochs=1, run_dir=root / "base", quiet=True)
    dist_net.train(photos, base=str(root / "base"), run_dir=root / "run", quiet=True)
    return RunDirectory(root / "run")


def learned(teacher: Teacher) -> None:
    teacher.learn()
    teacher.complete()


def head_of(run: RunDirectory) -> bytes:
    return read_checkpoint(run.best).evaluated_weights.tobytes()


@pytest.mark.parametrize("seed", few(range(20), 2))
def test_orders_corrections_and_restarts_leave_no_trace(run: RunDirectory, seed: int) -> None:
    draw = random.Random(seed)
    images = [file_digest(path) for path in sorted(Path(_options(run).folder).rglob("*.jpg"))]
    wanted = {image: draw.choice(CLASSES) for image in draw.sample(images, 4)}
    with Collection(run.collection) as collection:
        collection.withdraw(teacher="ann")
        for image, label in wanted.items():
            collection.set_label(image, label, "ann", CLASSES)
        learned(Teacher(run, collection))
        expected = head_of(run)

        collection.withdraw(teacher="ann")
        teacher = Teacher(run, collection)
        for image in draw.sample(images, 3) + draw.sample([*wanted], 4):
            for label in (draw.choice(CLASSES), wanted.get(image)):
                if label is not None:
                    set_label = collection.set_label(image, label, "ann", CLASSES)
            if image not in wanted:
                collection.withdraw([set_label.number])
            if draw.random() < 0.3:
                teacher.learn()
            if draw.random() < 0.2:
                teacher.complete()
            if draw.random() < 0.2:
                teacher = Teacher(run, collection)
        learned(teacher)
        assert head_of(run) == expected


def test_a_label_is_followed_at_once_and_ends_the_training_of_the_folds(
    run: RunDirectory, tmp_path: Path
) -> None:
    first, second, *_ = sorted(Path(_options(run).folder).rglob("*.jpg"))
    (new, *_) = draw_shapes(tmp_path / "sent", 1, seed=6).rglob("*.jpg")
    with Collection(run.collection) as collection, Collection(run.collection) as page:
        teacher = Teacher(run, collection)
        learned(teacher)
        heads = [head_of(run)]
        for image in (file_digest(first), new.read_bytes()):
            page.set_label(image, "square", "joe", CLASSES)
            assert teacher.learn()
            assert teacher._stage is Stage.INTERIM
            heads.append(head_of(run))
        assert len({*heads}) == 3

        page.set_label(file_digest(second), "triangle", "joe", CLASSES)
        assert not teacher.complete()
        assert head_of(run) == heads[-1]
        learned(teacher)
        teacher.report()
        complete = head_of(run)
        learned(Teacher(run, collection))
        assert head_of(run) == complete
        page.withdraw(teacher="joe")


def test_labels_that_leave_one_class_are_logged_and_the_model_stays(
    run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    with Collection(run.collection) as collection:
        images = [*map(file_digest, sorted(Path(_options(run).folder).rglob("*.jpg")))]
        for image in images:
            collection.set_label(image, "circle", "bob", CLASSES)
        before, teacher = head_of(run), Teacher(run, collection)
        assert not teacher.learn()
        assert head_of(run) == before
        assert "not_trained" in caplog.text
        for image, label in zip(images, cycle(CLASSES), strict=False):
            collection.set_label(image, label, "bob", CLASSES)
        assert teacher.learn()
        teacher.report()
        assert '"circle"' in run.report.with_suffix(".json").read_text()
        collection.withdraw(teacher="bob")


def test_the_queue_grows_by_what_clients_send_and_ends_with_its_last_image(
    run: RunDirectory, tmp_path: Path
) -> None:
    sent = sorted(draw_shapes(tmp_path / "sent", 2, seed=5).rglob("*.jpg"))
    with Collection(run.collection) as collection:
        teacher = Teacher(run, collection)
        teacher.learn()
        teacher.order(is_new=True)
        folder = {each["image"] for each in collection.queued()}
        collection.unlabelled.mkdir(exist_ok=True)
        for image in sent:
            (collection.unlabelled / f"{file_digest(image)}-500").write_bytes(image.read_bytes())
        (collection.unlabelled / f"{'0' * 64}-1").write_bytes(b"no image")
        teacher.order(is_new=False)
        assert {each["image"] for each in collection.queued()} - folder == {
            file_digest(image) for image in sent
        }
        for labelled in (1, len(sent)):
            for image in sent[:labelled]:
                collection.set_label(file_digest(image), "circle", "eve", CLASSES)
            learned(teacher)
            teacher.order(is_new=True)
            queued = {each["image"] for each in collection.queued()} & {*map(file_digest, sent)}
            assert queued == {*map(file_digest, sent[labelled:])}
        assert not [*collection.unlabelled.iterdir()]
        collection.queue.write_text('[{"image": 5}, 7]')
        with pytest.raises(CollectionError, match=naming("queue.json", "remove it")):
            collection.queued()
        collection.withdraw(teacher="eve")


def test_a_trained_net_keeps_its_weights_and_is_judged_on_images_that_it_never_saw(
    run: RunDirectory, tmp_path: Path
) -> None:
    shutil.copytree(run.path.parent / "base", tmp_path / "tuned")
    tuned = RunDirectory(tmp_path / "tuned")
    seen = _recipe_of(tuned).tuned_on
    base = weights_of_base(tuned)
    photos = sorted(Path(_options(tuned).folder).rglob("*.jpg"))
    sent = draw_shapes(tmp_path / "sent", 1, seed=6, classes=("square",)) / "square" / "000.jpg"
    with Collection(tuned.collection) as collection:
        teacher = Teacher(tuned, collection)
        learned(teacher)
        untaught = head_of(tuned)
        collection.set_label(file_digest(photos[0]), "square", "ann", CLASSES)
        collection.set_label(sent.read_bytes(), "square", "ann", CLASSES)
        learned(teacher)
        teacher.report()
        teacher.order(is_new=True)
        assert head_of(tuned) != untaught
        assert weights_of_base(tuned) == base
        assert _recipe_of(tuned).tuned_on == seen
        queued = {each["image"] for each in collection.queued()}
        collection.withdraw(teacher="ann")
        learned(Teacher(tuned, collection))
        assert head_of(tuned) == untaught
        assert not Teacher(tuned, collection).learn()  # nothing to reload
    assert queued <= {*map(file_digest, photos)}
    report = tuned.read_report()
    assert report["measured"][0]["images"] == len(photos) + 1 - len(seen)
    assert f"trained on {len(seen)}" in report["description"]
    assert "--resume --run-dir RUN" in report["advice"]


def weights_of_base(run: RunDirectory) -> list[bytes]:
    views = _recipe_of(run).model.layout.views(read_checkpoint(run.best).evaluated_weights)
    return [view.tobytes() for name, view in views.items() if name.startswith("base/")]


def _recipe_of(run: RunDirectory) -> ImageRecipe:
    recipe = image_recipe_of(read_run(run.path)[0])
    assert recipe is not None
    return recipe


def _options(run: RunDirectory) -> ImageOptions:
    return ImageOptions.read(run.folder)
