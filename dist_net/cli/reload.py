"""``dist-net reload MODEL``: an inference pool reads a model again from where it was read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dist_net.serving.client.client import Client

ANSWER_WITHIN_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the name by which it is served")
    parser.add_argument(
        "--connect", required=True, metavar="ADDRESS", help="what dist-net serve printed as zmq="
    )
    parser.add_argument("--keys", type=Path, metavar="DIR", help="an operator's keys")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="default: 120"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Waits until the new version is served, says which, and gives the exit code."""
    with Client(arguments.connect, arguments.keys, ANSWER_WITHIN_S) as client:
        client.models()  # reading a large model takes long, but a gateway that is there answers
        version = client.reload(arguments.model, arguments.timeout)
    if arguments.json:
        print(json.dumps({"model": arguments.model, "version": version}))
    else:
        print(f"{arguments.model}: version {version} is served")
    return 0
