"""``dist-net members``: list the hosts that vote in a run, and forget hosts that are gone."""

import argparse
from pathlib import Path

from rich.table import Table
from rich.text import Text

from dist_net.cli.status import server_at
from dist_net.errors import SettingError
from dist_net.ground.command_line import add_options, number_above_zero
from dist_net.ground.printable import printable_report
from dist_net.nets.observer import NO_RECORDS, Observer, value_in
from dist_net.processes.terminal import plain_console
from dist_net.wire.security import CLIENT, OPERATOR

FORGET = """forget: count no more on a member that will never return. Make sure that no process of
the run is left there, or two servers may continue the run"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "forget"), help=FORGET)
    parser.add_argument("address", metavar="ADDRESS", help="of the server, as for dist-net status")
    parser.add_argument("name", metavar="NAME", nargs="?", help="a name or a key in the list")
    add_options(
        parser,
        ("--keys", Path, "DIR", "an operator's keys (default: those of a run of this user)"),
        ("--timeout", number_above_zero, "SECONDS", "to wait for an answer", 5.0),
    )


def run(arguments: argparse.Namespace) -> int:
    address, name, forgets = arguments.address, arguments.name, arguments.action == "forget"
    if forgets != (name is not None):
        raise SettingError(f"NAME={name}: expected one with forget, and none with list")
    role = OPERATOR if forgets else CLIENT
    with (
        server_at(address, arguments.keys, role, "members", arguments.action) as access,
        Observer(*access, arguments.timeout) as server,
    ):
        report = server.forget(name) if forgets else server.status(NO_RECORDS)
    table = Table("member", "votes", "state", "key")
    for each in value_in(printable_report(report), "voters", address):
        state = "in touch" if each["is_bound"] else "missing"
        table.add_row(Text(each["name"]), str(each["votes"]), state, Text(each["public_key"]))
    plain_console(stderr=False).print(table)
    return 0
