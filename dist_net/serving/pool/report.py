"""The pool as it is now, for people: the JSON of its page and of `dist-net status`. Pure."""

from __future__ import annotations

from typing import Any

from dist_net.serving.pool.statistics import ENDS, total
from dist_net.serving.pool.versions import ModelVersions

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def model_report(model: ModelVersions, now: float) -> dict[str, Any]:
    """One model: requests of all its versions since the start, times of the last ten seconds."""
    counted = total(model.statistics.values())
    served = model.served()
    description = served.description
    latencies_s = counted.recent.percentiles_s(SHARES.values(), now) or [None] * len(SHARES)
    return {
        "name": model.name,
        "version": description.version if description else None,
        "is_ready": served.is_ready,
        "reason": served.reason,
        "takes_pictures": description.takes_pictures if description else False,
        "classes": description.classes if description else 0,
        **{name: getattr(counted, name) for name in (*ENDS, "retried")},
        "requests_per_s": counted.recent.requests_per_s(now),
        "latency_ms": {
            name: None if latency_s is None else 1e3 * latency_s
            for name, latency_s in zip(SHARES, latencies_s, strict=True)
        },
        "batch_rows": {str(rows): counted.batches[rows].count for rows in sorted(counted.batches)},
    }
