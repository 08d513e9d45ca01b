"""Keras on TensorFlow by `fit`, the way its tutorials train; one process, one thread."""

from statistics import median

from benchmarks.peers import task
from benchmarks.timing import seconds_of, training_case

STEPS = 1500
REPEATS = 3


def measure(batch_size: int) -> task.Case:
    """Microseconds a step over a whole `fit`, after a first one that compiled everything."""
    import keras
    import numpy as np
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    images, labels = task.synthetic_images()
    steps = min(STEPS, task.SAMPLES // batch_size)
    samples = steps * batch_size
    pixels = images[:samples].astype(np.float32) / 255
    network = keras.Sequential(
        [
            keras.Input((task.PIXELS,)),
            keras.layers.Dense(task.HIDDEN, activation="relu"),
            keras.layers.Dense(task.CLASSES),
        ]
    )
    network.compile(
        optimizer=keras.optimizers.SGD(learning_rate=task.LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def fit() -> None:
        network.fit(pixels, labels[:samples], batch_size=batch_size, epochs=1, verbose=0)

    fit()
    us_per_step = 1e6 * median(seconds_of(fit, 1) / steps for _ in range(REPEATS))
    return training_case(0, batch_size, us_per_step)


if __name__ == "__main__":
    task.report("keras", measure)
