"""Draw a folder of images, train a classifier on it, and classify new images, all in Python.

    python examples/photos/end_to_end.py

Needs the extras `pretrained` and `fast`; it takes less than a minute.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from draw import KINDS, draw, sign

import dist_net


def main() -> None:
    """Print the accuracy on held-out images, and the class of a new image of each kind."""
    with TemporaryDirectory() as place:
        photos, run_directory = Path(place, "photos"), Path(place, "run")
        draw(photos, count=30)
        run = dist_net.train(photos, workers=2, run_dir=run_directory)
        print(f"accuracy on images that were not trained on: {run.report['test_accuracy']:.0%}")
        generator = np.random.default_rng(1)
        for kind in KINDS:
            file = Path(place, f"{kind}.png")
            sign(kind, generator).save(file)
            (best,) = run.classify(file, top=1)
            print(f"{kind}: {best.label}, {best.probability:.0%}")


if __name__ == "__main__":
    main()
