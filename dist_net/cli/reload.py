"""``dist-net reload MODEL``: make an inference pool reload a model from its source."""

import argparse

from dist_net.cli.parser import add_json_argument, print_json
from dist_net.cli.status import add_pool_arguments, pool_client
from dist_net.ground.command_line import add_options

ANSWER_WITHIN_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model's name in the pool")
    text = "the http= address that dist-net serve printed"
    parser.add_argument("--connect", required=True, metavar="ADDRESS", help=text)
    add_options(parser, ("--timeout", float, "SECONDS", "of the reload", 120.0))
    add_pool_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    with pool_client(arguments, arguments.connect, ANSWER_WITHIN_S) as client:
        client.models()  # fail fast without a gateway: loading a large model takes long
        version = client.reload(arguments.model, arguments.timeout)
    print(f"{arguments.model}: now serving version {version}")
    if arguments.json:
        print_json({"model": arguments.model, "version": version})
    return 0
