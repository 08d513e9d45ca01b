"""``fit`` with several processes: as exact and as well-behaved as with one."""

import ctypes
import logging
import mmap
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dist_net
from dist_net.data import dataset_named
from dist_net.errors import DatasetError, NotFiniteError, SettingError
from dist_net.nn import BatchNorm, Dense, Dropout, Flatten, Model, Rescale, Sequential
from dist_net.training.run import fit_workers
from dist_net.training.run.callbacks import EpochResult
from dist_net.wire import lateness
from naming import naming

pytestmark = [
    pytest.mark.main_path,
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

SAMPLES, BATCH, RATE = 192, 16, 0.5
ONE_HOT = np.eye(SAMPLES, dtype=np.float32)
NOTHING = np.zeros((SAMPLES, 1), np.float32)
COUNTED: dict[str, Any] = {"optimizer": "sgd", "learning_rate": RATE, "batch_size": BATCH}


def counter() -> Model:
    """A model whose weights count how often each sample was trained on.

    The loss is a lambda, which cannot be pickled.
    """
    model = Model(Dense(1), (SAMPLES,), lambda outputs, _: outputs.sum(-1), np.float32)
    model.weights = np.zeros(model.layout.size, np.float32)
    return model


def normalized_counter() -> Model:
    model = Model(Sequential(BatchNorm(), Dense(1)), (SAMPLES,), "mse", np.float32)
    model.weights = model.layout.initial(np.random.default_rng(0))
    return model


def counts(model: Model) -> np.ndarray:
    return -model.weights[:SAMPLES] * BATCH / RATE


def children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(each) for each in text.split()]


class Rows:
    """One-hot inputs that call ``read_in_worker`` before a worker, not the caller, reads them."""

    shape, dtype = (SAMPLES,), np.dtype(np.float32)

    def __init__(self, read_in_worker: Callable[[], object]) -> None:
        self._caller = os.getpid()
        self._read_in_worker = read_in_worker

    def __len__(self) -> int:
        return SAMPLES

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        if os.getpid() != self._caller:
            self._read_in_worker()
        out[:] = ONE_HOT[indices]


def once(path: Path, action: Callable[[], object]) -> Callable[[], None]:
    """Return a function that calls ``action`` once, in the first process that calls it."""

    def act() -> None:
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return
        action()

    return act


def digits_net() -> Model:
    layers = Rescale(), Flatten(), Dense(32, "relu"), BatchNorm(), Dropout(0.1), Dense(10)
    return Model(Sequential(*layers), (8, 8))


def fitted(workers: int, epochs: int = 6) -> tuple[Model, list[EpochResult]]:
    digits, model = dataset_named("digits"), digits_net()
    data = digits.train_inputs, digits.train_targets
    tests = digits.test_inputs, digits.test_targets
    history = dist_net.fit(model, *data, validation=tests, epochs=epochs, workers=workers)
    return model, history


def test_each_sample_is_counted_once_in_each_epoch() -> None:
    model = counter()
    for done in (3, 6):  # another call continues
        history = dist_net.fit(model, ONE_HOT, NOTHING, epochs=3, workers=2, **COUNTED)
        np.testing.assert_allclose(counts(model), done, rtol=1e-5)
        assert "/memfd:dist-net" not in Path("/proc/self/maps").read_text()
        assert len(history) == 3


def test_two_are_as_accurate_as_one_and_equal_calls_end_with_equal_bits() -> None:
    (_, alone), (model, history), (again, _) = fitted(1), fitted(2), fitted(2)
    assert [each.epoch for each in history] == [each.epoch for each in alone]
    assert history[-1].loss < 1.1 * alone[-1].loss  # dropout differs
    assert history[-1].validation.loss < 1.1 * alone[-1].validation.loss
    assert history[-1].steps.learning_rate == alone[-1].steps.learning_rate
    np.testing.assert_array_equal(model.weights, again.weights)


