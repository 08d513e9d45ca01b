"""``dist-net serve MODEL``: a gateway and a pool of inference workers."""

from workers.inference_gateway import add_arguments, run

__all__ = ["add_arguments", "run"]
