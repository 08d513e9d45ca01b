"""The benchmarks' own error; apart, so that peers need not import dist_net."""

from dist_net.errors import DistNetError


class BenchmarkError(DistNetError):
    """A measurement could not be completed."""