@pytest.mark.parametrize("untrained", [counter, normalized_counter])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_no_bit_is_lost_with_a_worker(
    untrained: Callable[[], Model],
    end: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In mid-lease: with batch norm, the other one waits for it in mid-step.

    A stopped one counts as lost after a time.
    """
    monkeypatch.setattr(lateness, "FIRST_LEASE_S", 0.3)
    fall = once(tmp_path / "fallen", lambda: os.kill(os.getpid(), end))
    weights = []
    for rows in (ONE_HOT, Rows(fall)):
        model = untrained()
        dist_net.fit(model, rows, NOTHING, epochs=3, workers=2, **COUNTED)
        weights.append(model.weights)
    assert (tmp_path / "fallen").exists()
    np.testing.assert_array_equal(*weights)


def written(path: Path) -> Path:
    ONE_HOT.tofile(path)
    return path


def row_of_file(file: Any, index: int) -> bytes:
    file.seek(index * ONE_HOT[0].nbytes)
    return file.read(ONE_HOT[0].nbytes)


def mapped(path: Path) -> Callable[[int], bytes]:
    rows = np.memmap(written(path), np.float32, shape=ONE_HOT.shape)
    return lambda index: rows[index].tobytes()


def zipped(path: Path) -> Callable[[int], bytes]:
    with zipfile.ZipFile(path, "w") as archive:
        for index, row in enumerate(ONE_HOT):
            archive.writestr(str(index), row.tobytes())
    archive = zipfile.ZipFile(path)
    return lambda index: archive.read(str(index))


def in_sqlite(path: Path) -> Callable[[int], bytes]:
    database = sqlite3.connect(path)
    database.execute("create table samples (id integer primary key, row blob)")
    rows = [(index, row.tobytes()) for index, row in enumerate(ONE_HOT)]
    database.executemany("insert into samples values (?, ?)", rows)
    database.commit()
    database.execute("pragma cache_size = 0")
    find = "select row from samples where id = ?"
    return lambda index: database.execute(find, (index,)).fetchone()[0]


def of_descriptor(path: Path) -> Callable[[int], bytes]:
    """As h5py (1.8) and LMDB do in C: a fake, which holds a descriptor and no Python file."""
    descriptor = os.open(written(path), os.O_RDWR)
    path.unlink()

    def row(index: int) -> bytes:
        os.lseek(descriptor, index * ONE_HOT[0].nbytes, os.SEEK_SET)
        return os.read(descriptor, ONE_HOT[0].nbytes)

    return row


OPENED: dict[str, Callable[[Path], Callable[[int], bytes]]] = {
    "buffered": lambda path: partial(row_of_file, written(path).open("rb")),
    "memmap": mapped,
    "zip": zipped,
    "sqlite": in_sqlite,
    "descriptor": of_descriptor,
}


class OpenedRows(Rows):
    """One-hot inputs that are read from what was opened before the workers were forked."""

    def __init__(self, row: Callable[[int], bytes]) -> None:
        self._row = row

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        for place, index in enumerate(indices.tolist()):
            out[place] = np.frombuffer(self._row(index), np.float32)


@pytest.mark.parametrize("kind", OPENED)
def test_each_process_reads_what_the_program_opened(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models, row = [counter(), counter()], OPENED[kind](tmp_path / "rows")
    for model, rows in zip(models, (ONE_HOT, OpenedRows(row)), strict=True):
        dist_net.fit(model, rows, NOTHING, epochs=8, workers=4, **COUNTED)
    np.testing.assert_array_equal(models[0].weights, models[1].weights)
    assert "workers_lost" not in caplog.text
    assert row(5) == ONE_HOT[5].tobytes()  # and so does the program


def serve_rows(connection: Connection) -> None:
    while True:
        connection.send_bytes(ONE_HOT[int(connection.recv_bytes())].tobytes())


def test_workers_do_not_share_a_connection() -> None:
    """Answers would arrive in the wrong process, or never."""
    own, other = get_context("fork").Pipe()
    server = get_context("fork").Process(target=serve_rows, args=(other,), daemon=True)
    server.start()
    other.close()

    def row(index: int) -> bytes:
        own.send_bytes(str(index).encode())
        return own.recv_bytes()

    with pytest.raises(DatasetError, match=naming("BrokenPipeError", "os.getpid()")):
        dist_net.fit(counter(), OpenedRows(row), NOTHING, workers=2, **COUNTED)
    assert row(5) == ONE_HOT[5].tobytes()
    own.close()
    server.kill()
    server.join()


def test_what_workers_share_in_memory_is_noticed() -> None:
    """A shared buffer, in which each process puts together what it reads."""
    shared = np.frombuffer(mmap.mmap(-1, ONE_HOT.nbytes), np.float32).reshape(ONE_HOT.shape)

    class SharingRows(Rows):
        def read(self, indices: np.ndarray, out: np.ndarray) -> None:
            buffer = shared[: len(indices)]
            for place, index in enumerate(indices):
                buffer[place] = ONE_HOT[index]
                time.sleep(0.001)
            out[:] = buffer

    with pytest.raises(DatasetError, match="other samples"):
        dist_net.fit(counter(), SharingRows(lambda: None), NOTHING, workers=4, **COUNTED)


def test_without_room_for_processes_one_takes_the_same_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = fitted(2, epochs=2)

    def no_room() -> int:
        raise BlockingIOError("no room for a process")

    monkeypatch.setattr(os, "fork", no_room)
    model, _ = fitted(2, epochs=2)
    np.testing.assert_array_equal(model.weights, expected.weights)
    assert "no room for a process" in caplog.text


def test_an_exception_of_the_users_code_is_raised_as_with_one_process() -> None:
    class OwnError(Exception):
        pass

    class BrokenRows(Rows):
        def read(self, indices: np.ndarray, out: np.ndarray) -> None:
            if 77 in indices:
                raise OwnError("row 77")
            super().read(indices, out)

    with pytest.raises(OwnError, match="row 77") as raised:
        dist_net.fit(counter(), BrokenRows(lambda: None), NOTHING, workers=2, **COUNTED)
    assert raised.value.__context__ is None


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_the_newest_weights(workers: int, tmp_path: Path) -> None:
    """SIGINT arrives in the second epoch."""
    model, caller, reads = counter(), os.getpid(), []

    class InterruptingRows(Rows):
        def read(self, indices: np.ndarray, out: np.ndarray) -> None:
            super().read(indices, out)
            reads.append(len(indices))
            if sum(reads) > 4 * SAMPLES:
                once(tmp_path / "interrupted", lambda: os.kill(caller, signal.SIGINT))()

    rows = InterruptingRows(lambda: None)
    with pytest.raises(KeyboardInterrupt):
        dist_net.fit(model, rows, NOTHING, epochs=100_000, workers=workers, **COUNTED)
    assert 1 <= np.round(counts(model)).min() <= np.round(counts(model)).max()


def test_a_loss_that_is_no_number_is_refused_and_the_last_good_weights_stay() -> None:
    model = counter()
    inputs = np.full_like(ONE_HOT, 1e30)
    with pytest.raises(NotFiniteError, match="epoch 1"):
        dist_net.fit(model, inputs, NOTHING, workers=2, **COUNTED | {"learning_rate": 1e9})
    assert np.isfinite(model.weights).all()


def test_a_callback_may_change_the_model_and_end_the_training() -> None:
    models = [counter(), counter()]
    for workers, model in enumerate(models, 1):

        def change(result: EpochResult) -> bool:
            result.model.weights = np.zeros_like(result.model.weights)
            return result.epoch == 3

        history = dist_net.fit(
            model, ONE_HOT, NOTHING, workers=workers, callbacks=[change], **COUNTED
        )
        assert len(history) == 3
    for model in models:
        assert not model.weights.any()


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.5, "average_decay": 0.9}], ids=str)
def test_any_number_takes_the_steps_of_one(settings: dict[str, float]) -> None:
    """Up to rounding, which Adam magnifies at first; also parts and ends that are uneven."""
    random = np.random.default_rng(1)
    inputs = random.standard_normal((205, 50), np.float32)
    targets = random.integers(0, 10, 205)
    ends = []
    for workers in (1, 2, 3):
        model = Model(Sequential(Dense(30, "relu"), Dense(10)), (50,), input_dtype=np.float32)
        facts: Any = {"epochs": 8, "batch_size": 16, "workers": workers, "verbose": 0}
        history = dist_net.fit(model, inputs, targets, **facts, **settings)
        ends.append((history[-1].loss, history[-1].accuracy, model.weights))
    for loss, accuracy, weights in ends[1:]:
        assert loss == pytest.approx(ends[0][0], rel=1e-4)
        assert accuracy == pytest.approx(ends[0][1], abs=0.01)
        np.testing.assert_allclose(weights, ends[0][2], atol=1e-4)


@pytest.fixture
def other_thread() -> Iterator[None]:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="other")
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.mark.usefixtures("other_thread")
def test_a_process_with_other_threads_is_not_forked(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SettingError, match=r"workers=2.*other.*expected workers=1"):
        dist_net.fit(counter(), ONE_HOT, NOTHING, workers=2, **COUNTED)
    caplog.set_level(logging.INFO, "dist_net")
    dist_net.fit(counter(), ONE_HOT, NOTHING, **COUNTED)
    assert "workers=1 reason=other threads run (other)" in caplog.text


def test_auto_starts_as_many_as_pay_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit in ("SHORTEST_STEP_S", "SHORTEST_RUN_S", "SMALLEST_SPEEDUP"):
        monkeypatch.setattr(fit_workers, limit, 0.0)
    monkeypatch.setattr(fit_workers, "available_cores", lambda: 2)
    model, two = counter(), counter()
    dist_net.fit(model, ONE_HOT, NOTHING, epochs=10, **COUNTED)
    assert capsys.readouterr().err.startswith("2 workers: 120 steps of ")
    dist_net.fit(two, ONE_HOT, NOTHING, epochs=10, workers=2, **COUNTED)
    np.testing.assert_array_equal(model.weights, two.weights)


def test_auto_does_not_fork_readers_of_files(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dist_net")
    dist_net.fit(counter(), Rows(lambda: None), NOTHING, **COUNTED)
    assert "workers=1 reason=the samples are no array" in caplog.text


def test_workers_need_a_number_and_no_threads() -> None:
    for workers in (0, 33, "two", 1.5, True):
        with pytest.raises(SettingError, match=r"expected 1 to 32, or 'auto'"):
            dist_net.fit(counter(), ONE_HOT, NOTHING, workers=workers, **COUNTED)
    with pytest.raises(SettingError, match="2 threads share"):
        dist_net.fit(counter(), ONE_HOT, NOTHING, workers=2, threads=2, **COUNTED)


SCRIPT = """
import os, sys, time
from pathlib import Path
import numpy as np
import dist_net
from dist_net.nn import Dense, Model

def show(result):
    if result.epoch == 1:
        print(*Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(), flush=True)

model = Model(Dense(1), (4,), "mse", np.float32)
data = np.ones((64, 4), np.float32), np.ones((64, 1), np.float32)
dist_net.fit(model, *data, epochs=10**6, workers=2, callbacks=[show])
"""


def test_workers_end_with_a_caller_that_is_killed() -> None:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # adopt orphans
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        workers = [int(each) for each in caller.stdout.readline().split()]
        caller.kill()
    assert len(workers) == 2
    for worker in workers:
        assert os.waitpid(worker, 0)[0] == worker
