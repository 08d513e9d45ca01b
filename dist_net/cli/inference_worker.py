"""``dist-net inference-worker``: one inference worker, for a gateway on this host or another."""

from dist_net.cluster.processes.inference_worker import add_arguments, run

__all__ = ["add_arguments", "run"]
