"""``dist-net labels``: list, set, withdraw and export the labels that people set for a run."""

import argparse
import csv
import os
import pwd
import shutil
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from PIL import Image

from dist_net.cli.parser import add_json_argument, print_json
from dist_net.data.collection import Collection, Label
from dist_net.data.image_folder import ImageFolder, file_digest, require_apart
from dist_net.data.image_split import TEST, TRAIN, VALIDATION
from dist_net.errors import CollectionError, FileWriteError, ImageError
from dist_net.ground.printable import printable
from dist_net.images.decoding import load_image
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.image_options import ImageOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="a run on a folder of images")
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", help="default: list every label that was set"
    )
    text = "set the label of an image, which outranks its folder or CSV file"
    one = actions.add_parser("set", help=text)
    one.add_argument("image", metavar="IMAGE", type=Path, help="its path, or its file's SHA-256")
    one.add_argument("label", metavar="LABEL", nargs="?", help="the name of a class")
    one.add_argument("--none", action="store_true", help="the image is of none of the classes")
    one.add_argument("--new", action="store_true", help="LABEL begins a class")
    one.add_argument("--by", metavar="NAME", default=_user(), help="who sets it (default: you)")
    text = "withdraw labels; the next training is as if they had never been set"
    back = actions.add_parser("withdraw", help=text)
    back.add_argument("numbers", metavar="NUMBER", type=int, nargs="*", help="as listed")
    back.add_argument("--by", metavar="NAME", help="withdraw all labels that NAME set")
    text = "write the labels that stand, as folders of images or as a CSV file"
    export = actions.add_parser("export", help=text)
    export.add_argument("to", metavar="PATH", type=Path, help="a new folder, or a file *.csv")
    add_json_argument(parser)
    for action in (one, back, export):
        # An action's parser accepts what the command's does.
        for option in ("--json", "--debug"):
            text = argparse.SUPPRESS
            action.add_argument(option, action="store_true", default=text, help=text)


def run(arguments: argparse.Namespace) -> int:
    """Run the action; raise ``CollectionError``, or ``DatasetError`` if the folder is gone."""
    directory = RunDirectory.open(arguments.run)
    if not directory.folder.exists():
        raise CollectionError(f"{arguments.run} is no run on a folder of images; expected one")
    options = ImageOptions.read(directory.folder)
    if arguments.action == "withdraw" and not (arguments.numbers or arguments.by):
        raise CollectionError("nothing to withdraw; expected numbers of labels, or --by NAME")
    if arguments.action is None and not directory.collection.exists():
        _print([], arguments.json)  # to look writes nothing
        return _print_advice(directory)
    with Collection(directory.collection) as collection:
        if arguments.action == "set":
            _print([_set(arguments, options.read_folder(directory), collection)], arguments.json)
        elif arguments.action == "withdraw":
            numbers = collection.withdraw(arguments.numbers, arguments.by)
            labels = [each for each in collection.labels() if each.number in numbers]
            _print(labels, arguments.json)
        elif arguments.action == "export":
            _export(arguments.to, options.read_folder(directory))
        else:
            _print(collection.labels(), arguments.json)
            _print_advice(directory)
    return 0


def _user() -> str:
    with suppress(KeyError):  # a user of a container need not have a name
        return pwd.getpwuid(os.getuid()).pw_name
    return str(os.getuid())


def _set(arguments: argparse.Namespace, folder: ImageFolder, collection: Collection) -> Label:
    if (arguments.label is None) is not arguments.none:
        raise CollectionError(f"label {arguments.label!r}: expected LABEL or --none, and not both")
    path: Path = arguments.image
    if path.is_file():
        is_listed = path.resolve().is_relative_to(folder.root.resolve())
        load_image(path)  # raises ImageError
        image: str | bytes = file_digest(path) if is_listed else path.read_bytes()
    else:
        image = str(path)
        known = {each.image for each in collection.labels()}
        if image not in known and not any(
            file_digest(folder.root / each.path) == image for each in folder.images
        ):
            raise ImageError(
                f"no image {image[:80]}; expected the path of an image, or the SHA-256 of one "
                f"of {folder.root} or of an earlier label"
            )
    return collection.set_label(
        image, arguments.label, arguments.by, folder.class_names, is_new=arguments.new
    )


def _print(labels: list[Label], as_json: bool) -> None:
    if as_json:
        print_json([each._asdict() for each in labels])
        return
    for each in labels:
        label = "none of the classes" if each.label is None else each.label
        at = datetime.fromtimestamp(each.at).strftime("%Y-%m-%d %H:%M:%S")
        state = f"  withdrawn by {each.withdrawn_by}" if each.withdrawn_by else ""
        print(f"{each.number:>6}  {at}  {each.teacher}  {each.image[:12]}  {label}{state}")
    print(f"{len(labels):,} labels", file=sys.stderr)


def _print_advice(directory: RunDirectory) -> int:
    """Print which images are missing, by the report of the last training; return 0."""
    report = directory.read_report()
    for each in report.get("waiting", ()):
        print(f"at the last training, {printable(each['text'])}", file=sys.stderr)
    for each in (report.get("learning"), report):
        if each and (advice := each.get("advice")):
            print(printable(advice), file=sys.stderr)
    return 0


def _export(to: Path, folder: ImageFolder) -> None:
    """Write what the next training uses: rows of path,label, or a folder to train on."""
    if to.exists():
        raise FileWriteError(f"{to} exists; expected the path of a new folder or file")
    require_apart(folder.root, to)
    sources = [folder.root.resolve() / each.path for each in folder.images]
    try:
        if to.suffix == ".csv":
            with to.open("w", encoding="utf-8", newline="") as file:
                labels = (each.class_name for each in folder.images)
                csv.writer(file).writerows([("path", "label"), *zip(sources, labels, strict=True)])
        else:
            for image, source in zip(folder.images, sources, strict=True):
                place = to / _part(image.part, folder) / image.class_name
                place.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, place / f"{file_digest(source)[:16]}{_suffix(source)}")
    except OSError as error:
        raise FileWriteError(f"{to}: {error.strerror}; expected a disk with room") from error
    print(f"{len(sources):,} images of {len(folder.class_names)} classes: {to}")


def _part(part: str, folder: ImageFolder) -> str:
    """Return the folder of a part; "" if training splits all images by itself."""
    if part == VALIDATION and not folder.has_validation:
        part = TRAIN
    return part if folder.has_validation or folder.of_part(TEST) else ""


def _suffix(path: Path) -> str:
    """Return an image's suffix; one that is stored has none."""
    if path.suffix:
        return path.suffix
    with Image.open(path) as image:
        return f".{image.format}".lower()
