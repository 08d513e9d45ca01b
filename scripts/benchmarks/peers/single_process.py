"""This project in one process, without a cluster: measured as its peers are."""

from dataclasses import replace

from threadpoolctl import threadpool_limits

from benchmarks import synthetic
from benchmarks.peers import task
from benchmarks.timing import median_us, training_case
from dist_net.training.run.fit import SingleProcess


def measure(batch_size: int) -> task.Case:
    """The whole step, minibatch and update included, on one thread."""
    recipe = replace(synthetic.recipe, batch_size=batch_size)
    training = SingleProcess(recipe, synthetic.dataset())
    position = 0

    def step() -> None:
        nonlocal position
        training.train(0, position, position + batch_size)
        position = (position + batch_size) % (task.SAMPLES - batch_size)

    return training_case(0, batch_size, median_us(step))


if __name__ == "__main__":
    with threadpool_limits(1):
        task.report("dist-net", measure)
