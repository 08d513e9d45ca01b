"""Train on a folder of images; write the model and the report, as HTML, JSON and PNG."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dist_net.data.image_folder import file_digest
from dist_net.data.image_split import PARTS, TEST, TRAIN
from dist_net.data.prepared_images import AugmentedImages, PreparedImages
from dist_net.errors import MissingExtraError
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.bases import NONE
from dist_net.photos.fine_tuning import GAINS, may_pay
from dist_net.photos.head_training import judged_by
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.image_run import ImageRun, TrainedImages, write_model
from dist_net.photos.learning_curve import learning_curve
from dist_net.photos.report_content import report_content
from dist_net.photos.report_page import VARIANT, report_page
from dist_net.photos.unknown_images import left_out_classes
from dist_net.training.run.local_run import RunHost
from dist_net.training.run.plots import AS_IT_IS, draw_confusion, draw_curve, new_figure
from dist_net.training.run.run_outcome import png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_SHOWN = 6
MAX_BARS = 40
THUMBNAIL_SIDE = 160
VARIANTS = 12


def train_and_report(options: ImageOptions, host: RunHost) -> dict[str, Any]:
    """Train, write model and report; return the run's JSON object: see ``PreparedRun.train``."""
    directory = host.directory
    with directory.locked(), ExitStack() as opened:
        trained = ImageRun(host, options).train()
        opened.enter_context(trained.images)
        content = _content(directory, options, trained)
        write_model(directory, options, trained)
        try:
            _write(directory, options, trained, content)
        except MissingExtraError as error:
            host.display.console.print(str(error))
    measured = {"test_accuracy": content["accuracy"], "test_loss": content["loss"]}
    return trained.report | {"checkpoint": str(directory.model_file)} | measured


def write_report(directory: RunDirectory, options: ImageOptions, trained: TrainedImages) -> None:
    """Write the report of a model that is written already."""
    with suppress(MissingExtraError):  # the picture needs Matplotlib
        _write(directory, options, trained, _content(directory, options, trained))


def _content(
    directory: RunDirectory, options: ImageOptions, trained: TrainedImages
) -> dict[str, Any]:
    """Return what was measured of a model, as a JSON object."""
    images, recipe, judged, head = trained.images, trained.recipe, trained.judged, trained.head
    tested = None
    if len(images.rows(TEST)):
        tested = judged_by(recipe, trained.weights, images, trained.groups, TEST)
    left_out, learning = [], None
    if head is not None and not recipe.tuned_on:
        learning = learning_curve(recipe.class_names, judged, head.fold_of, head.logits_without)
        left_out = left_out_classes(
            head.features,
            head.heads,
            judged,
            folds=head.fold_of,
            names=recipe.class_names,
            precision=options.precision,
        )
    samples = len(images.rows(TRAIN))
    calibration = judged.calibrate(options.precision)
    content = _about(options, trained)
    content |= report_content(recipe.class_names, judged, tested, calibration, left_out)
    content["learning"] = learning
    for each in (*content["mistakes"], *content["doubtful"]):  # for the page that corrects labels
        each["digest"] = file_digest(images.folder.root / each["image"])
    metrics = directory.read_metrics()
    content["curves"] = [{**each, "epoch": each["samples"] / samples} for each in metrics]
    return content


def _write(
    directory: RunDirectory,
    options: ImageOptions,
    trained: TrainedImages,
    content: dict[str, Any],
) -> None:
    """Write the report's files, the picture last. Raise MissingExtraError without Matplotlib."""
    thumbnails = _thumbnails(trained.images, content) if options.images else {}
    is_varied = trained.recipe.base.kind == "small" or trained.tuning or options.views > 1
    if options.images and is_varied:
        thumbnails |= _variants(trained.images, options)
    report = directory.report
    directory.write(report.with_suffix(".json"), json.dumps(content, indent=1))
    directory.write(report, report_page(content, thumbnails))
    with directory.replacing(report.with_suffix(".png")) as file:
        draw_report(content, thumbnails, file)


def _about(options: ImageOptions, trained: TrainedImages) -> dict[str, Any]:
    images, recipe = trained.images, trained.recipe
    base = recipe.base.name
    if recipe.base.kind == "small":
        net = how = "a small net, trained from scratch"
    else:
        net, how = base, f"{base}, tuned for {recipe.epochs} epochs"
    if trained.head is not None:
        tuned = f", trained on {len(recipe.tuned_on):,} images" if recipe.tuned_on else ""
        how = f"a head on the features of {net}{tuned}"
    return {
        "name": recipe.name,
        "description": f"{len(recipe.class_names)} classes, recognised by {how}.",
        "base": base,
        "fine_tuned": options.fine_tune,
        "fine_tuning": trained.tuning,
        "advice": _advice_to_tune(options, trained),
        "images": {each: len(images.rows(each)) for each in PARTS},
        "skipped": len(images.skipped),
        "waiting": [
            each._asdict() | {"missing": each.missing, "text": str(each)}
            for each in images.folder.waiting
        ],
    }


