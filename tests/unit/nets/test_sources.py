"""What a person may call a model, and what is found there, now and later."""

import json
import os
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import image_runs
from benchmarks.seeded_weights import seeded_weights
from dist_net.errors import (
    CheckpointError,
    DatasetError,
    ModelFileError,
    ModelLoadError,
    ModelSourceError,
    RecipeChangedError,
    SettingError,
    TokenError,
    UntrustedRecipeError,
)
from dist_net.ground.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from dist_net.images.fitting import fit_image
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.architecture import PublishedArchitecture
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.weights import write_weights
from dist_net.nets.observer import Observer
from dist_net.nets.offered_recipe import recipe_offer
from dist_net.nets.recipe_origins import origin_of
from dist_net.nets.recipes.recipe import RecipeRecord, load_recipe, own_release
from dist_net.nets.recipes.recipe_files import trust
from dist_net.nets.run_contents import read_run, recipe_code_digests
from dist_net.nets.run_directory import RunDirectory
from dist_net.nets.sources import named_source
from dist_net.nets.sources.followed_run import FollowedRun
from dist_net.nets.sources.found_model import RunFiles
from dist_net.nets.sources.named_source import NamedSource, parse_named_source
from dist_net.nn import Concatenate, Dense, Field, Flatten, Model, Rescale, Sequential, Weighted
from dist_net.nn.inference import Inference, map_prepared, prepare, softmax
from dist_net.python.loaded_model import load
from dist_net.serving.model_reading import described
from dist_net.training.run.run_options import RunOptions
from dist_net.wire.messages import Snapshot
from dist_net.wire.security import PeerKeys
from dist_net.wire.token import POOL, TRAINING, JoinToken
from dist_net.wire.token_exchange import ServerAccess
from image_runs import CONFIGURATION
from naming import naming


def progress(_: object) -> None:
    """Nothing is fetched."""


def called(model, weights=None, labels=None):
    return NamedSource("m", str(model), weights, labels).open(progress)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    network = DarknetNetwork(parse_configuration(CONFIGURATION, "n"))
    write_weights(tmp_path / "n.weights", network, seeded_weights(network, 0))
    (tmp_path / "names").write_text("red\ngreen\nblue\n")
    (tmp_path / "n.cfg").write_text(CONFIGURATION)
    return tmp_path / "n.cfg"


def files(net: Path) -> tuple[Path, Path]:
    return net.with_name("n.weights"), net.with_name("names")


@pytest.fixture
def digits_rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 17, (4, 8, 8), np.uint8)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    write_run(directory, 0)
    return directory


def write_run(directory: RunDirectory, seed: int, reference: str = "digits") -> None:
    loaded = load_recipe(reference)
    weights = loaded.recipe.initial_weights(seed)
    layout = loaded.recipe.model.layout.shapes
    names = loaded.recipe.load_dataset().class_names
    record = RecipeRecord(loaded.file_digests, names, loaded.recipe.fitting).to_json()
    checkpoint = Checkpoint(reference, "", layout, 5, {}, {}, {}, weights, {}, record)
    if origin_of(loaded.reference).is_code:
        directory.begin(RunOptions("mine").to_json(), loaded.files)
        trust(loaded.file_digests)
    write_checkpoint(directory.checkpoint, checkpoint)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("darknet53", ("darknet53", "darknet53", None, None)),
        ("big=darknet53", ("big", "darknet53", None, None)),
        ("nets/a b=c.cfg", ("a-b-c", "nets/a b=c.cfg", None, None)),
        ("nets/tiny.cfg", ("tiny", "nets/tiny.cfg", None, None)),
        ("x=nets/t.cfg,weights=a,b.w,labels=l", ("x", "nets/t.cfg", Path("a,b.w"), Path("l"))),
        ("x=t.cfg,labels=l", ("x", "t.cfg", None, Path("l"))),
        ("runs/digits-2026/", ("digits-2026", "runs/digits-2026/", None, None)),
        ("runs/a=b", ("a-b", "runs/a=b", None, None)),
        ("my run (2)", ("my-run-2-", "my run (2)", None, None)),
        ("runs/_ä", ("model", "runs/_ä", None, None)),
        ("tcp://host:5000", ("live", "tcp://host:5000", None, None)),
        ("m=ipc:///a=b", ("m", "ipc:///a=b", None, None)),
        ("-x=darknet53", None),
        ("stats=darknet53", None),
        ("runs/stats", None),
        ("..=darknet53", None),
        ("ä=darknet53", None),
    ],
)
def test_a_source_may_be_given_a_name(text, parts):
    if parts is None:
        with pytest.raises(ModelSourceError, match="NAME="):
            parse_named_source(text)
    else:
        assert parse_named_source(text) == NamedSource(*parts)


