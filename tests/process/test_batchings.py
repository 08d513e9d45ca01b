"""An image's answer is the same to the last bit, whatever batch, worker or retry it comes from.

Clients ask for the same few images in groups of random size, so the pool runs random batches of
them, while its workers are killed and stopped. Each image's answer alone is known beforehand.
"""

import signal
import threading
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.duress import FAULTS, hit_workers
from benchmarks.peers.dist_net_inference import model_in
from benchmarks.served import CONVOLUTIONS, Gateway, Net, write_net
from dist_net.errors import DistNetError, PoolUnavailableError, RequestFailedError
from dist_net.images.fitting import ImageInputs
from dist_net.nn.inference import Inference
from dist_net.serving.client.client import Client, Pending

Rows = NDArray[np.float32]

IMAGES = 36
CLIENTS = 4
LARGEST_GROUP = 12
MAX_ROWS = 4  # of one request
MAX_WAITING = 24  # requests of one client
PAUSE_S = 0.02  # between two groups of a client, on average: now and then workers are idle
PATIENCE_S = 60.0
DEADLINE_S = 160.0
ANSWERED, DIFFERING, REFUSED, SUSPECTED = "answered", "differing", "refused", "suspected"


@dataclass(frozen=True)
class Questions:
    """Images as files (JPEG, PNG), as the rows that the net makes of them, and the answers."""

    model: str
    files: list[bytes]
    rows: Rows
    answers: Rows

    def ask_for_one(self, client: Client, chosen: int, is_file: bool) -> tuple[Pending, bytes]:
        """The answer to wait for, and the bytes that it must have."""
        expected = self.answers[chosen].tobytes()
        if is_file:
            return client.submit_image(self.model, self.files[chosen]), expected
        return client.submit(self.model, self.rows[chosen]), expected

    def ask(self, client: Client, generator: np.random.Generator) -> tuple[Pending, bytes]:
        """Asks for one image, as a file or a row, or for a few rows in one request."""
        if generator.random() < 0.75:
            chosen = int(generator.integers(len(self.rows)))
            return self.ask_for_one(client, chosen, generator.random() < 0.5)
        several = generator.integers(len(self.rows), size=generator.integers(1, MAX_ROWS + 1))
        return client.submit(self.model, self.rows[several]), self.answers[several].tobytes()


def image(generator: np.random.Generator, kind: str) -> bytes:
    """The file of a small image: noise on a coloured ground."""
    height, width = generator.integers(20, 80, size=2)
    ground = generator.integers(0, 128, 3, np.uint8)
    file = BytesIO()
    pixels = ground + generator.integers(0, 128, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return write_net(CONVOLUTIONS, tmp_path / CONVOLUTIONS)


@pytest.fixture
def questions(net: Net) -> Questions:
    generator = np.random.default_rng(0)
    files = [image(generator, ("JPEG", "PNG")[index % 2]) for index in range(IMAGES)]
    model, prepared = model_in(net.directory)
    inputs = ImageInputs(model)
    rows = np.stack([inputs.fit(BytesIO(file)) for file in files]).astype(np.float32)
    alone = Inference(model, prepared, batch_size=1)
    answers = alone(rows)
    alone.close()
    return Questions(net.name, files, rows, answers)


def result(pending: Pending, expected: bytes) -> str:
    """Waits for an answer, and compares it byte for byte."""
    try:
        found = pending.result().probabilities.tobytes()
    except PoolUnavailableError:  # no worker is left at the moment
        return REFUSED
    except RequestFailedError as error:
        return SUSPECTED if "computed it alone" in str(error) else str(error)
    except DistNetError as error:
        return f"{type(error).__name__}: {error}"
    return ANSWERED if found == expected else DIFFERING


def ask_alone(address: str, questions: Questions) -> Counter[str]:
    """Asks for each image when nothing else is asked, as a file and as a row."""
    with Client(address, timeout_s=PATIENCE_S) as client:
        return Counter(
            result(*questions.ask_for_one(client, chosen, is_file))
            for chosen in range(IMAGES)
            for is_file in (True, False)
        )


def ask_in_groups(
    address: str, questions: Questions, seed: tuple[int, int], is_over: threading.Event
) -> Counter[str]:
    """Asks in groups of random size at random times, until it is over and all is answered."""
    generator = np.random.default_rng(seed)
    results: Counter[str] = Counter()
    waiting: deque[tuple[Pending, bytes]] = deque()
    with Client(address, timeout_s=PATIENCE_S) as client:
        while not is_over.is_set():
            for _ in range(generator.integers(1, LARGEST_GROUP + 1)):
                waiting.append(questions.ask(client, generator))
            sleep(generator.exponential(PAUSE_S))
            left = generator.integers(MAX_WAITING)
            while len(waiting) > left:
                results[result(*waiting.popleft())] += 1
        results.update(result(*each) for each in waiting)
    return results


def batch_rows(gateway: Gateway) -> Counter[int]:
    """How many batches of how many rows the pool has run."""
    (model,) = gateway.status()["models"]
    return Counter({int(rows): count for rows, count in model["batch_rows"].items()})


@pytest.mark.parametrize(
    ("seed", "batches", "faults"),
    [
        # That a stopped worker is lost takes seconds to be noticed.
        (0, 250, FAULTS[:1]),
        *(pytest.param(seed, 2000, FAULTS, marks=pytest.mark.slow) for seed in range(1, 6)),
    ],
)
def test_random_batches_give_the_same_bytes_while_workers_die(
    net: Net,
    questions: Questions,
    seed: int,
    batches: int,
    faults: tuple[tuple[signal.Signals, str], ...],
) -> None:
    deadline = monotonic() + DEADLINE_S
    is_over = threading.Event()
    with Gateway([net.source], net.directory, "--workers", "2", "--threads", "1") as gateway:

        def goes_on() -> bool:
            assert monotonic() < deadline, batch_rows(gateway)
            counts = batch_rows(gateway)
            return counts.total() - counts[1] < batches

        results = ask_alone(gateway.address, questions)
        assert results == {ANSWERED: 2 * IMAGES}
        with ThreadPoolExecutor(CLIENTS) as threads:
            askers = [
                threads.submit(ask_in_groups, gateway.address, questions, (seed, number), is_over)
                for number in range(CLIENTS)
            ]
            try:
                hit = hit_workers(gateway, goes_on, faults, every_s=1.0)
            finally:
                is_over.set()
            for each in askers:
                results += each.result()
        counts = batch_rows(gateway)
    assert results.keys() <= {ANSWERED, REFUSED, SUSPECTED}
    # A signal that ends a worker is taken for the input's fault if it meets the same input twice.
    assert results[SUSPECTED] <= hit["killed"] // 2
    assert results[ANSWERED] > counts.total()
    assert len(counts) > 3
    assert hit["killed"] > 0
