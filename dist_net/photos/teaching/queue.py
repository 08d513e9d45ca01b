"""The images that a person labels next: a file beside the labels, which the teacher replaces.

    doubtful labels ──┐
                      ├──by doubt, one of each group──▶ queue.json ──▶ page
    unlabelled images ┘

Labels that were chosen for their doubt are a biased sample: every tenth image is drawn at random.
"""

import json
from base64 import b64encode
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import asdict
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_net.data.collection import Collection, unlabelled_images
from dist_net.data.image_folder import digest_of
from dist_net.data.samples import ArraySamples
from dist_net.errors import ImageError
from dist_net.ground.files import replacing
from dist_net.images.labels import Calibration, top_predictions
from dist_net.nn.inference import softmax
from dist_net.photos.bases import FeatureExtractor
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.image_run import TrainedImages
from dist_net.photos.photo_statistics import Targets
from dist_net.photos.similar_images import groups_of, image_copies, thumbnails_and_digests

MAX_QUEUED = 200
MAX_SEEN = 2000
"""Unlabelled images in memory; the least certain of them."""
AT_ONCE = 8
RANDOM_EVERY = 10
TOP = 5
MAX_ALIKE = 20
"""Nearly equal images that one label may be for."""


class Candidate(NamedTuple):
    """An image that may be queued: its SHA-256, and its label, or None.

    ``doubt``: from 0 to 1. ``rarity``: the number of images of its likeliest class. ``row``: among
    the images of the folder's list.
    """

    image: str
    label: str | None
    doubt: float
    rarity: int
    group: Hashable
    probabilities: NDArray[np.float32]
    row: int = -1


class SeenImage(NamedTuple):
    """An unlabelled image: features (F,), thumbnail, and a JPEG file in base 64."""

    features: NDArray[np.float32]
    thumbnail: NDArray[np.uint8]
    picture: str


def in_order(candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, bool]]:
    """Yield the most doubtful image of each group, and whether it is drawn at random.

    The most doubtful come first, in tenths; within a tenth, those of small classes. Every tenth
    image is drawn from all others: a digest is as random as a number.
    """
    of_group: dict[Hashable, Candidate] = {}
    for each in sorted(candidates, key=lambda each: (-each.doubt, each.image)):
        of_group.setdefault(each.group, each)
    order = sorted(of_group.values(), key=lambda each: (-int(10 * each.doubt), each.rarity))
    chosen, drawn = iter(order), iter(sorted(order, key=lambda each: each.image[::-1]))
    done: set[str] = set()
    for place in range(1, len(order) + 1):
        is_drawn = place % RANDOM_EVERY == 0
        found = next(each for each in (drawn if is_drawn else chosen) if each.image not in done)
        done.add(found.image)
        yield found, is_drawn


def doubts(probabilities: NDArray[np.float32], targets: Targets) -> NDArray[np.float32]:
    """Return the doubt in labels, (N,): above 0.5 if another class is more probable."""
    rows, others = np.arange(len(targets)), probabilities.copy()
    others[rows, targets] = 0
    return np.asarray((1 + others.max(1) - probabilities[rows, targets]) / 2, np.float32)


