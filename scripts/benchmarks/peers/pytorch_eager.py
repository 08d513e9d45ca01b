"""PyTorch as most people run it: eager, one process, one thread."""

from collections.abc import Callable
from typing import Any

from benchmarks.peers import task
from benchmarks.timing import median_us, training_case


def training_step(
    batch_size: int, wrap: Callable[[Any], Any] = lambda network: network
) -> Callable[[], None]:
    """A function that takes one whole step on a random minibatch; `wrap` makes a network parallel.

    The pixels wait as float32 from 0 to 1, which is PyTorch's faster choice: bytes would have to be
    converted at each step.
    """
    import torch
    from torch import nn

    images, labels = task.synthetic_images()
    pixels = torch.from_numpy(images).float().div_(255)
    targets = torch.from_numpy(labels).long()
    layers = nn.Linear(task.PIXELS, task.HIDDEN), nn.ReLU(), nn.Linear(task.HIDDEN, task.CLASSES)
    network = wrap(nn.Sequential(*layers))
    optimizer = torch.optim.SGD(network.parameters(), lr=task.LEARNING_RATE)
    cross_entropy = nn.CrossEntropyLoss()
    batches = torch.randperm(task.SAMPLES).split(batch_size)
    position = 0

    def step() -> None:
        nonlocal position
        batch = batches[position]
        # The last batch may be a short one: never used.
        position = (position + 1) % (task.SAMPLES // batch_size)
        optimizer.zero_grad()
        loss = cross_entropy(network(pixels[batch]), targets[batch])
        loss.backward()
        optimizer.step()

    return step


def measure(batch_size: int) -> task.Case:
    """The whole step, minibatch and update included, on one thread."""
    import torch

    torch.set_num_threads(1)
    return training_case(0, batch_size, median_us(training_step(batch_size)))


if __name__ == "__main__":
    task.report("torch", measure)
