"""Plans and inference answer as the naive evaluator does, for random nets of every layer and view.

Each session is asked more than once, with other inputs: what was read when its plan was bound, and
not when it ran, is then a wrong answer.
"""

import importlib.util
from itertools import product

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dist_net import nn
from dist_net.nn.inference import Inference, prepare
from random_nets import models, naively, weights_of

MAX_ROWS = 9
HAS_NUMBA = importlib.util.find_spec("numba") is not None
SESSIONS = [*product([False, True], [False, True][: 1 + HAS_NUMBA])]


def require_close(answers: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    tolerance = 1e-4 * np.abs(wanted).max(initial=0)
    np.testing.assert_allclose(answers, wanted, rtol=1e-4, atol=tolerance, strict=True)


@given(
    models(),
    st.lists(st.integers(0, MAX_ROWS), min_size=2, max_size=3),
    st.integers(1, MAX_ROWS),
    st.integers(1, 2),
)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_plans_and_inference_answer_as_the_naive_evaluator_does(
    model: nn.Model, counts: list[int], batch_size: int, threads: int
) -> None:
    random = np.random.default_rng(1)
    batches = [
        random.integers(0, 9, (count, *model.input_shape)).astype(model.input_dtype)
        for count in (*counts, counts[0])
    ]
    weights = weights_of(model)
    prepared = prepare(model, weights)
    expected = [naively(model, weights, rows) for rows in batches]
    plain = nn.Predictor(model, weights, batch_size)
    for rows, wanted in zip(batches, expected, strict=True):
        require_close(plain(rows), wanted)
    for is_reproducible, is_compiled in SESSIONS:
        session = Inference(model, prepared, threads, batch_size, is_reproducible, is_compiled)
        for rows, wanted in zip(batches, expected, strict=True):
            answers = session(rows)
            require_close(answers, wanted)
            if is_reproducible and len(rows) > 0:
                assert session(rows[-1:]).tobytes() == answers[-1:].tobytes()
        session.close()
