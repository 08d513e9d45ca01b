"""Plans that take turns in one arena: how much it holds, and that none spoils another's answers."""

import numpy as np

from dist_net import autodiff as ad
from dist_net.autodiff.arrays import Arena
from dist_net.nn import Conv2D, Dense, Flatten, Model, Rescale, Sequential, relu
from dist_net.nn.inference import Inference, prepare


def test_a_smaller_plan_needs_no_memory_of_its_own():
    arena = Arena()
    first = arena.pieces([100, 1000, 10])
    assert [len(piece) >= size for piece, size in zip(first, [100, 1000, 10], strict=True)]
    second = arena.pieces([900, 9])
    assert arena.size_bytes == 1110
    assert np.shares_memory(second[0], first[1])


def test_pieces_of_one_plan_share_nothing():
    pieces = Arena().pieces([64, 64, 64, 0])
    assert not any(
        np.shares_memory(one, other) for one in pieces for other in pieces if one is not other
    )


def test_a_larger_plan_leaves_those_before_it_what_they_have():
    arena = Arena()
    (small,) = arena.pieces([10])
    (large,) = arena.pieces([1000])
    assert not np.shares_memory(small, large)
    assert arena.size_bytes == 1000


def test_plans_that_share_buffers_give_their_own_answers():
    arena = Arena()
    plans = []
    for length in (5000, 300):
        x = ad.variable("x", (length,))
        grown = ad.exp(ad.reshape(ad.sum(ad.reshape(x, (length // 10, 10)), (1,)), (-1, 10)))
        array = np.linspace(0, 1, length, dtype=np.float32)
        plans.append(ad.compile([ad.sum(grown, (1,))], arena=arena).bind({"x": array}))
    alone = [plan.run()[0].copy() for plan in plans]
    for _ in range(3):
        for plan, expected in zip(plans, alone, strict=True):
            np.testing.assert_array_equal(plan.run()[0], expected)


def test_batches_of_every_size_take_the_memory_of_the_largest():
    network = Sequential(
        Rescale(), Conv2D(16, 3, activation=relu), Conv2D(16, 3), Flatten(), Dense(3)
    )
    model = Model(network, (16, 16, 3))
    weights = model.layout.initial(np.random.default_rng(0))
    sessions = [Inference(model, prepare(model, weights), 1, size) for size in (8, 8)]
    sessions[0].warm_up()
    sessions[1]._bind(8)
    sizes = [session.buffer_bytes for session in sessions]
    assert sizes[0] == sizes[1] >= 8 * 16 * 16 * 16 * 4
    inputs = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    expected = sessions[0](inputs)
    for size in (3, 8, 1, 5, 8):
        np.testing.assert_allclose(sessions[0](inputs[:size]), expected[:size], atol=1e-5)
    assert sessions[0](inputs).tobytes() == expected.tobytes()
    for session in sessions:
        session.close()


def test_warming_up_ends_when_it_may_not_go_on():
    model = Model(Sequential(Rescale(), Flatten(), Dense(3)), (4, 4))
    session = Inference(model, prepare(model, np.zeros(model.layout.size, np.float32)), 1, 8)
    answers = iter([True, True, False])
    session.warm_up(lambda: next(answers))
    assert sorted(session._bound) == [7, 8]
    session.close()
