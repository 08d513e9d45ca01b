"""``dist-net reload MODEL``: make an inference pool reload a model from its source."""

import argparse
import json
from pathlib import Path

from dist_net.command_line import add_options
from dist_net.serving.client.client import Client

ANSWER_WITHIN_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model's name in the pool")
    text = "the zmq= address that dist-net serve printed"
    parser.add_argument("--connect", required=True, metavar="ADDRESS", help=text)
    add_options(
        parser,
        ("--keys", Path, "DIR", "an operator's keys"),
        ("--timeout", float, "SECONDS", "of the reload", 120.0),
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    with Client(arguments.connect, arguments.keys, ANSWER_WITHIN_S) as client:
        client.models()  # fail fast without a gateway: loading a large model takes long
        version = client.reload(arguments.model, arguments.timeout)
    if arguments.json:
        print(json.dumps({"model": arguments.model, "version": version}))
    else:
        print(f"{arguments.model}: now serving version {version}")
    return 0
