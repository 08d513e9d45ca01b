"""What ``scripts/bench`` measures: this project, and its peers in the same run."""

import os
from pathlib import Path

from dist_net.errors import DistNetError

SCRIPTS = Path(__file__).parents[1]
FINDS_BENCHMARKS = os.environ | {"PYTHONPATH": str(SCRIPTS)}
"""The environment of a process that imports this package, which is not installed."""


class BenchmarkError(DistNetError):
    """A measurement could not be completed."""