def test_the_model_of_a_folder_is_one_file_with_its_recipe_and_its_calibration(tmp_path):
    photos = RunDirectory(image_runs.write_run(tmp_path / "photos", threshold=0.5))
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(photos.best.read_bytes())
    assert called(alone).read().unknown_below == 0.5
    assert called(alone).read().labels == image_runs.COLOURS


def test_a_precision_chosen_later_sets_the_threshold_that_proves_it(tmp_path):
    run = image_runs.write_run(tmp_path / "photos", threshold=0.5)
    image_runs.write_calibration(run, 0.5, proven=[(0.2, 0.7), (0.4, 0.91), (0.5, 0.96)])

    def opened(text):
        return parse_named_source(text).open(progress).read()

    assert opened(f"photos={run}").unknown_below == 0.5
    assert opened(f"photos={run},precision=0.9").unknown_below == 0.4
    assert opened(f"{run},precision=0.7").unknown_below == 0.2
    with pytest.raises(SettingError, match=naming("precision=0.97", "at most 0.960")):
        opened(f"photos={run},precision=0.97")


def test_only_a_run_on_a_folder_has_a_precision(run):
    for model in (run.path, lite0.NAME):
        with pytest.raises(ModelSourceError, match=naming(model, "a run on a folder")):
            parse_named_source(f"{model},precision=0.9").open(progress).read()
    with pytest.raises(ModelSourceError, match=naming("precision=high", "0.9")):
        parse_named_source("m=photos,precision=high")


def test_the_last_checkpoint_of_a_folder_does_not_replace_its_missing_model(tmp_path):
    photos = RunDirectory(image_runs.write_run(tmp_path / "photos"))
    photos.write(photos.folder, "{}")
    photos.best.rename(photos.checkpoint)
    with pytest.raises(CheckpointError, match=naming(photos.best)):
        called(photos.path).read()


def test_a_checkpoint_is_called_after_its_run(run):
    assert parse_named_source(str(run.checkpoint)).name == "run"
    renamed = run.checkpoint.rename(run.path / "best.safetensors")
    assert parse_named_source(str(renamed)).name == "best"


def test_what_is_nothing_is_refused(net, run):
    weights, labels = files(net)
    with pytest.raises(ModelSourceError, match=naming("'darknet35'", "darknet53")):
        called("darknet35")
    with pytest.raises(ModelSourceError, match=naming("n.cfg", "--weights FILE", "--labels FILE")):
        called(net, weights)
    with pytest.raises(ModelSourceError, match=naming("--weights")):
        called(run.path, weights)
    with pytest.raises(ModelSourceError, match=naming("--weights")):
        called("tcp://127.0.0.1:1", weights)
    with pytest.raises(ModelSourceError, match=naming("--weights")):
        called("efficientnet-lite0", weights)
    with pytest.raises(ModelSourceError, match=naming("efficientnet-lite0")):
        called("efficientnet-lite")
    with pytest.raises(
        ModelSourceError, match=naming(str(labels), "efficientnet-lite0", "alexnet")
    ):
        called(labels).read()
    assert isinstance(called("ipc:///somewhere"), FollowedRun)
    assert isinstance(called(run.path), RunFiles)


def write_saved(path: Path, **options) -> Path:
    """A model of digits that ``Model.save`` wrote, with random weights."""
    model = Model(Sequential(Rescale(), Flatten(), Dense(10)), (8, 8), **options)
    model.weights = model.layout.initial(np.random.default_rng(0))
    model.save(path)
    return path


@pytest.mark.parametrize("kind", ["net", "run", "saved"])
def test_what_is_found_can_be_built_again_from_its_description(kind, net, run, tmp_path):
    source = called(net, *files(net)) if kind == "net" else called(run.path)
    if kind == "saved":
        source = called(write_saved(tmp_path / "saved.safetensors"))
    found = source.read()
    description = described(found, "m", 7, tmp_path)
    model = type(description).from_json(description.to_json()).architecture.build("m")
    mapped = map_prepared(Path(description.arrays_path), description.arrays_key)
    assert mapped is not None
    assert Path(description.arrays_path).stat().st_size == description.arrays_bytes
    inputs = np.ones((2, *model.input_shape), model.input_dtype)
    one, other = Inference(found.model, found.prepared), Inference(model, mapped)
    assert one(inputs).tobytes() == other(inputs).tobytes()
    one.close()
    other.close()
    assert (description.version, description.classes) == (7, model.classes)
    assert len(description.labels) == model.classes
    assert description.has_logits == (kind != "net")
    assert description.input_datatype == ("FP32" if kind == "net" else "UINT8")


