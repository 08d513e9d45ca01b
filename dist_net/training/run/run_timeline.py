"""The history of a run, moment by moment, in bounded memory. Pure; time is passed in.

A *moment* is a JSON object: the time ``at`` (seconds since 1970), the facts of the server's report
then, and what was new in it:

- ``events``: each has ``at``, a ``text`` and, if it is of a worker, ``what`` and ``who``;
- ``leases``: for each worker, pieces of time ``[began_s, ended_s, computed_s, exchanged_s]``; the
  first two count from ``at`` and are 0 or less, and the worker waited for the rest of the piece.

A worker's key is ``HOST/NAME``. A moment without a fact keeps the fact of the moment before.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

Moment = dict[str, Any]

RECENT_S = 120.0
"""Moments that are not older are kept whole."""

MOMENTS_KEPT = 240
"""Older moments are merged into about this many, of equal length."""

PIECES_KEPT = 12_000
RECORDS_KEPT = 1_000
EVENTS_KEPT = 24
"""Of a merged moment."""

FACTS = (
    *("recipe", "state", "term_number", "host", "server_starts", "samples", "samples_under_way"),
    *("samples_total", "epochs", "version", "samples_per_s", "samples_per_update"),
    *("waiting_share", "staleness_mean", "consistency", "checkpoint_version"),
    *("bytes_received_per_sample", "bytes_sent_per_sample", "worker_count"),
)
WORKER_FACTS = (
    *("processes", "samples_per_s", "heard_s_ago", "round_trip_s", "lease_s", "is_slow"),
    "exchanged_bytes",
)
STANDBY_FACTS = ("host", "has_copy", "arrived_share", "versions_behind", "seconds_behind")

_PARTS = {"workers": dict, "slow": dict, "standbys": list, "leases": dict, "events": list}


def is_line(value: Any) -> bool:
    """Return whether a JSON value of a file is a moment, or a record of metrics.jsonl."""
    if not isinstance(value, dict):
        return False
    if "at" not in value:
        return isinstance(value.get("kind"), str) and _is_number(value.get("samples"))
    return (
        _is_number(value["at"])
        and all(isinstance(value.get(name, kind()), kind) for name, kind in _PARTS.items())
        and all(isinstance(each, dict) and "text" in each for each in value.get("events", ()))
        and all(map(_are_pieces, value.get("leases", {}).values()))
    )


def _are_pieces(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(piece, list) and len(piece) == 4 and all(map(_is_number, piece))
        for piece in value
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**53


class MomentsOfReports:
    """Turn a run's reports into moments, each event and piece of a lease once."""

    def __init__(self) -> None:
        self._term = -1
        self._next_event = self._next_piece = 0

    def moment(self, report: Mapping[str, Any], at: float) -> Moment:
        if report["term"] != self._term:  # another server counts from 0
            self._term, self._next_event, self._next_piece = report["term"], 0, 0
        events = [each for each in report["events"] if each["number"] >= self._next_event]
        pieces = [each for each in report["recent_leases"] if each[0] >= self._next_piece]
        self._next_event += len(events) and events[-1]["number"] + 1 - self._next_event
        self._next_piece += len(pieces) and pieces[-1][0] + 1 - self._next_piece
        leases: dict[str, list[list[float]]] = {}
        for _, host, name, began_s, ended_s, *spent_s in pieces:
            leases.setdefault(f"{host}/{name}", []).append([-began_s, -ended_s, *spent_s])
        return {
            "at": round(at, 3),
            **{name: _rounded(report[name]) for name in FACTS},
            "workers": {
                f"{each['host']}/{each['name']}": [_rounded(each[name]) for name in WORKER_FACTS]
                for each in report["workers"]
            },
            "slow": {
                f"{each['host']}/{each['name']}": "; ".join(each["slow_because"])
                for each in report["workers"]
                if each["is_slow"]
            },
            "standbys": [
                [_rounded(each[name]) for name in STANDBY_FACTS] for each in report["standbys"]
            ],
            "leases": leases,
            "events": [
                {
                    "at": round(at - each["s_ago"], 3),
                    "what": each["what"],
                    "who": f"{each['host']}/{each['name']}",
                    "text": each["reason"],
                }
                for each in events
            ],
        }


class RunTimeline:
    """The moments and the metric records of a run, in the order of time.

    ``lines`` are what ``take`` received, or fewer lines with nearly the same content.
    """

    def __init__(self) -> None:
        self._moments: list[Moment] = []
        self._records: dict[tuple[str, float], Mapping[str, Any]] = {}
        self._thinned_at = 2 * MOMENTS_KEPT

    @property
    def lines(self) -> list[Mapping[str, Any]]:
        return [*self._moments, *self._records.values()]

    def take(self, line: Mapping[str, Any]) -> None:
        """Add a line of a file: see ``is_line``."""
        if "at" in line:
            self._moments.append(dict(line))
            if len(self._moments) > self._thinned_at:
                self._thin()
            return
        record = {name: _rounded(value) for name, value in line.items()}
        self._records[line["kind"], line["samples"]] = record
        if len(self._records) > 4 * RECORDS_KEPT:  # the newest of each part of the run, and kind
            width = max(samples for _, samples in self._records) / RECORDS_KEPT
            kept = {(kind, samples // width): (kind, samples) for kind, samples in self._records}
            self._records = {each: self._records[each] for each in kept.values()}

    def _thin(self) -> None:
        first_s, last_s = self._moments[0]["at"], self._moments[-1]["at"]
        workers = max(len(each.get("workers", ())) for each in self._moments)
        count = max(20, min(MOMENTS_KEPT, PIECES_KEPT // max(1, workers)))
        width_s = (last_s - first_s) / count

        def part_of(moment: Moment) -> float:
            at: float = moment["at"]
            return at if at > last_s - RECENT_S else at // width_s

        parts = [list(part) for _, part in groupby(self._moments, part_of)]
        self._moments = [
            part[0] if len(part) == 1 else _shortened(one_moment(part)) for part in parts
        ]
        self._thinned_at = len(self._moments) + MOMENTS_KEPT


def one_moment(moments: Sequence[Moment]) -> Moment:
    """Return one moment with the facts of the last, and the events and pieces of all."""
    facts = {name: value for each in moments for name, value in each.items()}
    events = [event for each in moments for event in each.get("events", ())]
    leases: dict[str, list[list[float]]] = {}
    for each in moments:
        shift_s = each["at"] - facts["at"]
        for worker, pieces in each.get("leases", {}).items():
            leases.setdefault(worker, []).extend(
                [round(began_s + shift_s, 3), round(ended_s + shift_s, 3), *spent_s]
                for began_s, ended_s, *spent_s in pieces
            )
    return facts | {"leases": leases, "events": events}


def _shortened(moment: Moment) -> Moment:
    """Return a moment with one piece for each worker, and its newest events."""
    leases = {}
    for worker, pieces in moment["leases"].items():
        began_s, ended_s, computed_s, exchanged_s = zip(*pieces, strict=True)
        spent_s = round(sum(computed_s), 3), round(sum(exchanged_s), 3)
        leases[worker] = [[min(began_s), max(ended_s), *spent_s]]
    return moment | {"leases": leases, "events": moment["events"][-EVENTS_KEPT:]}


def _rounded(value: Any) -> Any:
    if type(value) is not float:
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None
