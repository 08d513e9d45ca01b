"""``scripts/conformance URL --model NAME``: run the checks, print a table, exit 1 if one fails."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from open_inference import extension_checks  # noqa: F401  it registers its checks, after REST
from open_inference.server import Server
from open_inference.suite import CHECKS, FAIL, MUST, NOT_OFFERED, PASS, Outcome, run_checks


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    door = None
    if options.grpc:
        from open_inference.grpc_checks import GrpcDoor  # it registers its checks

        door = GrpcDoor(options.grpc, token=options.token, timeout_s=options.timeout)
    server = Server(
        options.url,
        options.model,
        token=options.token,
        timeout_s=options.timeout,
        shapes=dict(options.shape),
        extensions=tuple(options.extension),
        grpc=door,
    )
    checks = [
        each
        for each in CHECKS
        if (each.level == MUST or not options.must)
        and (options.grpc or not each.family.startswith("gRPC"))
    ]
    outcomes = list(run_checks(server, checks))
    print(table(outcomes))
    if options.json:
        content = [each.to_json() for each in outcomes]
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return int(any(each.result == FAIL for each in outcomes))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/conformance", description=__doc__)
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, metavar="NAME", help="one that is ready")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="also check the server over gRPC")
    parser.add_argument("--token", default="", help="sent as Authorization: Bearer TOKEN")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome to FILE")
    parser.add_argument("--must", action="store_true", help="leave out the checks of conventions")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        type=_named_shape,
        metavar="INPUT=1,3,224,224",
        help="the sizes of an input's variable axes; 1 by default",
    )
    parser.add_argument(
        "--extension",
        action="append",
        default=[],
        metavar="NAME",
        help="check an extension that the server's metadata do not list",
    )
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")
    return parser.parse_args(arguments)


def _named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    return name, tuple(map(int, sizes.split(",")))


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the counts of each family; for failures, the request, expectation and response."""
    counts = Counter((each.family, each.result) for each in outcomes)
    lines = [f"{'':24}{'passed':>8}{'failed':>8}{'not offered':>13}"]
    for family in dict.fromkeys(each.family for each in outcomes):
        numbers = [counts[family, result] for result in (PASS, FAIL, NOT_OFFERED)]
        lines.append("{:24}{:8}{:8}{:13}".format(family, *numbers))
    totals = Counter(each.result for each in outcomes)
    numbers = [totals[result] for result in (PASS, FAIL, NOT_OFFERED)]
    lines.append("{:24}{:8}{:8}{:13}".format("all", *numbers))
    for each in outcomes:
        if each.result == FAIL:
            lines += [
                f"\n{each.family}: {each.name} ({each.level}; {each.source})",
                f"  sent      {each.sent}",
                f"  expected  {each.expected}",
                f"  received  {each.received}",
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