def test_a_saved_model_has_its_classes_or_predicts_numbers(tmp_path, digits_rows):
    names = [f"digit {number}" for number in range(10)]
    found = called(write_saved(tmp_path / "named", class_names=names)).read()
    assert found.labels == tuple(names)
    assert found.takes_images
    assert called(write_saved(tmp_path / "numbers", loss="mse")).read().labels == ()
    weighted = Weighted("cross_entropy_of_logits", [1.0] * 10)
    assert called(write_saved(tmp_path / "weighted", loss=weighted)).read().has_logits
    run = load(tmp_path / "named")
    assert run.class_names == tuple(names)
    assert run.evaluate(digits_rows, np.arange(4)).samples == 4
    with pytest.raises(DatasetError, match=naming("named", "evaluate")):
        run.evaluate()


def test_a_saved_model_of_another_network_is_refused(tmp_path):
    path = write_saved(tmp_path / "m")
    checkpoint = read_checkpoint(path)
    record = json.loads(checkpoint.recipe_record["model"])
    record["network"]["Sequential"]["layers"][-1]["Dense"]["units"] = 9
    changed = checkpoint.recipe_record | {"model": json.dumps(record)}
    write_checkpoint(path, replace(checkpoint, recipe_record=changed))
    with pytest.raises(CheckpointError, match=naming("dense/kernel", (64, 10), (64, 9))):
        called(path).read()


def test_a_saved_model_of_several_inputs_is_described_with_their_names(tmp_path):
    inputs = np.dtype([("a", np.float32, (3,)), ("b", np.float32, (2,))])
    model = Model(Concatenate(Field("a"), Field("b")), (), "mse", inputs)
    model.weights = np.empty(0, np.float32)
    model.save(tmp_path / "m")
    description = described(called(tmp_path / "m").read(), "m", 1, tmp_path)
    assert [(each.name, each.shape) for each in description.inputs] == [("a", (3,)), ("b", (2,))]


def test_a_pretrained_net_is_built_again_from_its_name(tmp_path, monkeypatch):
    """With random weights: the published ones are not needed for that."""
    weights = lite0.model().layout.initial(np.random.default_rng(0))
    monkeypatch.setattr(lite0, "read_weights", lambda: weights)
    found = called(lite0.NAME).read()
    description = described(found, "m", 1, tmp_path)
    sent = type(description).from_json(description.to_json())
    assert sent.architecture.build("m") is lite0.model()
    assert (description.has_logits, description.fitting) == (True, "imagenet")
    assert description.labels[0] == "tench"
    with pytest.raises(ModelLoadError, match=naming("efficientnet-lite9", "release")):
        PublishedArchitecture("efficientnet-lite9").build("m")


@pytest.mark.parametrize("kind", ["net", "run"])
def test_the_weights_are_what_the_kernels_were_prepared_from(kind, net, run):
    found = (called(net, *files(net)) if kind == "net" else called(run.path)).read()
    prepared = prepare(found.model, found.weights())
    assert prepared.keys() == found.prepared.keys()
    for name, array in prepared.items():
        np.testing.assert_array_equal(array, found.prepared[name])


def test_a_darknet_nets_arrays_lie_beside_its_weights(net, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    description = described(called(net, *files(net)).read(), "m", 1, own)
    assert description.arrays_path == str(tmp_path / "n.weights.prepared")
    assert not list(own.iterdir())
    (tmp_path / "n.weights.prepared").unlink()
    (tmp_path / "n.weights.prepared").mkdir()  # where they cannot be written, they lie elsewhere
    description = described(called(net, *files(net)).read(), "m", 1, own)
    assert [description.arrays_path] == [str(path) for path in own.iterdir()]


def test_a_run_is_read_again_as_it_is_then(run, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    source = called(run.path)
    first = described(source.read(), "m", 1, own)
    assert described(source.read(), "m", 2, own).arrays_path == first.arrays_path
    keys = {first.arrays_key}
    for seed in range(1, 6):
        write_run(run, seed)
        keys.add(described(source.read(), "m", 2 + seed, own).arrays_key)
    assert len(keys) == 6


def test_a_run_is_asked_with_the_fitting_that_it_was_trained_with(run, tmp_path):
    assert load_recipe("digits").recipe.fitting == "pad"
    checkpoint = read_checkpoint(run.checkpoint)
    record = {**checkpoint.recipe_record, "fitting": "stretch"}  # as a release before had it
    write_checkpoint(run.checkpoint, replace(checkpoint, recipe_record=record))
    found = called(run.path).read()
    assert found.fitting == "stretch"
    image = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 20), np.uint8)).save(image)
    inputs = fit_image(image, (8, 8), "stretch")[np.newaxis]
    with closing(Inference(found.model, found.prepared)) as session:
        expected = softmax(session(inputs))[0]
    predictions = load(run.path).classify(image, top=10)
    assert {each.index: each.probability for each in predictions} == pytest.approx(
        dict(enumerate(expected.tolist()))
    )


