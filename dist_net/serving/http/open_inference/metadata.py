"""What the Open Inference Protocol tells of a server, its models and how they went; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dist_net.serving.gateway.service import ServedModel
from dist_net.serving.http.open_inference.request import INPUT, OUTPUT
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.statistics import ModelStatistics, Timed

PLATFORM = "dist_net"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)
KEPT_VERSIONS = 2
_NS_PER_S = 1e9
_MS_PER_S = 1e3


def server_metadata(version: str) -> dict[str, Any]:
    """Of a server that is this release of dist_net."""
    return {"name": "dist_net", "version": version, "extensions": EXTENSIONS}


def model_metadata(model: ModelDescription, versions: Iterable[int]) -> dict[str, Any]:
    """A model's inputs and outputs; -1 stands for any number of rows."""
    return {
        "name": model.name,
        "versions": [str(version) for version in versions],
        "platform": PLATFORM,
        "inputs": [
            {"name": INPUT, "datatype": model.input_datatype, "shape": [-1, *model.input_shape]}
        ],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, model.classes]}],
    }


def model_configuration(model: ModelDescription, max_batch_size: int) -> dict[str, Any]:
    """A model's configuration; its shapes are those of one row, unlike the metadata's."""
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"latest": {"num_versions": KEPT_VERSIONS}},
        "max_batch_size": max_batch_size,
        "input": [
            {
                "name": INPUT,
                "data_type": f"TYPE_{model.input_datatype}",
                "dims": model.input_shape,
            }
        ],
        "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [model.classes]}],
        "dynamic_batching": {"preferred_batch_size": [max_batch_size]},
    }


def repository_index(models: Iterable[ServedModel], only_ready: bool) -> list[dict[str, str]]:
    """Every version that is served, and every model of which there is none."""
    found = []
    for model in models:
        state = "READY" if model.is_ready else "UNAVAILABLE"
        if only_ready and not model.is_ready:
            continue
        for version in model.versions or ("",):
            found.append(
                {
                    "name": model.name,
                    "version": str(version),
                    "state": state,
                    "reason": model.reason,
                }
            )
    return found


def model_statistics(
    name: str,
    versions: Iterable[int],
    counted_by_version: Mapping[int, ModelStatistics],
    epoch_of_clock_s: float,
) -> Iterator[dict[str, Any]]:
    """An entry of ``model_stats`` for each of the versions.

    ``epoch_of_clock_s``: when, in seconds since 1970, the pool's clock began to count.
    """
    for version in versions:
        counted = counted_by_version.get(version) or ModelStatistics()
        last_s = counted.last_inference_s
        yield {
            "name": name,
            "version": str(version),
            "last_inference": 0 if last_s is None else int((epoch_of_clock_s + last_s) * _MS_PER_S),
            "inference_count": counted.inference_count,
            "execution_count": counted.execution_count,
            "inference_stats": {
                "success": _duration(counted.success),
                "fail": _duration(counted.fail),
                "queue": _duration(counted.queue),
                "compute_input": _duration(counted.compute_input),
                "compute_infer": _duration(counted.compute_infer),
                "compute_output": _duration(counted.compute_output),
                "cache_hit": _duration(Timed()),
                "cache_miss": _duration(Timed()),
            },
            "batch_stats": [
                {"batch_size": rows, "compute_infer": _duration(timed)}
                for rows, timed in sorted(counted.batches.items())
            ],
        }


def _duration(timed: Timed) -> dict[str, int]:
    return {"count": timed.count, "ns": int(timed.seconds * _NS_PER_S)}
