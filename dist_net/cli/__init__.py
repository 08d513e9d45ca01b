"""The command line. Each command is a module with ``add_arguments`` and ``run``.

A command that is one process of a cluster, and no more, is that process's own module.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from types import FrameType

from dist_net.cli.parser import Parser
from dist_net.cluster.hidden_tokens import own_words
from dist_net.errors import INTERRUPTED, DistNetError
from dist_net.release import VERSION

COMMANDS = {
    "train": "train a recipe with a parameter server and workers on this host",
    "evaluate": "give a trained model's accuracy on the test images",
    "replay": "compute a run again from its journal, in one process, and compare the weights",
    "simulate": "predict what a cluster would do, and what it would be bound by",
    "predict": "say what pictures show, by a published classifier or one that was trained here",
    "export": "write a trained model for other programs: as ONNX, safetensors or npz",
    "fetch": "fetch a dataset or a published classifier: progress, resume, checksum",
    "parameter-server": "serve a recipe's parameters to workers of other hosts",
    "worker": "train for the parameter server at an address, until there is no more to do",
    "join": "train in a run of another host, by the line that it printed",
    "serve": "answer over HTTP and ZeroMQ, by a gateway and a pool of inference workers",
    "inference-worker": "answer for the gateway at an address, on this host or another",
    "reload": "have a running inference pool read a model again, and serve that",
    "status": "show a running parameter server's, or inference pool's, workers, versions and rates",
    "keys": "make the keys with which the hosts of a cluster recognise each other, or revoke them",
}
PATIENT_S = 1.0
"""Further interrupts within this time are those of one impatient moment, and change nothing."""

PROCESSES = {
    "worker": "training_worker",
    "serve": "gateway",
    "inference-worker": "inference_worker",
}


def parse(given: list[str]) -> argparse.Namespace:
    """A command and its arguments; the process ends if they cannot be parsed."""
    parser = Parser(prog="dist-net", description="Train neural nets across processes and machines.")
    parser.add_argument("--version", action="version", version=f"dist-net {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        sentence = purpose[0].upper() + purpose[1:]
        command = commands.add_parser(name, help=purpose, description=f"{sentence}.")
        if name in given[:1]:  # only what this command needs is imported
            if name in PROCESSES:
                module = import_module(f"dist_net.cluster.processes.{PROCESSES[name]}")
            else:
                module = import_module(f"dist_net.cli.{name.replace('-', '_')}")
            module.add_arguments(command)
            command.add_argument("--debug", action="store_true", help="show errors with traceback")
            command.set_defaults(module=module)
    return parser.parse_args(given)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; an error of this project becomes one line on stderr and an exit code."""
    parsed = parse((own_words() if arguments is None else arguments) or ["--help"])
    # These import NumPy, for which --help should not wait.
    from dist_net.cluster.child import hurry
    from dist_net.cluster.entry import raise_descriptor_limit, use_threads
    from dist_net.cluster.printable import PrintableFormatter, printable

    if isinstance(sys.stdout, io.TextIOWrapper):  # names may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    use_threads(1)
    raise_descriptor_limit()
    hurry.clear()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        return int(parsed.module.run(parsed))
    except DistNetError as error:
        if parsed.debug:
            traceback.print_exception(error)
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        print(f"dist-net {parsed.command}: {printable(said)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # who read this had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left is flushed at the end
        return 0
    except KeyboardInterrupt:
        print(f"dist-net {parsed.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """End the command in order, once. A later Ctrl-C ends the wait for its processes."""
    from dist_net.cluster.child import hurry

    patient_until_s = time.monotonic() + PATIENT_S
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(
        signal.SIGINT, lambda *_: hurry.set() if time.monotonic() > patient_until_s else None
    )
    raise KeyboardInterrupt
