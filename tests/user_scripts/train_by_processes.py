"""A script that trains a recipe and a folder of photos, and reads the runs again."""

import sys
from pathlib import Path

import dist_net
from dist_net import Run
from dist_net.errors import DistNetError
from dist_net.optim import AdamW

run: Run = dist_net.train("digits", epochs=5, seed=1, optimizer=AdamW(), quiet=True)
accuracy: float = run.report["test_accuracy"]
names: tuple[str, ...] = run.class_names
for result in run.history:
    if result.validation is not None:
        print(result.epoch, result.loss, result.validation.accuracy)
try:
    photos = dist_net.train(Path("photos"), fine_tune="auto", rotate=10, run_dir="runs/photos")
except DistNetError as error:
    sys.exit(f"{accuracy} {names} {error}")
print(photos.evaluate().accuracy, photos.model.summary(), photos.path.name)
