"""``dist-net reload MODEL``: make an inference pool reload a model, perhaps for a share."""

import argparse

from dist_net.cli.parser import add_json_argument, print_json
from dist_net.cli.status import add_pool_arguments, pool_client
from dist_net.ground.command_line import add_options, number_above_zero

ANSWER_WITHIN_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model's name in the pool")
    text = "the http= address that dist-net serve printed"
    parser.add_argument("--connect", required=True, metavar="ADDRESS", help=text)
    add_options(
        parser,
        ("--timeout", float, "SECONDS", "of the reload", 120.0),
        ("--share", _share, "SHARE", "of the requests for the new version, such as 0.05", 1.0),
    )
    ends = parser.add_mutually_exclusive_group()
    text = "end a rollout: the new version replaces the old one"
    ends.add_argument("--confirm", action="store_true", help=text)
    text = "end a rollout: the old version answers all requests again"
    ends.add_argument("--rollback", action="store_true", help=text)
    add_pool_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    with pool_client(arguments, arguments.connect, ANSWER_WITHIN_S) as client:
        client.models()  # fail fast without a gateway: loading a large model takes long
        if arguments.confirm:
            version = client.confirm(arguments.model)
        elif arguments.rollback:
            version = client.rollback(arguments.model)
        else:
            version = client.reload(arguments.model, arguments.timeout, arguments.share)
    what = "serving" if arguments.share == 1 else f"answering {arguments.share:.4g} of requests by"
    print(f"{arguments.model}: now {what} version {version}")
    if arguments.json:
        print_json({"model": arguments.model, "version": version})
    return 0


def _share(text: str) -> float:
    share = number_above_zero(text)
    if share > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 1; expected a share, such as 0.05")
    return share