def test_a_run_whose_checkpoint_is_half_copied_is_refused_not_an_earlier_one(run, monkeypatch):
    monkeypatch.chdir(run.path)  # no runs to suggest
    checkpoint = read_checkpoint(run.checkpoint)
    write_checkpoint(run.checkpoint, replace(checkpoint, version=6), kept=3, previous_version=5)
    whole = run.checkpoint.read_bytes()
    source = called(run.path)
    for content in (whole[: len(whole) // 2], b"", None):
        run.checkpoint.unlink()
        if content is not None:
            run.checkpoint.write_bytes(content)
        for read in (source.read, partial(load, run.path), partial(read_run, run.checkpoint)):
            with pytest.raises(CheckpointError, match=naming(run.checkpoint)):
                read()
    run.checkpoint.write_bytes(whole)
    source.read()


def outputs_of(source):
    found = source.read()
    session = Inference(found.model, found.prepared)
    try:
        return session(np.linspace(0, 1, 192, dtype=np.float32).reshape(1, 8, 8, 3))
    finally:
        session.close()


@pytest.mark.parametrize("change", ["temperature", "weights", "damage"])
def test_kernels_that_were_kept_are_not_used_for_anything_else(net, change):
    weights, names = files(net)
    configuration = CONFIGURATION.replace("[avgpool]", "[connected]\noutput=3\nactivation=linear")
    network = DarknetNetwork(parse_configuration(configuration, "n"))
    net.write_text(configuration)
    write_weights(weights, network, seeded_weights(network, 0))
    first = outputs_of(called(net, weights, names))
    if change == "temperature":
        net.write_text(configuration + "temperature=0.1\n")
    elif change == "weights":
        status = weights.stat()
        write_weights(weights, network, seeded_weights(network, 1))
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert weights.stat().st_size == status.st_size
    else:
        kept = weights.with_name("n.weights.prepared")
        content = bytearray(kept.read_bytes())
        content[-3] ^= 0x40
        kept.write_bytes(content)
    second = outputs_of(called(net, weights, names))
    weights.with_name("n.weights.prepared").unlink()
    np.testing.assert_array_equal(second, outputs_of(called(net, weights, names)))
    assert np.array_equal(first, second) == (change == "damage")


def test_outputs_count_as_logits_if_the_loss_took_them_for_such(run):
    assert called(run.path).read().has_logits
    counting = Path(__file__).parents[2] / "recipes" / "counting.py"
    write_run(run, 0, str(counting))
    found = called(run.path).read()
    assert not found.has_logits
    assert found.labels == ("only",)


def test_names_of_classes_can_be_given(run, net):
    names = net.with_name("names")
    names.write_text("".join(f"digit {i}\n" for i in range(10)))
    assert called(run.path, None, names).read().labels[3] == "digit 3"
    with pytest.raises(ModelFileError, match=naming("10 names", 3)):
        called(net, *files(net)).read()


OWN = """
import sys
from pathlib import Path
import numpy as np
from dist_net import Recipe
from dist_net.data import Dataset
from dist_net.nn import Dense, Flatten, Rescale, Sequential
from dist_net.wire.messages import Snapshot
from dist_net.wire.token_exchange import ServerAccess
from dist_net.wire.security import PeerKeys
from dist_net.wire.token import POOL, TRAINING, JoinToken

Path(__file__).with_name("runs").open("a").write("run ")

def data():
    Path(__file__).with_name("data").open("a").write("made ")
    images, labels = np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.uint8)
    return Dataset("mine", images, labels, images, labels, ("cat", "dog"))

recipe = Recipe(Sequential(Rescale(), Flatten(), Dense(2)), data, (8, 8), fitting="stretch")
"""


@pytest.fixture
def own(tmp_path: Path, run: RunDirectory) -> Path:
    """The recipe of a user that ``run`` was trained with."""
    recipe = tmp_path / "mine.py"
    recipe.write_text(OWN)
    write_run(run, 0, str(recipe))
    for name in ("runs", "data"):
        (tmp_path / name).unlink()
    return recipe


def test_what_a_run_has_learnt_is_read_without_its_data(run: RunDirectory, own: Path) -> None:
    found = called(run.path).read()
    assert (found.labels, found.fitting) == (("cat", "dog"), "stretch")
    assert own.with_name("runs").read_text() == "run "
    assert not own.with_name("data").exists()


def test_a_downloaded_recipe_is_served_only_when_trusted(
    run: RunDirectory,
    own: Path,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another user"))
    with pytest.raises(UntrustedRecipeError, match="--trust-recipe"):
        called(run.path).read()
    found = NamedSource("m", str(run.path)).open(progress, trust_recipe=True).read()
    description = described(found, "m", 1, tmp_path)
    with pytest.raises(UntrustedRecipeError, match="--trust-recipe"):
        description.architecture.build("m")
    assert description.architecture.build("m", trust_recipe=True).classes == 2
    trust(recipe_code_digests(run.path))
    assert called(run.path).read().labels == found.labels
    assert description.architecture.build("m").classes == 2
    run.recipe.write_text("raise SystemExit('it was run')")
    with pytest.raises(RecipeChangedError):
        description.architecture.build("m", trust_recipe=True)


def test_a_server_may_not_name_the_file_that_is_run(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another user"))
    offer = recipe_offer(load_recipe(str(own)), f"{own_release()}; recipe x", ("cat", "dog"))
    own.write_text("raise SystemExit('it was run')")
    monkeypatch.setattr(Observer, "status", lambda *_: {"recipe": str(own), "version": 1})
    weights = np.zeros(64 * 2 + 2, np.float32)
    monkeypatch.setattr(Observer, "snapshot", lambda *_: Snapshot(1, 0, weights))
    monkeypatch.setattr(Observer, "recipe", lambda _: offer)
    address = "ipc:///nowhere"
    with pytest.raises(UntrustedRecipeError, match="--trust-recipe"):
        NamedSource("m", address).open(progress).read()
    found = NamedSource("m", address).open(progress, trust_recipe=True).read()
    assert (found.labels, found.fitting) == (("cat", "dog"), "stretch")


def test_a_token_is_the_run_that_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = PeerKeys.new(b"")
    monkeypatch.setattr(
        named_source, "join_by_token", lambda _, role: ServerAccess(f"ipc://{role}", keys)
    )
    token = JoinToken(TRAINING, "00ad5eed", 1, ("tcp://192.0.2.1:5",), bytes(32), bytes(32))
    followed = NamedSource("m", token.text).open(progress)
    assert isinstance(followed, FollowedRun)
    assert followed.address == "ipc://client"
    assert parse_named_source(token.text).name == "live"
    assert parse_named_source(f"mine={token.text}").name == "mine"
    for wrong in (replace(token, kind=POOL).text, token.text[:-1]):
        with pytest.raises(TokenError, match=r"parameter server|damaged"):
            NamedSource("m", wrong).open(progress)


def test_a_recipe_that_this_host_lacks_comes_from_the_server_if_it_is_trusted(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another user"))
    offer = recipe_offer(load_recipe(str(own)), f"{own_release()}; recipe x", ("cat", "dog"))
    own.unlink()
    monkeypatch.setattr(Observer, "status", lambda *_: {"recipe": str(own), "version": 1})
    weights = np.zeros(64 * 2 + 2, np.float32)
    monkeypatch.setattr(Observer, "snapshot", lambda *_: Snapshot(1, 0, weights))
    monkeypatch.setattr(Observer, "recipe", lambda _: offer)
    with pytest.raises(UntrustedRecipeError, match="--trust-recipe"):
        NamedSource("m", "ipc:///nowhere").open(progress).read()
    found = NamedSource("m", "ipc:///nowhere").open(progress, trust_recipe=True).read()
    assert (found.labels, found.fitting) == (("cat", "dog"), "stretch")
    assert not own.with_name("data").exists()


def test_a_path_with_an_equals_sign_is_a_path_if_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_named_source("lr=0.1")[:2] == ("lr", "0.1")
    (tmp_path / "lr=0.1").mkdir()
    assert parse_named_source("lr=0.1")[:2] == ("lr-0.1", "lr=0.1")
    labels = parse_named_source("lr=0.1,labels=names.txt")
    assert (labels.source, labels.labels) == ("lr=0.1", Path("names.txt"))
    assert parse_named_source("m=lr=0.1")[:2] == ("m", "lr=0.1")