class Queue:
    """Writes ``collection.queue``. Unlabelled images are decoded and computed once."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._seen: dict[str, SeenImage] = {}
        self._groups: list[int] = []

    def see(self, trained: TrainedImages, extractor: FeatureExtractor) -> bool:
        """Read some of the images that clients sent; return whether the queue has changed.

        A worker of the pool has decoded each of them: this process survives them.
        """
        images = unlabelled_images(self._collection.unlabelled)
        least_certain = sorted(images, key=lambda each: each.margin)[:MAX_SEEN]
        paths = {each.digest: each.path for each in least_certain}
        before = self._seen
        self._seen = {digest: before[digest] for digest in paths if digest in before}
        found: dict[str, NDArray[np.uint8]] = {}
        for digest in [each for each in paths if each not in before][:AT_ONCE]:
            try:
                found[digest] = trained.images.preprocessing.input_of(paths[digest])
            except ImageError:  # it was labelled meanwhile, or is damaged
                paths[digest].unlink(missing_ok=True)
        if found:
            samples = ArraySamples(np.stack([*found.values()]))
            small, _ = thumbnails_and_digests(samples)
            pictures = map(_picture, found.values())
            seen = map(SeenImage, extractor.features_of(samples), small, pictures)
            self._seen |= zip(found, seen, strict=True)
        if before.keys() == self._seen.keys():
            return False
        thumbnails = [each.thumbnail for each in self._seen.values()]
        pairs = image_copies(np.stack(thumbnails)) if thumbnails else ()
        self._groups = groups_of([""] * len(thumbnails), pairs).tolist()
        return True

    def write(self, trained: TrainedImages, options: ImageOptions) -> None:
        """Replace the file: the first ``MAX_QUEUED`` images without a label of the log."""
        names, calibration = trained.recipe.class_names, trained.judged.calibrate(options.precision)
        unlabelled = self._unlabelled(trained, calibration)
        alike = defaultdict(list)
        for each in unlabelled:
            alike[each.group].append(each.image)
        labels, queued = self._collection.current_labels(), []
        for each, is_drawn in in_order([*_labelled(trained, calibration), *unlabelled]):
            best = top_predictions(each.probabilities, names, TOP)
            if each.image in labels or best[0].label == each.label:
                continue
            seen = self._seen.get(each.image)
            is_shown = seen is None and options.images
            picture = seen.picture if seen else is_shown and _picture(_pixels(trained, each.row))
            others = [other for other in alike[each.group] if other != each.image][:MAX_ALIKE]
            entry = {"image": each.image, "label": each.label, "others": others}
            shown = {"predictions": [*map(asdict, best)], "is_random": is_drawn}
            queued.append(entry | shown | {"picture": picture or ""})
            if len(queued) == MAX_QUEUED:
                break
        with replacing(self._collection.queue) as partial:
            partial.write_text(json.dumps(queued))

    def _unlabelled(self, trained: TrainedImages, calibration: Calibration) -> list[Candidate]:
        assert trained.head is not None
        if not self._seen:
            return []
        logits = trained.head(np.stack([each.features for each in self._seen.values()]))
        probabilities = softmax(logits / np.float32(calibration.temperature))
        second, first = np.sort(probabilities, 1)[:, -2:].T
        counts = np.bincount(trained.head.labels, minlength=probabilities.shape[1])
        rarity = counts[probabilities.argmax(1)].tolist()
        of_each = self._seen, 1 - first + second, rarity, self._groups, probabilities
        return [
            Candidate(digest, None, float(doubt), count, ("sent", group), row)
            for digest, doubt, count, group, row in zip(*of_each, strict=True)
        ]


def _labelled(trained: TrainedImages, calibration: Calibration) -> list[Candidate]:
    folder, head = trained.images.folder, trained.head
    assert head is not None
    judged = head.every
    probabilities = judged.probabilities(calibration)
    rarity = np.bincount(judged.targets)[judged.targets].tolist()
    of_each = head.rows.tolist(), doubts(probabilities, judged.targets), rarity, judged.groups
    return [
        Candidate(
            digest_of(folder.root, folder.images[row]),
            folder.images[row].class_name,
            float(doubt),
            count,
            ("labelled", int(group)),
            answer,
            row,
        )
        for row, doubt, count, group, answer in zip(*of_each, probabilities, strict=True)
    ]


def _pixels(trained: TrainedImages, row: int) -> NDArray[np.uint8]:
    samples = trained.images.samples()
    pixels = np.empty((1, *samples.shape), np.uint8)
    samples.read(np.flatnonzero(trained.images.rows() == row), pixels)
    return np.asarray(pixels[0])


def _picture(pixels: NDArray[np.uint8]) -> str:
    file = BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=85)
    return b64encode(file.getvalue()).decode()
