"""``dist-net join``: who is asked before code from elsewhere runs, and how many workers join."""

import argparse
import io
import zipfile
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest

from dist_net.cli import join
from dist_net.errors import DatasetError, RecipeError, UntrustedRecipeError
from dist_net.nets.offered_recipe import OfferedRecipe, recipe_offer
from dist_net.nets.recipes.recipe import load_recipe, own_release
from dist_net.nets.recipes.recipe_files import sha256
from dist_net.nets.run_contents import load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.wire.messages import RecipeOffer
from naming import naming

COUNTING = Path(__file__).parents[2] / "recipes" / "counting.py"
DIGEST = f"{own_release()}; recipe x; data y"


class Terminal(io.StringIO):
    """A keyboard at which somebody has typed something."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.make()
    return directory


def prepare(offer: RecipeOffer | None, directory: RunDirectory, *options: str) -> int:
    """Prepare an offered recipe; return the number of its training samples."""
    assert offer is not None
    parser = argparse.ArgumentParser()
    join.add_arguments(parser)
    arguments = parser.parse_args(["TOKEN", *options])
    with ExitStack() as opened:
        arguments.data = join.local_data(arguments.data, opened)
        offered = OfferedRecipe.from_offer(offer)
        may_fork = join.prepare_recipe(offered, directory, arguments)
        assert may_fork == ("gradient=" not in str(offered.files))
        recipe = load_run_recipe(directory, trust_recipe=True).recipe
        return len(recipe.load_dataset().train_targets)


def code(tmp_path: Path) -> RecipeOffer | None:
    """A recipe that says that it was run."""
    recipe = tmp_path / "mine.py"
    recipe.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'was run')!r}).touch()\n")
    recipe.write_text(recipe.read_text() + COUNTING.read_text())
    offer = recipe_offer(load_recipe(str(recipe)), DIGEST)
    (tmp_path / "was run").unlink()
    return offer


@pytest.mark.parametrize("typed", ["y\n", "Yes\n"])
def test_code_from_elsewhere_runs_if_somebody_says_so(
    directory: RunDirectory,
    tmp_path: Path,
    typed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    offer = code(tmp_path)
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    assert prepare(offer, directory) == 256
    assert (tmp_path / "was run").exists()
    shown = capsys.readouterr().err
    content = directory.recipe.read_bytes()
    assert f"{directory.recipe}: SHA-256 {sha256(content)}" in shown
    monkeypatch.setattr("sys.stdin", None)
    assert prepare(offer, directory) == 256  # it is confirmed


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        (Terminal("n\n"), "not trusted"),
        (Terminal("\n"), "not trusted"),
        (Terminal(""), "not trusted"),
        (io.StringIO("y\n"), r"recipe\.py.*SHA-256 [0-9a-f]{64}.*--trust-recipe"),
    ],
)
def test_it_does_not_otherwise(
    directory: RunDirectory,
    tmp_path: Path,
    stdin: io.StringIO,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer = code(tmp_path)
    monkeypatch.setattr("sys.stdin", stdin)
    with pytest.raises(UntrustedRecipeError, match=says):
        prepare(offer, directory)
    assert not (tmp_path / "was run").exists()
    assert prepare(offer, directory, "--trust-recipe") == 256


def test_nobody_is_asked_about_what_is_built_in(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert prepare(recipe_offer(load_recipe("digits"), DIGEST), directory) == 1437


def test_what_a_recipe_looks_for_beside_itself_is_found_in_a_folder_that_is_given(
    directory: RunDirectory, tmp_path: Path
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for place in (there, here):
        place.mkdir()
        (place / "count").write_text("x")
    recipe = there / "mine.py"
    look = "from pathlib import Path\nPath(__file__).with_name('count').read_text()\n"
    recipe.write_text(look + COUNTING.read_text())
    offer = recipe_offer(load_recipe(str(recipe)), DIGEST)
    with pytest.raises(RecipeError) as refused:
        prepare(offer, directory, "--trust-recipe")
    assert "--data FOLDER" in "".join(refused.value.__notes__)
    assert prepare(offer, directory, "--trust-recipe", "--data", str(here)) == 256


@pytest.mark.parametrize(
    ("options", "workers"), [([], 4), (["--threads", "3"], 1), (["--workers", "7"], 7)]
)
def test_as_many_workers_join_as_there_are_cores_for(
    options: list[str], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "available_cores", lambda: 4)
    parser = argparse.ArgumentParser()
    join.add_arguments(parser)
    assert join.workers_of(parser.parse_args(["TOKEN", *options])) == workers


@pytest.mark.parametrize(
    "options", [["--workers", "257"], ["--threads", "9999"], ["--timeout", "0"]]
)
def test_what_cannot_be_is_refused_before_anybody_is_asked(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    join.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["TOKEN", *options])
    assert f"argument {options[0]}: {options[1]} is " in capsys.readouterr().err


def test_data_of_a_url_are_copied_and_removed_at_the_end() -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe({"/shop/shirts/1.txt": b"one", "/shop/2.txt": b"two"})
    with ExitStack() as opened:
        copy = join.local_data("memory://shop", opened)
        assert copy is not None
        files = {str(each.relative_to(copy)): each.read_bytes() for each in copy.rglob("*.txt")}
        assert files == {"shirts/1.txt": b"one", "2.txt": b"two"}
    assert not copy.exists()


@pytest.mark.parametrize("name", ["photos [2024]", "a::b", "100% *?"])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_the_name_of_a_folder_is_no_pattern(kind: str, name: str, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    root = f"{tmp_path}/{name}"
    fsspec.filesystem(kind).mkdirs(f"{root}/shirts [1]")
    fsspec.filesystem(kind).pipe({f"{root}/shirts [1]/1*.txt": b"one"})
    with ExitStack() as opened:
        copy = join.local_data(f"{kind}://{root}", opened)
        assert copy is not None
        assert (copy / "shirts [1]" / "1*.txt").read_bytes() == b"one"


def test_a_chain_of_urls_is_read(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("shirts/1.txt", b"one")
    with ExitStack() as opened:
        copy = join.local_data(f"zip://shirts::file://{tmp_path}/photos.zip", opened)
        assert copy is not None
        assert (copy / "1.txt").read_bytes() == b"one"


def test_a_url_of_one_file_is_refused() -> None:
    pytest.importorskip("fsspec").filesystem("memory").pipe({"/alone/1.txt": b"one"})
    with ExitStack() as opened, pytest.raises(DatasetError, match=naming("memory://alone/1.txt")):
        join.local_data("memory://alone/1.txt", opened)


@pytest.mark.parametrize("url", ["memory://nothing", "nobody-reads-this://data"])
def test_a_url_that_cannot_be_read_is_named(url: str) -> None:
    pytest.importorskip("fsspec")
    with ExitStack() as opened, pytest.raises(DatasetError, match=url):
        join.local_data(url, opened)


def test_a_url_cannot_write_outside_of_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    monkeypatch.setattr(join, "temporary_directory", lambda: nullcontext(tmp_path / "own"))
    memory.pipe({"/traps/1.txt": b"one"})
    memory.store["/traps/../../2.txt"] = memory.store["/traps/1.txt"]  # as a bucket may name it
    with (
        ExitStack() as opened,
        pytest.raises(DatasetError, match=naming("memory://traps", "2.txt")),
    ):
        join.local_data("memory://traps", opened)
    del memory.store["/traps/../../2.txt"]
    assert list(tmp_path.rglob("*.txt")) == []


def test_a_folder_is_used_where_it_is(tmp_path: Path) -> None:
    with ExitStack() as opened:
        assert join.local_data(str(tmp_path), opened) == tmp_path
        assert join.local_data(None, opened) is None


def test_the_workers_of_a_gradient_function_do_not_fork(directory: RunDirectory) -> None:
    line = load_recipe(str(COUNTING.with_name("line.py")))
    assert prepare(recipe_offer(line, DIGEST), directory, "--trust-recipe") == 640
