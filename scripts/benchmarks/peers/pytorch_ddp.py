"""PyTorch's DistributedDataParallel over gloo: two processes on this host, one thread each."""

import tempfile
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from statistics import median

from benchmarks.peers import task
from benchmarks.peers.pytorch_eager import training_step
from benchmarks.timing import seconds_of, training_case

WORKERS = 2
STEPS = 200
REPEATS = 5


def train(rank: int, meeting_point: str, batch_size: int, answer: SimpleQueue[float]) -> None:
    """One process of the pair; the first one answers with its median microseconds a step."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    torch.manual_seed(rank)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=WORKERS
    )
    step = training_step(batch_size, DistributedDataParallel)
    seconds_of(step, STEPS)
    # No barrier between repeats: each step's all-reduce already keeps the pair together.
    us_per_step = 1e6 * median(seconds_of(step, STEPS) / STEPS for _ in range(REPEATS))
    if rank == 0:
        answer.put(us_per_step)
    torch.distributed.destroy_process_group()


def measure(batch_size: int) -> task.Case:
    """The whole step of each process at `batch_size` images each, gradient exchange included."""
    import torch

    answer = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as directory:
        meeting_point = str(Path(directory) / "meeting_point")
        torch.multiprocessing.spawn(
            train, args=(meeting_point, batch_size, answer), nprocs=WORKERS, join=True
        )
    return training_case(WORKERS, batch_size, answer.get())


if __name__ == "__main__":
    task.report("torch", measure)
