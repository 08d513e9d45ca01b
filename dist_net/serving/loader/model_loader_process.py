"""The process that reads models for the inference pool.

    python -m dist_net.serving.loader.model_loader_process --connect ADDRESS --directory DIR
        [--training-keys DIR] [--weights FILE] [--labels FILE] [--token-file FILE]
        [--parent PROCESS_ID] [NAME=]SOURCE...

A SOURCE is a MODEL as for ``dist-net predict``, or the address of a parameter server, to which
``--training-keys`` give access; it may be followed by ``,weights=FILE`` and ``,labels=FILE``.
Arrays without a file are written to ``--directory``. Prints ``READY`` on stdout when it joins the
gateway, and ``FAILED REASON`` if it fails. Logs go to stderr.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from dist_net.command_line import add_trust_argument
from dist_net.errors import ModelOptionError
from dist_net.nets.sources import model_source, parse_named_source
from dist_net.processes.entry import READY, entry_point, stop_on_signals
from dist_net.processes.terminal import FetchProgress, plain_console
from dist_net.serving.loader.model_loader import ModelLoader
from dist_net.wire.security import CLIENT, load_peer_keys

logger = logging.getLogger("dist_net.serving.loader.model_loader")

NICENESS = 10  # answers have priority over new versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connect", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--training-keys", type=Path)
    parser.add_argument("--weights", type=Path, help="of the one SOURCE")
    parser.add_argument("--labels", type=Path, help="of the one SOURCE")
    parser.add_argument("--token-file", type=Path, help="by which the gateway knows its loader")
    add_trust_argument(parser)
    parser.add_argument("--parent", type=int)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")


def run(arguments: argparse.Namespace) -> int:
    """Read models until a signal, or until the parent process ends."""
    named = [parse_named_source(text) for text in arguments.sources]
    if len({each.name for each in named}) < len(named):
        names = ", ".join(each.name for each in named)
        raise ModelOptionError(f"the models are named {names}; expected unique names")
    if len(named) > 1 and (arguments.weights or arguments.labels):
        raise ModelOptionError(
            "--weights or --labels with several models; expected the files after the source of "
            "their model: NAME=SOURCE,weights=FILE,labels=FILE"
        )
    keys = load_peer_keys(arguments.training_keys, CLIENT) if arguments.training_keys else None
    progress = FetchProgress(plain_console())
    sources = {
        name: model_source(
            source,
            weights or arguments.weights,
            labels or arguments.labels,
            progress,
            keys,
            arguments.trust_recipe,
        )
        for name, source, weights, labels in named
    }
    with ModelLoader(
        arguments.connect,
        sources,
        arguments.directory,
        arguments.token_file.read_bytes() if arguments.token_file else b"",
    ) as loader:
        os.nice(NICENESS)
        stop_on_signals(loader.stop, arguments.parent)
        print(READY, flush=True)
        reason = loader.serve()
    logger.info("done reason=%s", reason)
    return 0


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
