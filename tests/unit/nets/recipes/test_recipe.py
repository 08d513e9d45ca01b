"""Recipes by name and by file, and the digest by which hosts compare theirs."""

import json
import py_compile
import sys
from dataclasses import replace
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net import nn
from dist_net.autodiff import variable
from dist_net.data import Dataset, dataset_named
from dist_net.errors import (
    DatasetError,
    ParameterError,
    RecipeChangedError,
    RecipeError,
    SettingError,
    UnknownOptionError,
    UntrustedRecipeError,
)
from dist_net.nets.darknet.configuration import read_configuration, write_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.weights import read_weights, write_weights
from dist_net.nets.recipes.recipe import (
    LoadedRecipe,
    Recipe,
    RecipeRecord,
    load_recipe,
    load_recipe_copy,
    recipe_names,
)
from dist_net.nets.recipes.recipe_files import trust
from dist_net.nn import Scope
from dist_net.optim import Cosine, Momentum
from naming import naming

EXAMPLE = Path(__file__).parents[4] / "examples" / "fashion_mnist" / "recipe.py"

TEXT = """
from dist_net import Recipe
from dist_net.nn import Dense, Flatten, Sequential, Rescale
recipe = Recipe(Sequential(Rescale(), Flatten(), Dense(10)), "digits", (8, 8))
"""


def test_every_built_in_recipe_loads_by_its_name() -> None:
    assert recipe_names() == ["digits", "fashion-mnist", "fashion-mnist-conv"]
    for name in recipe_names():
        assert load_recipe(name).name == load_recipe(name).reference == name


def test_the_example_is_a_recipe() -> None:
    assert load_recipe(str(EXAMPLE)).recipe.model.layout.size == 101_770


def test_what_the_convolutional_recipe_trains_can_be_written_for_the_darknet_program(
    tmp_path: Path,
) -> None:
    recipe = load_recipe("fashion-mnist-conv").recipe
    assert isinstance(recipe.network, nn.Sequential)
    network = recipe.network.layers[-1]
    assert isinstance(network, DarknetNetwork)
    random = np.random.default_rng(0)
    weights = recipe.initial_weights(0)
    buffers = weights[recipe.model.layout.trained_size :]
    buffers[:] = random.uniform(0.5, 1.5, buffers.shape)
    write_configuration(network.configuration, tmp_path / "net.cfg")
    write_weights(tmp_path / "net.weights", network, weights)

    read = DarknetNetwork(read_configuration(tmp_path / "net.cfg"))
    model = nn.Model(read, (28, 28, 1), input_dtype=np.float32)
    images = random.integers(0, 256, (3, 28, 28), np.uint8)
    logits = nn.Predictor(recipe.model, weights)(images)
    pixels = images[..., None].astype(np.float32) / np.float32(255)
    vector = read_weights(tmp_path / "net.weights", read)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        nn.Predictor(model, vector)(pixels), shares / shares.sum(1, keepdims=True), rtol=1e-3
    )


def test_a_file_is_a_recipe_by_its_absolute_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TEXT)
    loaded = load_recipe(str(path))
    assert (loaded.name, loaded.reference) == ("mine", str(path))
    assert loaded.recipe.load_dataset().input_shape == (8, 8)


