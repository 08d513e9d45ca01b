"""The command line. Each command is a module with ``add_arguments`` and ``run``.

``run`` prints the results and returns the exit code. Commands that start a single cluster process
live in that process's module.
"""

import argparse
import io
import logging
import os
import signal
import sys
import time
import traceback
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from types import FrameType

from dist_net.cli.parser import Parser
from dist_net.errors import INTERRUPTED, DistNetError
from dist_net.ground.release import VERSION
from dist_net.processes.token_arguments import own_words

COMMANDS = {
    "train": "train a recipe with a parameter server and workers on this host",
    "evaluate": "print a trained model's accuracy on the test samples",
    "replay": "recompute a run from its journal in one process and compare the weights",
    "simulate": "predict a cluster's samples per second, and how many workers pay",
    "predict": "classify images with a published or trained model",
    "labels": "list, set, withdraw and export the labels that people set for a run's images",
    "export": "export a trained model as ONNX, safetensors or npz",
    "fetch": "download a dataset or a published classifier, with resume and checksum",
    "parameter-server": "run a parameter server for workers on other hosts",
    "worker": "be one worker of the parameter server at an address; see also join --connect",
    "join": "join a run on another host with the command that it printed",
    "serve": "serve models over HTTP and ZeroMQ with a gateway and a pool of inference workers",
    "inference-worker": "serve requests for the gateway at an address, on this host or another",
    "reload": "reload a model in a running inference pool",
    "status": "show a running parameter server's or inference pool's workers, versions and rates",
    "watch": "show a run, live or afterwards, on a page in the browser",
    "members": "list the hosts whose votes a run needs, and forget those that are gone",
    "keys": "create or revoke the keys with which the hosts of a cluster authenticate each other",
}
PATIENT_S = 1.0
"""Further interrupts within this time count as the same one and are ignored."""

MODULES = {
    "parameter-server": "cli.train",
    "worker": "training.run.training_worker_process",
    "serve": "serving.gateway.serving_run",
    "inference-worker": "serving.worker.inference_worker_process",
}
"""The modules of commands that have none of their name in ``cli``."""


def parse(given: list[str]) -> argparse.Namespace:
    """Parse a command line; exits if it is invalid."""
    parser = Parser(prog="dist-net", description="Train neural nets across processes and machines.")
    parser.add_argument("--version", action="version", version=f"dist-net {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        sentence = purpose[0].upper() + purpose[1:]
        command = commands.add_parser(name, help=purpose, description=f"{sentence}.")
        if name in given[:1]:  # import only the modules of this command
            module = import_module(f"dist_net.{MODULES.get(name, f'cli.{name}')}")
            module.add_arguments(command)
            if name == "parameter-server":
                command.set_defaults(workers=0)
            command.add_argument("--debug", action="store_true", help="show errors with traceback")
            command.set_defaults(module=module)
    return parser.parse_args(given)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; print a ``DistNetError`` as one line on stderr; return the exit code."""
    # Starting BLAS threads, which ``use_threads`` ends, takes an eighth of each process's start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    parsed = parse((own_words() if arguments is None else arguments) or ["--help"])
    # Imported late: these import NumPy, which would slow down --help.
    from dist_net.ground.files import refusing_long_names
    from dist_net.ground.printable import PrintableFormatter, printable
    from dist_net.processes.entry import raise_descriptor_limit, use_threads
    from dist_net.processes.launcher import hurry

    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be invalid UTF-8
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
        # With --json, stdout has what ``print_json`` prints, whatever a recipe or a library prints.
        printed = redirect_stdout(sys.stderr) if vars(parsed).get("json") else nullcontext()
        with printed, refusing_long_names():
            return int(parsed.module.run(parsed))
    except DistNetError as error:
        if parsed.debug:
            traceback.print_exception(error)
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        print(f"dist-net {parsed.command}: {printable(said)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the flush at exit must not fail
        return 0
    except KeyboardInterrupt:
        print(f"dist-net {parsed.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Shut the command down once. A later Ctrl-C stops waiting for its processes."""
    from dist_net.processes.launcher import hurry

    patient_until_s = time.monotonic() + PATIENT_S
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(
        signal.SIGINT, lambda *_: hurry.set() if time.monotonic() > patient_until_s else None
    )
    raise KeyboardInterrupt
