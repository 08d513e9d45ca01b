"""The process of the inference pool's gateway; with the workers and the loader that it starts.

    python -m dist_net.cluster.processes.gateway [[NAME=]MODEL...] [--workers N] ...

Prints ``READY http=URL zmq=ADDRESS`` on stdout when every model can be answered for. Logs go to
stderr, those of its children to files.
"""

import argparse
import asyncio
import sys

from dist_net.cluster.entry import entry_point
from dist_net.cluster.recipe_confirmation import confirm_recipe
from dist_net.cluster.serving_options import add_arguments, options_from
from dist_net.cluster.serving_run import event_loop_factory, serve
from dist_net.models.sources import named_source


def run(arguments: argparse.Namespace) -> int:
    """Serves until a signal comes; gives the exit code."""
    options = options_from(arguments)
    for source in options.sources:
        confirm_recipe(named_source(source).source, options.trust_recipe)
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        return runner.run(serve(options))


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
