"""What ``scripts/bench`` measures: this project, and its peers in the same run."""

import os
from pathlib import Path

SCRIPTS = Path(__file__).parents[1]
FINDS_BENCHMARKS = os.environ | {"PYTHONPATH": str(SCRIPTS)}
"""The environment of a process that imports this package, which is not installed."""
