"""``dist-net serve MODEL``: a gateway and a pool of inference workers."""

from dist_net.cluster.processes.gateway import add_arguments, run

__all__ = ["add_arguments", "run"]
