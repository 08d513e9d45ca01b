"""Whether reproducible plans are: a picture's answer by its bytes, whatever batch, worker or retry.

Clients ask for the same few pictures in random groups, so that the pool makes random batches of
them, while workers are killed and stopped. What each picture is answered alone is known before.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from time import monotonic, sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.duress import hit_workers
from benchmarks.peers.dist_net_inference import layer_step, model_in
from benchmarks.served import Gateway, Net
from dist_net.errors import BenchmarkError, DistNetError, PoolUnavailableError
from dist_net.nn.inference import Inference
from dist_net.pictures.fitting import PictureInputs
from dist_net.serving.client.client import Client
from dist_net.serving.client.outputs import Pending

Rows = NDArray[np.float32]
Ask = Callable[[Client, np.random.Generator], tuple[Pending, bytes]]

BATCHES = 10_000
PICTURES = 36
SIDES = 20, 80  # of a picture, in pixels
CLIENTS = 4
LARGEST_GROUP = 12
MOST_ROWS = 4  # of one request
WINDOW = 24  # requests of one client that are on their way at most, when it asks for more
PAUSE_S = 0.02  # between two groups of a client, on average: workers are idle now and then
PATIENCE_S = 60.0
LONGEST_S = 1800.0
BATCH_SIZE = 8
SEED = 0


@dataclass(frozen=True)
class Questions:
    """Pictures: as bodies (JPEG, PNG), as the rows that the net makes of them, and the answers."""

    model: str
    bodies: Sequence[bytes]
    rows: Rows
    answers: Rows

    def ask_for_one(self, client: Client, chosen: int, is_body: bool) -> tuple[Pending, bytes]:
        """Asks for a picture; gives the bytes that the answer has to have, too."""
        expected = self.answers[chosen].tobytes()
        if is_body:
            return client.submit_picture(self.model, self.bodies[chosen]), expected
        return client.submit(self.model, self.rows[chosen]), expected

    def ask(self, client: Client, generator: np.random.Generator) -> tuple[Pending, bytes]:
        """Asks for one picture, or for a few in one request, as its bodies or as rows."""
        if generator.random() < 0.75:
            chosen = int(generator.integers(len(self.rows)))
            return self.ask_for_one(client, chosen, generator.random() < 0.5)
        several = generator.integers(len(self.rows), size=generator.integers(1, MOST_ROWS + 1))
        return client.submit(self.model, self.rows[several]), self.answers[several].tobytes()


@dataclass
class Tally:
    """What became of requests: how many were answered, and how many of those differed.

    ``refused``: while no worker was left. ``errors``: all other ends, by what they say.
    """

    answered: int = 0
    differing: int = 0
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def note(self, pending: Pending, expected: bytes) -> None:
        """Waits for an answer, and compares it, byte for byte."""
        try:
            found = pending.result().probabilities.tobytes()
        except PoolUnavailableError:
            self.refused += 1
            return
        except DistNetError as error:
            self.errors[f"{type(error).__name__}: {str(error)[:120]}"] += 1
            return
        self.answered += 1
        self.differing += found != expected

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.answered + other.answered,
            self.differing + other.differing,
            self.refused + other.refused,
            self.errors + other.errors,
        )


def measure(
    net: Net, options: Sequence[str], say: Callable[[str], None], scale: float
) -> dict[str, Any]:
    """Goes on until so many batches of two rows or more were run and compared.

    ``differing``: answers that were not those of the engine when it is asked for that picture
    alone, in this process; of them ``differing_alone`` were asked for alone of the pool, too.
    ``differing_otherwise``: of 1000 rows that the engine answers in batches without reproducible
    plans, to show that the net can tell. Raises BenchmarkError if batches fail to come.
    """
    wanted = max(1, round(BATCHES * scale))
    say(f"reproducible: {wanted} batches of random pictures, while workers are killed and stopped")
    questions, algorithms, otherwise = prepare(net)
    with Gateway([net.source], net.directory, *options) as gateway:
        alone = ask_alone(gateway.address, questions)
        watch = Watch(gateway, wanted)
        with ThreadPoolExecutor(CLIENTS) as threads:
            askers = [
                threads.submit(ask_in_groups, gateway.address, questions.ask, seed, watch.is_over)
                for seed in range(CLIENTS)
            ]
            try:
                hit = hit_workers(gateway, watch.goes_on)
            finally:
                watch.is_over.set()
            total = sum((each.result() for each in askers), alone)
        watch.look()
    return {
        "pictures": PICTURES,
        "convolutions": algorithms,
        "batches": sum(watch.batch_rows.values()),
        "batch_rows": {str(rows): watch.batch_rows[rows] for rows in sorted(watch.batch_rows)},
        **hit,
        "workers_seen": len(watch.workers),
        "retried": watch.retried,
        "answered": total.answered,
        "refused": total.refused,
        "differing": total.differing,
        "differing_alone": alone.differing,
        "differing_otherwise": otherwise,
        "errors": dict(total.errors),
    }


def prepare(net: Net) -> tuple[Questions, list[str], int]:
    """What to ask; by what each convolution is computed; and how many rows differ otherwise."""
    model, prepared = model_in(net.directory)
    inputs = PictureInputs(model)
    bodies = pictures(np.random.default_rng(SEED))
    rows = np.stack([inputs.of(BytesIO(body)) for body in bodies]).astype(np.float32)
    alone = Inference(model, prepared, batch_size=1)
    plain = Inference(model, prepared, batch_size=BATCH_SIZE, reproducible=False)
    try:
        answers = alone(rows)
        steps = [layer_step(node, kernels) for node, kernels in alone.steps(1)]
        return (
            Questions(net.name, bodies, rows, answers),
            [f"{step.name}: {step.algorithm}" for step in steps if step.algorithm],
            differing_rows(plain, rows),
        )
    finally:
        alone.close()
        plain.close()


def differing_rows(inference: Callable[[Rows], Rows], rows: Rows, count: int = 1000) -> int:
    """How many of ``count`` rows, in random batches, are answered otherwise than alone."""
    generator = np.random.default_rng(SEED)
    alone = np.concatenate([inference(row[np.newaxis]) for row in rows])
    differing = seen = 0
    while seen < count:
        size = min(int(generator.integers(2, BATCH_SIZE + 1)), count - seen)
        chosen = generator.integers(len(rows), size=size)
        differing += int((inference(rows[chosen]) != alone[chosen]).any(axis=1).sum())
        seen += size
    return differing


def pictures(generator: np.random.Generator) -> list[bytes]:
    """Files of small pictures of several sizes, JPEG and PNG in turn."""
    return [picture(generator, "PNG" if index % 2 else "JPEG") for index in range(PICTURES)]


def picture(generator: np.random.Generator, kind: str) -> bytes:
    """A picture of noise on a coloured ground."""
    height, width = generator.integers(*SIDES, size=2)
    ground = generator.integers(0, 128, 3, np.uint8)
    file = BytesIO()
    pixels = ground + generator.integers(0, 128, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def ask_alone(address: str, questions: Questions) -> Tally:
    """Asks for each picture when nothing else is asked, as a body and as a row."""
    tally = Tally()
    with Client(address, timeout_s=PATIENCE_S) as client:
        for chosen in range(len(questions.rows)):
            for is_body in (True, False):
                tally.note(*questions.ask_for_one(client, chosen, is_body))
    return tally


def ask_in_groups(address: str, ask: Ask, seed: int, is_over: threading.Event) -> Tally:
    """Asks in groups of random size at random times, until it is over and all is answered."""
    generator = np.random.default_rng((SEED, seed))
    tally = Tally()
    waiting: deque[tuple[Pending, bytes]] = deque()
    with Client(address, timeout_s=PATIENCE_S) as client:
        while not is_over.is_set():
            for _ in range(generator.integers(1, LARGEST_GROUP + 1)):
                waiting.append(ask(client, generator))
            sleep(generator.exponential(PAUSE_S))
            left = generator.integers(WINDOW)
            while len(waiting) > left:
                tally.note(*waiting.popleft())
        for each in waiting:
            tally.note(*each)
    return tally


class Watch:
    """What the pool has run since this was made. ``is_over``: for those who ask."""

    def __init__(self, gateway: Gateway, wanted: int) -> None:
        self.is_over = threading.Event()
        self.batch_rows: Counter[int] = Counter()
        self.workers: set[int] = set()
        self.retried = 0
        self._gateway = gateway
        self._wanted = wanted
        self._deadline = monotonic() + LONGEST_S
        self._before: Counter[int] = Counter()
        self.look()
        self._before = self.batch_rows
        self.batch_rows = Counter()

    def look(self) -> None:
        """Counts anew."""
        status = self._gateway.status()
        (model,) = status["models"]
        counts = {int(rows): count for rows, count in model["batch_rows"].items()}
        self.batch_rows = Counter(counts) - self._before
        self.retried = model["retried"]
        self.workers |= {each["process_id"] for each in status["workers"] if each["batches"]}

    def goes_on(self) -> bool:
        """Whether there were fewer batches of two rows or more than are wanted."""
        self.look()
        if monotonic() > self._deadline:
            raise BenchmarkError(
                f"not within {LONGEST_S:g} s: {self._wanted} batches; so far {self.batch_rows}"
            )
        return sum(self.batch_rows.values()) - self.batch_rows[1] < self._wanted
