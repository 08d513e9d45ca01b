"""The versions of a worker: loaded beside those that answer, swapped, dropped, never lost."""

import threading
from dataclasses import replace

import pytest

from described import described
from dist_net.errors import ModelLoadError, ProtocolError
from dist_net.serving.worker.loaded_models import LoadedModels
from dist_net.wire.serving_messages import Load, Loaded

DESCRIPTION = described("m", classes=2, arrays_path="/1")


class Network:
    """In the place of a ServedNetwork."""

    memory_bytes = 0

    def __init__(self, description):
        self.description = description
        self.is_closed = threading.Event()

    def close(self):
        self.is_closed.set()


class Loader:
    """Makes a network when it is let; says what it made and whether it was told to stop."""

    def __init__(self):
        self.is_let = threading.Event()
        self.has_begun = threading.Event()
        self.made = []
        self.may_go_on = []
        self.alike = []
        self.error = None

    def __call__(self, description, alike, may_go_on):
        self.alike.append(alike)
        self.has_begun.set()
        assert self.is_let.wait(60)
        self.may_go_on.append(may_go_on())
        if self.error is not None:
            raise self.error
        self.made.append(Network(description))
        return self.made[-1]


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def models(loader):
    made = LoadedModels(loader)
    yield made
    loader.is_let.set()
    made.close()


def load(version=1, path="/1", **others):
    description = replace(DESCRIPTION, version=version, arrays_path=path, **others)
    return Load("m", version, description.to_json())


def finish(models):
    """What was loaded, once it is."""
    while not (found := models.finished()):
        assert models.is_loading
    return found


def test_a_version_answers_once_it_is_loaded_and_not_before(models, loader):
    models.begin(load())
    assert models.is_loading
    assert models.finished() == []
    assert models.network("m", 1) is None
    loader.is_let.set()
    assert finish(models) == [Loaded("m", 1, "")]
    assert not models.is_loading
    assert models.network("m", 1) is loader.made[0]
    assert models.network("m", 2) is None


def test_the_older_version_answers_while_the_newer_is_loaded(models, loader):
    loader.is_let.set()
    models.begin(load(1))
    finish(models)
    loader.is_let.clear()
    models.begin(load(2))
    assert models.network("m", 1) is loader.made[0]
    loader.is_let.set()
    finish(models)
    assert models.network("m", 1) is loader.made[0]
    assert models.network("m", 2) is loader.made[1]


def test_a_version_is_loaded_by_the_last_one_of_its_architecture(models, loader):
    loader.is_let.set()
    for each in (load(1), load(2), load(3, path="/3"), load(4, fitting="crop"), load(5)):
        models.begin(each)
        finish(models)
    models.drop("m", 5)
    models.drop("m", 3)
    models.begin(load(6))
    finish(models)
    first, second, third, _, _, _ = loader.made
    assert loader.alike == [None, first, second, None, third, second]


def test_a_dropped_version_is_closed(models, loader):
    loader.is_let.set()
    models.begin(load())
    finish(models)
    models.drop("m", 1)
    models.drop("m", 1)
    assert models.network("m", 1) is None
    assert loader.made[0].is_closed.is_set()


def test_a_version_that_is_dropped_while_it_is_loaded_is_told_of_to_nobody(models, loader):
    models.begin(load())
    assert loader.has_begun.wait(60)
    models.drop("m", 1)
    assert not models.is_loading
    loader.is_let.set()
    models.begin(load(2))
    assert finish(models) == [Loaded("m", 2, "")]
    assert loader.may_go_on == [False, True]
    assert loader.made[0].is_closed.wait(60)
    assert models.network("m", 1) is None


def test_loading_again_what_is_loaded_takes_no_time(models, loader):
    loader.is_let.set()
    models.begin(load())
    finish(models)
    models.begin(load())
    assert models.finished() == [Loaded("m", 1, "")]
    assert len(loader.made) == 1
    assert not loader.made[0].is_closed.is_set()


def test_after_joining_anew_only_what_is_asked_for_again_is_kept(models, loader):
    loader.is_let.set()
    for version in (1, 2):
        models.begin(load(version))
        finish(models)
    models.joined_anew()
    models.begin(load(2))
    assert models.finished() == [Loaded("m", 2, "")]
    assert set(models._networks) == {("m", 2)}
    assert [each.is_closed.is_set() for each in loader.made] == [True, False]


def test_another_version_of_the_same_number_takes_its_place(models, loader):
    loader.is_let.set()
    models.begin(load())
    finish(models)
    models.begin(load(path="/of another gateway"))
    finish(models)
    assert models.network("m", 1) is loader.made[1]
    assert loader.made[0].is_closed.is_set()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ModelLoadError("none there"), "none there"), (KeyError("k"), "KeyError: 'k'")],
)
def test_why_a_version_was_not_loaded_is_told(models, loader, error, reason):
    loader.error = error
    loader.is_let.set()
    models.begin(load())
    assert finish(models) == [Loaded("m", 1, reason)]
    assert models.network("m", 1) is None


def test_what_describes_no_model_is_refused(models):
    with pytest.raises(ProtocolError):
        models.begin(Load("m", 1, "[]"))


def test_all_are_closed_in_the_end(loader):
    models = LoadedModels(loader)
    loader.is_let.set()
    models.begin(load(1))
    finish(models)
    loader.is_let.clear()
    loader.has_begun.clear()
    models.begin(load(2))
    assert loader.has_begun.wait(60)
    loader.is_let.set()
    models.close()
    assert all(each.is_closed.is_set() for each in loader.made)
    assert len(loader.made) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"name": "../../../home/anna/.config/x"},
        {"name": "a" * 101},
        {"name": "a\n"},
        {"name": 7},
        {"arrays_key": "/../../../etc/" + "0" * 50},
        {"arrays_key": "0" * 63},
        {"arrays_key": None},
    ],
)
def test_a_gateway_names_no_path_on_a_workers_host(models, loader, values):
    text = replace(DESCRIPTION, **values).to_json()
    with pytest.raises(ProtocolError, match=next(iter(values))):
        models.begin(Load("m", 1, text))
    assert not loader.has_begun.is_set()