def test_optimizer_and_schedule_may_be_names() -> None:
    network = nn.Sequential(nn.Rescale(), nn.Flatten(), nn.Dense(10))
    recipe = Recipe(network, "digits", (8, 8), optimizer="momentum", schedule="cosine")
    assert (recipe.optimizer, recipe.schedule) == (Momentum(), Cosine())
    for schedule in ("cosinus", 0.1):
        with pytest.raises(SettingError, match="'constant' or 'cosine'"):
            Recipe(network, "digits", (8, 8), schedule=schedule)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "network=None.*Dense"),
        ({"network": 1, "dataset": "digits"}, "network=1.*Dense"),
        ({"network": nn.Dense(10), "dataset": [1, 2]}, r"\[1, 2\].*function"),
        ({"network": nn.Dense(10), "dataset": np.zeros(3)}, "array.*function"),
    ],
)
def test_what_is_no_network_or_no_dataset_is_refused_with_what_is_expected(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises((RecipeError, ParameterError), match=words):
        Recipe(**options, input_shape=(8, 8))


def test_a_refusal_of_an_option_lists_no_private_names() -> None:
    with pytest.raises(UnknownOptionError) as refused:
        Recipe(nn.Dense(10), "digits", (8, 8), qqqq=3)
    assert "optimizer" in str(refused.value)
    assert " _" not in str(refused.value)


def test_first_weights_follow_from_the_seed() -> None:
    recipe = load_recipe("digits").recipe
    np.testing.assert_array_equal(recipe.initial_weights(3), recipe.initial_weights(3))
    assert not np.array_equal(recipe.initial_weights(3), recipe.initial_weights(4))


def test_the_digest_tells_files_and_data_apart(tmp_path: Path) -> None:
    digits = dataset_named("digits")
    digests = set()
    for name, text in (("a", TEXT), ("b", TEXT), ("c", TEXT.replace("Dense(10)", "Dense( 10)"))):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        digests.add(load_recipe(str(path)).digest(digits))
    assert len(digests) == 2  # wherever it lies, the same file is the same recipe
    labels = digits.train_targets.copy()
    labels[[0, 1]] = [1, 2]
    changed = replace(digits, train_targets=labels)
    assert load_recipe("digits").digest(changed) != load_recipe("digits").digest(digits)


def test_the_digest_says_whether_release_recipe_or_data_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def parts(dataset: Dataset) -> dict[str, str]:
        return dict(part.split() for part in load_recipe("digits").digest(dataset).split("; "))

    digits = dataset_named("digits")
    own = parts(digits)
    images = digits.train_inputs.copy()
    images[3, 0, 0] ^= 1
    for changed in (
        replace(digits, train_inputs=images),
        replace(digits, train_inputs=images[:-1], train_targets=digits.train_targets[:-1]),
    ):
        other = parts(changed)
        assert {name for name in own if own[name] != other[name]} == {"data"}
    monkeypatch.setattr("dist_net.nets.recipes.recipe.release", lambda: "0.9+000000000000")
    other = parts(digits)
    assert {name for name in own if own[name] != other[name]} == {"release"}


@pytest.mark.parametrize("reference", ["nothing", "missing.py", "/"])
def test_what_is_no_recipe_is_refused_with_the_names_there_are(reference: str) -> None:
    with pytest.raises(RecipeError, match=naming(repr(reference), "digits", "fashion-mnist")):
        load_recipe(reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("(8, 8)", "(9, 9)"),
            r"\(8, 8\).*uint8.*input_shape=\(9, 9\)",
        ),
        (("Dense(10)", "Dense(7)"), r"10 classes.*\(7,\)"),
        (("Flatten(), ", ""), r"10 classes.*\(8, 10\)"),
    ],
)
def test_data_that_does_not_fit_the_network_is_refused(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TEXT.replace(*change))
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path)).recipe.load_dataset()


