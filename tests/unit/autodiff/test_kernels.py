"""Convolution on arrays: every algorithm, block by block, against the definition in float64."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_net.autodiff.kernels.convolution.choice import choose, images_of_a_piece
from dist_net.autodiff.kernels.convolution.depthwise import Depthwise
from dist_net.autodiff.kernels.convolution.im2row import Im2Row
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Blocking, Epilogue, Problem
from dist_net.autodiff.kernels.convolution.winograd import Winograd, transforms
from dist_net.autodiff.kernels.gemm import PIECE, Gemm, GemmInPieces
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.kernels.windows import Windows

FLOAT32 = np.dtype(np.float32)
WHOLE = Blocking(images=99, rows=99, channels=999)


def problem_of(x, filters, size=3, stride=1, padding=None, groups=1, epilogue=None):
    sides = padding or ((size // 2, size // 2), (size // 2, size // 2))
    windows = Windows((size, size), (stride, stride), sides)
    out = (x[0], *windows.output(x[1], x[2]), filters)
    return Problem(windows, groups, epilogue or Epilogue(), x, out, FLOAT32)


def arrays_of(problem, seed=0, with_residual=False):
    """Random arrays for a problem, the kernel as it is written down."""
    random = np.random.default_rng(seed)
    shape = (*problem.windows.size, problem.x[3] // problem.groups, problem.out[3])
    kernel = random.standard_normal(shape, np.float32) / np.float32(problem.row_length**0.5)
    return Arrays(
        random.standard_normal(problem.x, np.float32),
        kernel,
        random.standard_normal(problem.out[3], np.float32),
        random.standard_normal(problem.out, np.float32) if with_residual else None,
        np.full(problem.out, np.nan, np.float32),
    )


def expected(problem, arrays):
    """The definition, in float64, window by window."""
    windows, groups = problem.windows, problem.groups
    padded = np.pad(arrays.x.astype(np.float64), ((0, 0), *windows.padding, (0, 0)))
    out = np.empty(problem.out)
    inner, outer = problem.x[3] // groups, problem.out[3] // groups
    for row, column, group in np.ndindex(*problem.out[1:3], groups):
        top, left = row * windows.stride[0], column * windows.stride[1]
        window = padded[:, top : top + windows.size[0], left : left + windows.size[1]]
        window = window[..., group * inner : (group + 1) * inner]
        filters = slice(group * outer, (group + 1) * outer)
        out[:, row, column, filters] = np.tensordot(
            window, arrays.filters[..., filters].astype(np.float64), 3
        )
    out += arrays.bias
    out = np.maximum(out, out * problem.epilogue.slope)
    if arrays.residual is not None:
        out += arrays.residual
        out = np.maximum(out, out * problem.epilogue.residual_slope)
    return np.clip(out, problem.epilogue.low, problem.epilogue.high)


def computed(algorithm, problem, arrays, blocking=WHOLE, threads=1):
    """The output by ``algorithm``, with whatever its scratch happened to hold."""
    prepared = np.ascontiguousarray(algorithm.prepare(problem, arrays.filters))
    assert prepared.shape == algorithm.prepared_shape(problem)
    blocks = list(blocking.blocks(problem.out, algorithm.row_step))
    pool = ThreadPool(threads)
    pool.reserve(max(algorithm.scratch_bytes(problem, block) for block in blocks))
    bound = Arrays(arrays.x, prepared, arrays.bias, arrays.residual, arrays.out)
    for thread in range(threads):
        pool.scratch(thread).view(np.uint8)[:] = 0xFF  # NaN, as float32
    pool.call(
        [
            [algorithm.calls(problem, block, bound, pool.scratch(i)) for i in range(threads)]
            for block in blocks
        ]
    )()
    pool.close()
    return arrays.out


def require_close(problem, arrays, out, tolerance=1e-5):
    reference = expected(problem, arrays)
    assert np.abs(out - reference).max() <= tolerance * np.abs(reference).max()


@pytest.mark.parametrize(
    "blocking", [WHOLE, Blocking(1, 4, 999), Blocking(2, 99, 999), Blocking(1, 5, 5)]
)
@pytest.mark.parametrize("gemm", [Gemm(), GemmInPieces()])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("m", [2, 4])
def test_winograd_is_the_convolution(m, stride, gemm, blocking):
    shape = (3, 8 * stride, 12 * stride, 16)
    problem = problem_of(shape, 20, stride=stride, epilogue=Epilogue(0.1, 0.0, high=1.5))
    arrays = arrays_of(problem, with_residual=True)
    algorithm = Winograd(m, stride, gemm)
    if isinstance(gemm, GemmInPieces):
        blocking = replace(blocking, channels=999)  # 20 channels make a single band
    require_close(problem, arrays, computed(algorithm, problem, arrays, blocking))


@pytest.mark.parametrize(
    ("x", "options"),
    [
        ((2, 7, 9, 3), {}),
        ((2, 7, 9, 4), {"stride": 2}),
        ((1, 8, 8, 6), {"size": 1}),
        ((1, 9, 8, 6), {"size": 1, "stride": 2}),
        ((2, 6, 6, 8), {"groups": 4}),
        ((1, 6, 6, 8), {"groups": 2, "stride": 2, "size": 5}),
        ((1, 5, 6, 3), {"padding": ((0, 2), (1, 0))}),
        ((1, 2, 2, 3), {"padding": ((4, 4), (4, 4)), "size": 3}),
        ((1, 6, 6, 3), {"padding": ((0, 0), (0, 0)), "size": 6}),
    ],
)
@pytest.mark.parametrize("blocking", [WHOLE, Blocking(1, 2, 999)])
def test_im2row_is_the_convolution(x, options, blocking):
    problem = problem_of(x, 8, epilogue=Epilogue(0.1), **options)
    arrays = arrays_of(problem)
    require_close(problem, arrays, computed(Im2Row(), problem, arrays, blocking))


DEPTHWISE_CASES = [
    ((2, 9, 8, 16), {}),
    ((3, 7, 7, 40), {"size": 5}),
    ((2, 9, 12, 8), {"stride": 2}),
    ((1, 8, 9, 24), {"size": 5, "stride": 2}),
    ((2, 11, 12, 9), {"stride": 3}),
    ((1, 7, 6, 8), {"size": 2, "stride": 3, "padding": ((0, 1), (1, 0))}),
    ((1, 6, 8, 12), {"stride": 2, "padding": ((0, 1), (0, 1))}),
    ((1, 2, 3, 10), {"padding": ((4, 4), (4, 4))}),
    ((1, 6, 6, 600), {"padding": ((0, 0), (0, 0)), "size": 6}),
    ((1, 5, 7, 1100), {"size": 1}),
]


def depthwise_problem(x, epilogue=None, **options):
    return problem_of(x, x[3], groups=x[3], epilogue=epilogue, **options)


@pytest.mark.parametrize(("x", "options"), DEPTHWISE_CASES)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("blocking", [Blocking(99, 99, 9999), Blocking(1, 2, 9999)])
def test_depthwise_is_the_convolution(x, options, with_residual, blocking):
    problem = depthwise_problem(x, Epilogue(0.1, 0.0, high=2.0), **options)
    arrays = arrays_of(problem, with_residual=with_residual)
    require_close(problem, arrays, computed(Depthwise(), problem, arrays, blocking))


@pytest.mark.parametrize("images", [1, 8])
@pytest.mark.parametrize("reproducible", [False, True])
def test_depthwise_is_chosen_where_each_channel_has_a_filter_of_its_own(images, reproducible):
    problem = depthwise_problem((images, 12, 12, 72))
    choice = choose(problem, 2, reproducible)
    assert choice.algorithm.name == "depthwise"
    assert images_of_a_piece(problem) == 1
    arrays = arrays_of(problem)
    require_close(problem, arrays, computed(choice.algorithm, problem, arrays, choice.blocking, 2))
    assert choose(problem_of((images, 12, 12, 72), 144, groups=72), 2).algorithm.name == "im2row"
    assert choose(problem_of((images, 12, 12, 1), 1), 2).algorithm.name == "im2row"


def test_channels_may_be_shared_out():
    problem = problem_of((1, 4, 4, 5), 7)
    arrays = arrays_of(problem)
    require_close(problem, arrays, computed(Im2Row(), problem, arrays, Blocking(1, 2, 3)))


@given(
    st.tuples(*[st.integers(1, n) for n in (3, 13, 13, 40)]),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 5]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([Gemm(), GemmInPieces()]),
)
@settings(max_examples=100, deadline=None)
def test_whatever_is_chosen_is_the_convolution(
    x, filters, size, stride, with_residual, reproducible, threads, gemm
):
    x = (x[0], max(x[1], size), max(x[2], size), x[3])
    problem = problem_of(x, filters, size, stride, epilogue=Epilogue(0.0, 0.1, -0.05, 1.5))
    arrays = arrays_of(problem, with_residual=with_residual)
    choice = choose(problem, threads, reproducible, gemm=gemm)
    out = computed(choice.algorithm, problem, arrays, choice.blocking, threads)
    require_close(problem, arrays, out)


@pytest.mark.parametrize(
    ("x", "filters", "stride", "name"),
    [
        ((1, 32, 32, 128), 256, 1, "winograd4"),
        ((8, 32, 32, 128), 256, 1, "winograd4"),
        ((1, 8, 8, 512), 1024, 1, "winograd2"),
        ((1, 14, 14, 64), 64, 1, "winograd2"),
        ((1, 7, 7, 64), 64, 1, "im2row"),
        ((1, 32, 32, 3), 32, 1, "im2row"),
        ((8, 32, 32, 128), 256, 2, "winograd2/2"),
        ((1, 14, 14, 64), 64, 2, "im2row"),
        ((1, 32, 32, 32), 64, 2, "im2row"),
        ((1, 32, 32, 64), 64, 3, "im2row"),
    ],
)
def test_the_algorithm_depends_on_the_layer(x, filters, stride, name):
    assert choose(problem_of(x, filters, stride=stride), 2).algorithm.name == name


@pytest.mark.parametrize(
    ("filters", "band"),
    [(1024, 64), (64, 64), (96, 48), (40, 40), (1000, 40), (255, 255), (10, 10), (8, 8)],
)
def test_kernels_are_laid_out_in_bands_of_whole_vectors(filters, band):
    kernel = np.arange(3 * 5 * filters, dtype=np.float32).reshape(3, 5, filters)
    gemm = GemmInPieces()
    bands = np.ascontiguousarray(gemm.laid_out(kernel))
    assert bands.shape == (3, filters // band, 5, band)
    assert np.array_equal(np.concatenate(bands.swapaxes(0, 1), axis=-1), kernel)


@pytest.mark.parametrize("count", [1, 7, 64, 100])
def test_a_product_in_pieces_is_the_product(count):
    inner, columns = 192, 128
    assert count * inner * columns > 2 * PIECE or count < 64  # several pieces, and what is left
    random = np.random.default_rng(0)
    rows = random.standard_normal((2, count, inner), np.float32)
    kernel = random.standard_normal((2, inner, columns), np.float32)
    gemm = GemmInPieces()
    bands = np.ascontiguousarray(gemm.laid_out(kernel))
    half = slice(64, 128)
    out = np.full((2, count, 64), np.nan, np.float32)
    for call in gemm.calls(rows, gemm.part(bands, half), out):
        call()
    exact = rows.astype(np.float64) @ kernel[..., half]
    assert np.abs(out - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("inner", [100, 1024, 1200, 1800, 3000, 9000])
def test_eight_rows_are_cut_into_equal_pieces(inner):
    random = np.random.default_rng(0)
    rows, kernel = random.standard_normal((8, inner), "f"), random.standard_normal((inner, 64), "f")
    out = np.empty((8, 64), np.float32)
    (call,) = GemmInPieces().calls(rows, kernel[None], out)
    call()
    np.testing.assert_allclose(out, rows @ kernel, rtol=1e-4, atol=1e-3)


def test_threads_share_out_whole_bands():
    problem = problem_of((1, 8, 8, 512), 192)
    choice = choose(problem, 2, gemm=GemmInPieces())
    assert choice.blocking.channels == 128


def test_reproducible_blocks_hold_one_image_whatever_the_batch_and_the_threads():
    def blocks(images, threads):
        problem = problem_of((images, 16, 16, 64), 64)
        choice = choose(problem, threads, reproducible=True)
        return [
            (block.rows, block.channels)
            for block in choice.blocking.blocks(problem.out, choice.algorithm.row_step)
            if block.images == slice(images - 1, images)
        ]

    assert blocks(1, 1) == blocks(7, 1) == blocks(7, 4) == blocks(1, 2)


@pytest.mark.parametrize(
    ("size", "images"),
    [((1, 1), 8), ((1, 2), 4), ((1, 3), 1), ((2, 2), 2), ((3, 3), 1), ((1, 8), 1)],
)
def test_a_reproducible_product_has_eight_rows_where_whole_images_give_them(size, images):
    for count, threads in ((8, 1), (32, 2)):
        problem = problem_of((count, *size, 64), 64, size=1)
        choice = choose(problem, threads, reproducible=True)
        blocks = list(choice.blocking.blocks(problem.out, choice.algorithm.row_step))
        assert images_of_a_piece(problem) == images
        assert {block.size[:2] for block in blocks} == {(images, size[0])}


def test_blocks_cover_the_output_once():
    counts = np.zeros((5, 9, 3, 7))
    for block in Blocking(images=2, rows=4, channels=3).blocks(counts.shape, row_step=2):
        counts[block.index] += 1
    assert (counts == 1).all()


def test_images_share_a_block_only_with_all_their_rows():
    assert all(block.size[0] == 1 for block in Blocking(4, 3, 9).blocks((4, 6, 6, 9)))
    assert list(Blocking(4, 6, 9).blocks((4, 6, 6, 9))) == [
        Block(slice(0, 4), slice(0, 6), slice(0, 9))
    ]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("m", [2, 4])
def test_the_transforms_are_exact(m, stride):
    b, g, a = transforms(m, stride)
    random = np.random.default_rng(0)
    signal, taps = random.integers(-9, 9, len(b)), random.integers(-9, 9, 3)
    direct = [signal[i * stride :][:3] @ taps for i in range(m)]
    points = (g @ taps)[[min(i, m + 1) for i in range(len(b))]]  # the last is shared
    assert np.allclose(a @ (points * (b @ signal)), direct, atol=1e-12)


def test_a_pool_shares_its_tasks_and_hands_on_an_error():
    pool = ThreadPool(2)
    met = threading.Barrier(2)
    names = []

    def meet():
        met.wait(60)  # passes only when two threads are here at once
        names.append(threading.current_thread().name)

    pool.call([[[meet], [meet]], [[meet], [meet]]])()
    assert len(set(names)) == 2

    def fail():
        met.wait(60)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pool.call([[[fail], [fail]], [[fail], [fail]]])()
    pool.call([[[meet], [meet]], [[meet], [meet]]])()  # and goes on working
    assert len(names) == 4
    pool.close()


def test_a_pool_ends_with_its_owner():
    pool = ThreadPool(3)
    assert sum(thread.name.startswith("pool-") for thread in threading.enumerate()) == 2
    del pool
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pool-")]


@pytest.mark.parametrize(
    ("rows", "inner", "columns", "is_cut"),
    [
        (128, 784, 128, True),
        (784, 128, 128, True),
        (123, 300, 40, True),
        (64, 784, 10, False),  # columns of no band
        (8, 784, 128, False),  # small as it is
        (64, 1024, 1024, False),  # rows too long
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_matrices_are_cut_where_that_is_quicker(
    rows, inner, columns, is_cut, transposed
):
    random = np.random.default_rng(0)
    a = random.standard_normal((inner, rows) if transposed else (rows, inner), np.float32)
    a = a.T if transposed else a
    b = random.standard_normal((inner, columns), np.float32)
    out = np.full((rows, columns), np.nan, np.float32)
    call = GemmInPieces().of_matrices(a, b, out)
    assert (getattr(call, "func", None) is not np.dot) == is_cut
    call()
    exact = a.astype(np.float64) @ b
    assert np.abs(out - exact).max() <= 1e-5 * np.abs(exact).max()
