"""Time Winograd's convolution against im2row: the tables of docs/learn/winograd.md.

    python examples/learn/winograd_or_im2row.py               # about two minutes
    python examples/learn/winograd_or_im2row.py --rounds 3

All convolutions are 3x3 with a padding of 1 and as many filters as channels. Filters are prepared
beforehand, as in a served model, and are read from memory: between two calls other data fill the
caches, like the other layers of a net. With the extra ``fast``, the kernels that numba compiles
are timed too.
"""

import argparse
import os
from collections.abc import Sequence
from statistics import median

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from measuring import cpu_seconds, print_machine, print_table

from dist_net.autodiff.arrays import Call
from dist_net.autodiff.kernels.convolution.choice import Algorithm, Choice, choose
from dist_net.autodiff.kernels.convolution.im2row import Im2Row
from dist_net.autodiff.kernels.convolution.problem import Blocking, Epilogue, Problem
from dist_net.autodiff.kernels.convolution.winograd import Winograd
from dist_net.autodiff.kernels.gemm import fastest_gemm
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.kernels.windows import Windows
from dist_net.autodiff.operations.convolution import PlannedConvolution

KERNELS = {"NumPy": (Im2Row, Winograd)}
try:
    from dist_net.autodiff.kernels.compiled.direct_loops import Direct
    from dist_net.autodiff.kernels.compiled.winograd_loops import CompiledWinograd
except ImportError:
    pass
else:
    KERNELS = {"numba": (Direct, CompiledWinograd), **KERNELS}

GEMM = fastest_gemm()
OTHER_DATA = np.zeros(1 << 24, np.float32)  # 64 MB, larger than most caches


def problem_of(side: int, channels: int, stride: int = 1) -> Problem:
    """Return a 3x3 convolution of one square map."""
    windows = Windows((3, 3), (stride, stride), ((1, 1), (1, 1)))
    out = 1, *windows.output(side, side), channels
    return Problem(windows, 1, Epilogue(), (1, side, side, channels), out, np.dtype(np.float32))


def blocking_of(problem: Problem, algorithm: Algorithm) -> Blocking:
    """Return blocks that stay in the cache: about 128 tiles, or 512 to 1,024 rows of im2row."""
    _, height, width, channels = problem.out
    step = algorithm.row_step
    most = 128 if step > 1 else 1024 if problem.row_length <= 256 else 512
    rows = max(1, min(height // step, most // (width // step)))
    return Blocking(1, step * rows, channels)


def convolution(problem: Problem, algorithm: Algorithm) -> tuple[Call, np.ndarray, np.ndarray]:
    """Return a call that computes ``problem``, and its input and output arrays."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal(problem.x, np.float32)
    channels = problem.out[3]
    filters = generator.standard_normal((3, 3, channels, channels), np.float32)
    prepared = np.ascontiguousarray(algorithm.prepare(problem, filters))
    out = np.empty(problem.out, np.float32)
    choice = Choice(algorithm, blocking_of(problem, algorithm))
    planned = PlannedConvolution(problem, choice, ThreadPool(1, GEMM))
    return planned.bind([x, prepared, np.zeros(channels, np.float32)], out), x, out


def row_of(side: int, channels: int, stride: int, tiles: Sequence[int], rounds: int) -> list[str]:
    """Return a row: the time of im2row and the ratios of Winograd, for each set of kernels.

    Winograd computes whole tiles. If the map does not divide into tiles, the next larger map that
    does is timed.
    """
    problem = problem_of(side, channels, stride)
    cells = [str(problem.out[1]), str(channels)]
    for im2row, winograd in KERNELS.values():
        calls, inputs, outputs = zip(
            convolution(problem, im2row(GEMM)),
            *(
                convolution(
                    problem_of(-(-side // (m * stride)) * m * stride, channels, stride),
                    winograd(m, stride, GEMM),
                )
                for m in tiles
            ),
            strict=True,
        )

        def forget(inputs: Sequence[np.ndarray] = inputs) -> None:
            """Fill the caches with other data, then with the map, which a layer just wrote."""
            OTHER_DATA.sum()
            for x in inputs:
                x.sum()

        times = cpu_seconds(calls, rounds, before=forget)
        for output in outputs[1:]:
            if output.shape == outputs[0].shape:
                limit = 1e-3 * np.abs(outputs[0]).max()
                np.testing.assert_allclose(output, outputs[0], rtol=0, atol=limit)
        cells.append(f"{1e3 * median(each[0] for each in times):.2f}")
        cells += [
            f"{median(each[index] / each[0] for each in times):.2f}"
            for index in range(1, len(calls))
        ]
    compiled = "numba" in KERNELS
    return [*cells, choose(problem, 1, compiled=compiled, gemm=GEMM).algorithm.name]


def print_cases(cases: Sequence[tuple[int, int]], stride: int, rounds: int) -> None:
    """Print the table of some sides and numbers of channels."""
    tiles = (2, 4) if stride == 1 else (2,)
    columns = ["side", "channels"]
    for name in KERNELS:
        columns += [f"im2row ({name}), ms", *(f"F({m}x{m}) / im2row" for m in tiles)]
    rows = [row_of(stride * side, channels, stride, tiles, rounds) for side, channels in cases]
    print_table([*columns, "chosen"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time Winograd against im2row.")
    parser.add_argument("--rounds", type=int, default=51, help="alternating rounds per row")
    rounds = parser.parse_args().rounds
    print_machine()
    print_cases([(56, channels) for channels in (8, 16, 32, 64, 128)], 1, rounds)
    print_cases([(28, channels) for channels in (16, 32, 64, 128, 256)], 2, rounds)
    print_cases([(side, 128) for side in (13, 14, 15, 16, 17)], 1, rounds)
    print_cases([(64, 32), (32, 64), (16, 128), (8, 256), (4, 512)], 1, rounds)


if __name__ == "__main__":
    main()