def write(folder: Path, **texts: str) -> Path:
    """The path of ``mine.py``, with what else is beside it."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return folder / "mine.py"


IMPORTING = """
import net
from dist_net import Recipe
recipe = Recipe(net.network, "digits", (8, 8))
"""
NET = """
from dist_net.nn import Dense, Flatten, Rescale, Sequential
network = Sequential(Rescale(), Flatten(), Dense({}), Dense(10))
"""


def test_a_recipe_imports_the_files_beside_it_and_no_other_recipes(tmp_path: Path) -> None:
    sizes = []
    for width in (3, 5):
        path = write(tmp_path / str(width), mine=IMPORTING, net=NET.format(width))
        loaded = load_recipe(str(path))
        assert sorted(loaded.files) == ["net.py", "recipe.py"]
        sizes.append(loaded.recipe.model.layout.size)
    assert sizes == [65 * width + 10 * width + 10 for width in (3, 5)]
    assert "net" not in sys.modules
    with pytest.raises(RecipeError, match=naming("mine.py:2", "ModuleNotFoundError", "'net'")):
        load_recipe(str(write(tmp_path / "alone", mine=IMPORTING)))


def test_the_digest_covers_what_lies_beside(tmp_path: Path) -> None:
    digits = dataset_named("digits")
    digests = set()
    for comment in ("", "# other"):
        path = write(tmp_path, mine=IMPORTING, net=NET.format(3) + comment)
        digests.add(load_recipe(str(path)).digest(digits))
    assert len(digests) == 2


def test_a_file_may_be_imported_when_the_data_are_made(tmp_path: Path) -> None:
    function = "def data():\n    import net\n    return net.dataset_named('digits')\n"
    text = function + TEXT.replace('"digits"', "data")
    path = write(tmp_path, mine=text, net="from dist_net.data import dataset_named")
    loaded = load_recipe(str(path))
    assert loaded.recipe.load_dataset().name == "digits"
    assert sorted(loaded.files) == ["net.py", "recipe.py"]


def test_a_file_that_would_take_the_recipes_place_in_a_run_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, mine="import recipe", recipe="")
    with pytest.raises(RecipeError, match=naming("mine.py:1", "rename")):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"mine": "\n\n1 / 0"}, "/mine.py:3.*ZeroDivisionError"),
        ({"mine": "x = 1\nx ="}, "/mine.py:2.*SyntaxError"),
        ({"mine": "import net", "net": "\n1 / 0"}, "/net.py:2.*ZeroDivisionError"),
        ({"mine": TEXT.replace("Rescale()", "Dense(9)")}, "/mine.py:4"),
    ],
)
def test_an_error_in_a_recipe_says_where(tmp_path: Path, texts: dict[str, str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe(str(write(tmp_path, **texts)))


@pytest.mark.parametrize("fails", ["1 / 0", "Dataset('x', *[[]] * 4, ())"])
def test_an_error_in_a_dataset_function_says_where(tmp_path: Path, fails: str) -> None:
    function = f"from dist_net.data import Dataset\ndef data():\n    return {fails}\n"
    path = write(tmp_path, mine=function + TEXT.replace('"digits"', "data"))
    with pytest.raises((RecipeError, DatasetError), match=r"mine\.py:3\b"):
        load_recipe(str(path)).recipe.load_dataset()


def test_what_a_recipe_prints_goes_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"import sys\nprint('one')\nsys.stdout.write('two')\n{TEXT}"
    text = text.replace("Flatten()", "Flatten(), lambda x, scope: print('three') or x")
    network = load_recipe(str(write(tmp_path, mine=text))).recipe.network
    network(variable("x", (1, 8, 8)), Scope())
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert [each in stderr for each in ("one", "two", "three")] == [True] * 3


def test_a_name_that_is_nearly_a_recipes_is_guessed() -> None:
    with pytest.raises(RecipeError, match=naming("'fashion-mist'", "fashion-mnist")):
        load_recipe("fashion-mist")


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedRecipe:
    """A recipe with a file beside it, whose copies in ``run`` nobody has confirmed yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    original = load_recipe(str(write(tmp_path / "own", mine=IMPORTING, net=NET.format(3))))
    run = tmp_path / "run"
    run.mkdir()
    for name, content in original.files.items():
        (run / name).write_bytes(content)
    return replace(original, path=run / "recipe.py")


def copy_of(loaded: LoadedRecipe, trust_recipe: bool = False) -> LoadedRecipe:
    return load_recipe_copy(loaded.path, loaded.reference, loaded.file_digests, trust_recipe)