def _advice_to_tune(options: ImageOptions, trained: TrainedImages) -> str:
    """Return how to tune the whole net, or to tune it anew, if that may pay; else ""."""
    head, recipe = trained.head, trained.recipe
    if head is None or trained.tuning or not may_pay(head.accuracy) or recipe.base.kind == "onnx":
        return ""
    is_whole = options.fine_tune or options.base == NONE
    return (
        f"tuning the whole net{' anew' * bool(recipe.tuned_on)} may pay: {GAINS}. Stop the pool, "
        f"then run: dist-net train --resume --run-dir RUN{'' if is_whole else ' --fine-tune auto'}"
    )


def _thumbnails(images: PreparedImages, content: dict[str, Any]) -> dict[str, bytes]:
    """Return the PNG files of the images that a report shows, by image name."""
    shown = {each["image"] for each in (*content["mistakes"], *content["doubtful"])}
    samples = images.samples()
    pixels = np.empty((1, *samples.shape), np.uint8)
    thumbnails = {}
    for index, row in enumerate(images.rows().tolist()):
        name = images.folder.images[row].path
        if name in shown:
            samples.read(np.array([index]), pixels)
            thumbnails[name] = png_of(pixels[0], THUMBNAIL_SIDE)
    return thumbnails


def _variants(images: PreparedImages, options: ImageOptions) -> dict[str, bytes]:
    """Return the PNG files of random variants of training images, by ``VARIANT`` and number."""
    samples = images.samples(TRAIN)
    indices = np.linspace(0, len(samples) - 1, VARIANTS).astype(np.int64)
    pixels = np.empty((VARIANTS, *samples.shape), np.uint8)
    seed = options.run.seed
    AugmentedImages(samples, options.augmentation).read_augmented(indices, pixels, seed, epoch=0)
    return {
        f"{VARIANT}{number}": png_of(each, THUMBNAIL_SIDE) for number, each in enumerate(pixels)
    }


def draw_report(content: Mapping[str, Any], thumbnails: Mapping[str, bytes], path: Path) -> None:
    """Draw a report's ``content`` as a PNG: curves, matrix, classes, the worst mistakes.

    ``thumbnails`` maps image names to PNG files. Raise MissingExtraError, and OSError.
    """
    names = [each["name"] for each in content["classes"]]
    figure = new_figure(14, 13)
    figure.suptitle(f"{content['name']}: {content['description']}", **AS_IT_IS)
    rows = (3, 6, 3) if content["curves"] else (6, 3)
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=rows)
    *curves, tables, images = parts[:, 0]
    for part in curves:
        for axes, quantity in zip(part.subplots(1, 2), ("loss", "accuracy"), strict=True):
            draw_curve(axes, content["curves"], quantity)
    matrix, bars = tables.subplots(1, 2)
    draw_confusion(matrix, np.array(content["confusion"]), names)
    figures = content["measured"][-1]
    low, high = figures["accuracy_interval"]
    right = f"{figures['right']:,} of {figures['images']:,} right ({low:.0%} to {high:.0%})"
    matrix.set_title(f"{figures['data']}\n{right}")
    draw_classes(bars, content)
    images.suptitle("the most confident mistakes")
    shown = images.subplots(1, MAX_SHOWN)
    for axes in shown:
        axes.axis("off")
    for axes, mistake in zip(shown, content["mistakes"], strict=False):
        _draw_image(axes, mistake, thumbnails)
    figure.savefig(path, dpi=90, format="png")


def draw_classes(axes: Axes, content: Mapping[str, Any]) -> None:
    classes = content["classes"][:MAX_BARS]
    places = np.arange(len(classes))
    for offset, quantity in ((-0.2, "precision"), (0.2, "recall")):
        shares = [each[quantity] or 0 for each in classes]
        axes.barh(places + offset, shares, 0.38, label=quantity)
    axes.set_yticks(places, [each["name"] for each in classes], **AS_IT_IS)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_title("by class")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)


def _draw_image(axes: Axes, mistake: Mapping[str, Any], thumbnails: Mapping[str, bytes]) -> None:
    if mistake["image"] in thumbnails:
        axes.imshow(np.asarray(Image.open(BytesIO(thumbnails[mistake["image"]]))))
    title = f"{mistake['answer']} {mistake['probability']:.0%}\n(labelled {mistake['label']})"
    axes.set_title(title, fontsize="small", **AS_IT_IS)
