"""The elementwise part of a step of an LSTM, forwards and backwards, each in one pass.

Needs the extra ``fast``. The arrays of a step are flat: its projections (N, 4 · units), and its
record (6, N, units), which holds the output, the cell, the gates admit, keep and emit, and the
candidate. ``units`` is a multiple of ``LANES``.
"""

from numba.types import UniTuple

from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
    Flat,
    Lanes,
    Pointer,
    larger,
    load,
    pointer,
    smaller,
    store,
    traced,
)
from dist_net.ground.compiling import INTEGER, READ, WRITTEN, jit

# Lambert's continued fraction for tanh, to its seventh term, as two polynomials of x²: in float32,
# the error of tanh(2x) is at most 3.1e-7 of the value. Beyond the limit it is 1.
NUMERATOR = 1.0, 1.28205128e-01, 2.79720280e-03, 7.40000740e-06
DENOMINATOR = 1.0, 4.61538462e-01, 2.33100233e-02, 2.07200207e-04
LIMIT = 4.25


def tanh_of_double(x: Lanes) -> Lanes:
    """Return tanh(2x); nan stays nan."""
    x = larger(smaller(x, LIMIT), -LIMIT)
    square = x * x
    p, q = square * NUMERATOR[-1], square * DENOMINATOR[-1]
    for a, b in zip(NUMERATOR[-2:0:-1], DENOMINATOR[-2:0:-1], strict=True):
        p, q = (p + a) * square, (q + b) * square
    p, q = (p + 1.0) * x, q + 1.0
    return p * q * 2.0 / (q * q + p * p)


@traced()
def write_step(
    arrays: tuple[Pointer, Pointer, Pointer, Pointer], k: int, i: int, units: int, size: int
) -> None:
    """Write a vector of each part of a record, for projections at ``k`` and a cell at ``i``."""
    inputs, recurrent, before, record = arrays
    totals = [load(inputs, k + units * n) + load(recurrent, k + units * n) for n in range(4)]
    admit, keep, emit = (tanh_of_double(each * 0.25) * 0.5 + 0.5 for each in totals[:3])
    candidate = tanh_of_double(totals[3] * 0.5)
    cell = keep * load(before, i + size) + admit * candidate
    output = emit * tanh_of_double(cell * 0.5)
    for n, part in enumerate((output, cell, admit, keep, emit, candidate)):
        store(record, i + size * n, part)


@traced()
def write_gradient(
    records: tuple[Pointer, Pointer],
    cotangents: tuple[Pointer, Pointer, Pointer, Pointer],
    k: int,
    i: int,
    units: int,
    size: int,
) -> None:
    """Write a vector of each part of a gradient, and of the cotangent of the cell before."""
    (record, before), (later, recurrent, of_cells, gradient) = records, cotangents
    cell, admit, keep, emit, candidate = (load(record, i + size * n) for n in range(1, 6))
    of_output, shown = load(later, i) + load(recurrent, i), tanh_of_double(cell * 0.5)
    of_cell = load(of_cells, i) + of_output * emit * (shown * shown * -1.0 + 1.0)
    store(of_cells, i, of_cell * keep)
    slopes = [gate * (gate * -1.0 + 1.0) for gate in (admit, keep, emit)]
    parts = [
        of_cell * candidate * slopes[0],
        of_cell * load(before, i + size) * slopes[1],
        of_output * shown * slopes[2],
        of_cell * admit * (candidate * candidate * -1.0 + 1.0),
    ]
    for n, part in enumerate(parts):
        store(gradient, k + units * n, part)


@jit(READ, READ, READ, WRITTEN, INTEGER)
def lstm_step(inputs: Flat, recurrent: Flat, before: Flat, record: Flat, units: int) -> None:
    """Write the record of a step, given both projections and the record of the step before."""
    size = len(record) // 6
    arrays = pointer(inputs), pointer(recurrent), pointer(before), pointer(record)
    for row in range(size // units):
        for j in range(0, units, LANES):
            i = row * units + j
            write_step(arrays, 3 * row * units + i, i, units, size)


@jit(UniTuple(READ, 2), READ, READ, WRITTEN, WRITTEN, INTEGER)
def lstm_step_back(
    step: tuple[Flat, Flat],
    later: Flat,
    recurrent: Flat,
    of_cells: Flat,
    gradient: Flat,
    units: int,
) -> None:
    """Write the cotangent of a step's projections, and of the cell before to ``of_cells``.

    ``step`` has its record and the one before, as for ``lstm_step``. The cotangent of the output
    is the sum of ``later`` and ``recurrent``.
    """
    size = len(step[0]) // 6
    records = pointer(step[0]), pointer(step[1])
    cotangents = pointer(later), pointer(recurrent), pointer(of_cells), pointer(gradient)
    for row in range(size // units):
        for j in range(0, units, LANES):
            i = row * units + j
            write_gradient(records, cotangents, 3 * row * units + i, i, units, size)
