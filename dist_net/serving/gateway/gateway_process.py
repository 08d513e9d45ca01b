"""The process of the inference pool's gateway, which starts the workers and the loader.

    python -m dist_net.serving.gateway.gateway_process [[NAME=]MODEL...] [--workers N] ...

Prints ``READY http=URL zmq=ADDRESS`` on stdout when every model is ready. Logs go to stderr, logs
of its children to files.
"""

import argparse
import asyncio
import sys

from dist_net.nets.recipe_confirmation import confirm_recipe
from dist_net.nets.sources import parse_named_source
from dist_net.processes.entry import entry_point
from dist_net.serving.gateway.serving_options import add_arguments, options_from
from dist_net.serving.gateway.serving_run import event_loop_factory, serve


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal arrives; return the exit code."""
    options = options_from(arguments)
    for source in options.sources:
        confirm_recipe(parse_named_source(source).source, options.trust_recipe)
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        return runner.run(serve(options))


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
