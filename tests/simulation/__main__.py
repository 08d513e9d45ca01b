"""Simulate training runs, or pools, under every fault: ``python -m simulation SEED [SEEDS]``.

Runs SEEDS seeds from SEED on, up to the first that fails: prints the broken invariant and the last
events, and exits with 1. With a single seed, always prints its events. A seed reproduces its run.
"""

import logging
import sys
from argparse import ArgumentParser

from simulation.failures import SimulationFailedError
from simulation.pool_faults import TroubledPool
from simulation.standby_run import StandbyRun
from simulation.training_run import TrainingRun


def main() -> int:
    parser = ArgumentParser("python -m simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("seeds", type=int, nargs="?", default=1)
    parser.add_argument("--trace", type=int, default=40, help="how many of the last events to show")
    parser.add_argument("--pool", action="store_true", help="inference pools, not training runs")
    parser.add_argument("--standbys", action="store_true", help="training runs with standbys")
    arguments = parser.parse_args()
    simulated: type[TroubledPool] | type[StandbyRun] | type[TrainingRun] = TrainingRun
    if arguments.pool or arguments.standbys:
        simulated = TroubledPool if arguments.pool else StandbyRun
    logging.disable(logging.CRITICAL)
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        run = simulated(seed, arguments.trace)
        try:
            run.run()
        except SimulationFailedError as error:
            print(error)
            return 1
        if arguments.seeds == 1:
            print(run.schedule.trace())
    print(f"no seed fails of {arguments.seeds}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