def test_a_copy_runs_without_its_original_and_its_cached_bytecode(copied: LoadedRecipe) -> None:
    for path in Path(copied.reference).parent.iterdir():
        path.write_text("raise SystemExit('the original was run')")
    other = copied.path.with_name("other.py")
    other.write_text("raise SystemExit('bytecode was run')")
    (copied.path.parent / "__pycache__").mkdir()
    py_compile.compile(str(other), cache_from_source(str(copied.path)))
    found = copy_of(copied, trust_recipe=True)
    assert found.files == copied.files
    assert (found.reference, found.name) == (copied.reference, "mine")


def test_a_copy_finds_the_data_of_its_original(tmp_path: Path) -> None:
    text = TEXT + "from pathlib import Path\nsaid = Path(__file__).with_name('data').read_text()\n"
    path = write(tmp_path / "own", mine=text)
    path.with_name("data").write_text("the data")
    loaded = load_recipe(str(path))
    copy = tmp_path / "recipe.py"
    copy.write_text(text)
    load_recipe_copy(copy, str(path), loaded.file_digests, trust_recipe=True)


@pytest.mark.parametrize("name", ["recipe.py", "net.py"])
def test_a_changed_file_is_not_run(copied: LoadedRecipe, name: str) -> None:
    path = copied.path.with_name(name)
    path.write_text("raise SystemExit('it was run')")
    with pytest.raises(RecipeChangedError, match=naming(f"run/{name}", "changed")):
        copy_of(copied, trust_recipe=True)
    path.unlink()
    with pytest.raises(RecipeChangedError, match=naming(f"run/{name}", "missing")):
        copy_of(copied, trust_recipe=True)


def test_a_copy_that_the_user_has_not_confirmed_is_not_run(copied: LoadedRecipe) -> None:
    with pytest.raises(UntrustedRecipeError, match="--trust-recipe"):
        copy_of(copied)
    trust({"recipe.py": copied.file_digests["recipe.py"]})
    with pytest.raises(UntrustedRecipeError):
        copy_of(copied)  # which imports a file that is not confirmed
    assert copy_of(copied, trust_recipe=True).files == copied.files
    trust(copied.file_digests)
    assert copy_of(copied).files == copied.files


def test_a_copy_without_digests_is_run_only_when_trusted(copied: LoadedRecipe) -> None:
    trust(copied.file_digests)
    with pytest.raises(UntrustedRecipeError, match=naming("recipe.py", "digest")):
        load_recipe_copy(copied.path, copied.reference, {})
    load_recipe_copy(copied.path, copied.reference, {}, trust_recipe=True)


def test_trust_in_an_imported_file_extends_to_no_recipe(copied: LoadedRecipe) -> None:
    trust(copied.file_digests)
    copied.path.write_text("raise SystemExit('it was run')")
    imported = {"net.py": copied.file_digests["net.py"]}
    with pytest.raises(UntrustedRecipeError):
        load_recipe_copy(copied.path, copied.reference, imported)
    with pytest.raises(RecipeChangedError):
        load_recipe_copy(copied.path, copied.reference, imported, trust_recipe=True)


def test_a_fitting_that_there_is_not_is_refused() -> None:
    recipe = load_recipe("digits").recipe
    assert recipe.fitting == "pad"
    assert replace(recipe, dataset=lambda: dataset_named("digits"), fitting="").fitting == "exact"
    with pytest.raises(RecipeError, match=naming("fitting='squeeze'", "pad", "crop", "stretch")):
        replace(recipe, fitting="squeeze")


def test_a_record_is_read_as_it_was_written() -> None:
    loaded = load_recipe("digits")
    names = loaded.recipe.load_dataset().class_names
    record = RecipeRecord(loaded.file_digests, names, loaded.recipe.fitting)
    assert RecipeRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert (record.class_names, record.fitting) == (tuple("0123456789"), "pad")


@pytest.mark.parametrize(
    "values",
    [[], {"files": []}, {"class_names": [1]}, {"fitting": "x"}, {"files": {"recipe.py": 1}}],
)
def test_a_record_that_is_none_is_refused(values: object) -> None:
    with pytest.raises(RecipeError, match=naming("record", values)):
        RecipeRecord.from_json(values)
