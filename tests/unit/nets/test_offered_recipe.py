"""A recipe from another host: what is taken, what is refused, and what is shown before it runs."""

from pathlib import Path

import pytest

from dist_net.errors import RecipeError
from dist_net.nets.offered_recipe import MAX_FILE_BYTES, MAX_FILES, OfferedRecipe, recipe_offer
from dist_net.nets.recipes.recipe import LoadedRecipe, load_recipe, own_release
from dist_net.nets.recipes.recipe_files import sha256
from dist_net.nets.run_contents import load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.wire.messages import RecipeOffer
from naming import naming

COUNTING = Path(__file__).parents[2] / "recipes" / "counting.py"
DIGEST = f"{own_release()}; recipe x; data y"


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.make()
    return directory


def test_a_built_in_recipe_travels_as_its_name(directory: RunDirectory) -> None:
    offer = recipe_offer(load_recipe("digits"), DIGEST)
    assert offer == RecipeOffer("digits", "digits", DIGEST, "[]", "", ())
    offered = OfferedRecipe.from_offer(offer)
    assert not offered.origin.is_code
    offered.keep(directory)
    assert load_run_recipe(directory).reference == "digits"


def test_a_file_travels_with_what_it_imports_and_is_the_same_recipe_there(
    directory: RunDirectory, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(f"import helper\n{COUNTING.read_text()}")
    (tmp_path / "helper.py").write_text("x = 1")
    loaded = load_recipe(str(recipe))
    offer = recipe_offer(loaded, DIGEST)
    assert offer is not None
    assert str(tmp_path) not in str(offer)
    offered = OfferedRecipe.from_offer(offer)
    assert offered.origin.is_code
    offered.keep(directory, original="/data/mine.py")
    there = load_run_recipe(directory, trust_recipe=True)
    dataset = loaded.recipe.load_dataset()
    assert there.digest(dataset) == loaded.digest(dataset)
    assert there.reference == "/data/mine.py"
    assert offered.file_digests == loaded.file_digests
    assert offered.file_digests["helper.py"] == sha256(b"x = 1")


def test_what_is_too_large_is_not_sent() -> None:
    loaded = load_recipe(str(COUNTING))
    for files in ({"a.py": bytes(MAX_FILE_BYTES + 1)}, dict.fromkeys(map(str, range(65)), b"")):
        assert recipe_offer(LoadedRecipe("x", "x", files, loaded.recipe), DIGEST) is None


@pytest.mark.parametrize(
    "offer",
    [
        RecipeOffer("x", "", DIGEST, "[]", "", ()),
        RecipeOffer("x", "", DIGEST, "[]", "", (b"recipe.py",)),
        RecipeOffer("x", "", DIGEST, "[]", "", (b"other.py", b"")),
        RecipeOffer("x", "", DIGEST, "[]", "", (b"recipe.py", b"", b"../up.py", b"")),
        RecipeOffer("x", "", DIGEST, "[]", "", (b"recipe.py", b"", b"/etc/up.py", b"")),
        RecipeOffer("x", "", DIGEST, "[]", "", (b"recipe.py", b"", b"options.json", b"")),
        RecipeOffer("x", "", DIGEST, "[]", "", (b"recipe.py", b"", b"\xff.py", b"")),
        RecipeOffer("x", "", DIGEST, "[]", "", (b"a.py", b"") * (MAX_FILES + 1)),
        RecipeOffer("digits", "digits", DIGEST, "[1]", "", ()),
        RecipeOffer("digits", "digits", DIGEST, "{", "", ()),
        RecipeOffer("x", "no-such", DIGEST, "[]", "", ()),
        RecipeOffer("x", "/home/somebody/recipe.py", DIGEST, "[]", "", (b"recipe.py", b"")),
        RecipeOffer("digits", "digits", DIGEST, "[]", "", (b"recipe.py", b"")),
        RecipeOffer("x", "folder-of-images", DIGEST, "[]", "", (b"recipe.py", b"")),
    ],
)
def test_what_no_server_gives_is_refused(offer: RecipeOffer) -> None:
    with pytest.raises(RecipeError, match="server"):
        OfferedRecipe.from_offer(offer)


def test_a_server_of_another_release_is_named() -> None:
    offer = RecipeOffer("digits", "digits", "release 0.9+abc; recipe x; data y", "[]", "", ())
    with pytest.raises(RecipeError, match=naming("0.9+abc", "same release")):
        OfferedRecipe.from_offer(offer)
