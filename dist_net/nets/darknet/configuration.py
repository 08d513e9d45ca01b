"""Read, check and write Darknet's .cfg files: sections of options in the order of the layers.

The format is the Darknet program's (its ``read_cfg`` and ``parse_network_cfg``): ``[kind]`` begins
a section, ``option=value`` belongs to the section above it, blanks are ignored, and a line that
begins with ``#`` or ``;`` is a comment. The first section, ``[net]``, describes the input. This
module lists the valid options; ``layers`` defines their meaning.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dist_net.errors import ModelFileError
from dist_net.ground.files import read_regular_file, written
from dist_net.ground.spelling import suggestion

Number = TypeVar("Number", int, float)

LARGEST_FILE_BYTES = 1 << 20
"""Thirty times the longest .cfg of Darknet itself: a larger file is not a .cfg."""

LARGEST_NUMBER = 2**31 - 1
"""The largest integer of the Darknet program."""

ALIASES = {
    "network": "net",
    "conv": "convolutional",
    "conn": "connected",
    "max": "maxpool",
    "avg": "avgpool",
    "soft": "softmax",
}

OF_TRAINING_EVERYWHERE = "clip learning_rate onlyforward smooth stopbackward truth"
"""Options of every layer that the Darknet program reads only in training."""

OPTIONS = {
    "net": "height width channels inputs",
    "convolutional": "batch_normalize filters size stride pad padding groups activation",
    "connected": "batch_normalize output activation",
    "maxpool": "size stride padding",
    "avgpool": "",
    "dropout": "probability",
    "route": "layers",
    "shortcut": "from activation alpha beta",
    "softmax": "groups temperature",
    "crop": "crop_height crop_width noadjust",
    "cost": "",
}

OF_TRAINING = {
    "net": "batch subdivisions time_steps notruth random momentum decay adam B1 B2 eps max_crop "
    "min_crop max_ratio min_ratio center angle aspect saturation exposure hue policy burn_in "
    "power step scale steps scales gamma max_batches",
    "convolutional": "dot",
    "softmax": "noloss",
    "crop": "flip angle saturation exposure shift",
    "cost": "type scale ratio noobj thresh",
}

ONLY_ZERO = "binary xnor flipped spatial dontload dontsave dontloadscales"
"""Options of the program for which this project accepts only the usual value, 0."""

ELSEWHERE = (
    "activation batchnorm crnn deconv deconvolutional detection gru iseg l2norm local logistic "
    "lrn lstm normalization region reorg rnn upsample yolo"
)
"""Layers of the Darknet program that no classifier on its site uses; not supported."""


@dataclass(frozen=True)
class Section:
    """``[kind]`` and its options as strings; it begins in line ``line`` of the file ``source``.

    ``kind`` is the layer's long name. The methods convert an option to a value, or raise
    ``ModelFileError``, which names the file, the line and the expected value.
    """

    kind: str
    options: dict[str, str]
    line: int
    lines: dict[str, int] = field(default_factory=dict, compare=False)
    source: str = field(default="", compare=False)

    def integer(self, option: str, default: int, least: int = 0) -> int:
        return self._value(option, default, int, least)

    def number(self, option: str, default: float, least: float = -LARGEST_NUMBER) -> float:
        return self._value(option, default, float, least)

    def flag(self, option: str) -> bool:
        """Return whether an option of 0 or 1 is 1; a missing option is 0."""
        value = self.integer(option, 0)
        if value > 1:
            raise self.error(f"{option}={value}: expected 0 or 1", option)
        return value == 1

    def text(self, option: str, default: str) -> str:
        return self.options.get(option, default)

    def integers(self, option: str) -> list[int]:
        """Return one or more whole numbers, separated by commas; they may have signs."""
        value = self.options.get(option, "")
        try:
            return [int(each) for each in value.split(",")]
        except ValueError:
            raise self.error(
                f"{option}={value}: expected whole numbers separated by commas", option
            ) from None

    def error(self, problem: str, option: str | None = None) -> ModelFileError:
        """Return an error about this section or an option of it."""
        line = self.line if option is None else self.lines.get(option, self.line)
        return ModelFileError(f"{self.source}:{line}: [{self.kind}] {problem}")

    def _value(self, option: str, default: Number, kind: type[Number], least: float) -> Number:
        text = self.options.get(option)
        if text is None:
            return default
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= LARGEST_NUMBER:  # also rejects nan
            wanted = "a whole number" if kind is int else "a number"
            bound = f" of at least {least}" if least > -LARGEST_NUMBER else ""
            raise self.error(f"{option}={text}: expected {wanted}{bound}", option)
        return value


@dataclass(frozen=True)
class Configuration:
    """The sections of a network, ``[net]`` first; ``name`` is the file's name or another."""

    sections: tuple[Section, ...]
    name: str

    @property
    def net(self) -> Section:
        return self.sections[0]

    @property
    def layers(self) -> tuple[Section, ...]:
        """The sections of the layers, numbered from 0 as in Darknet."""
        return self.sections[1:]


def read_configuration(path: Path) -> Configuration:
    """Return the network of a .cfg file. Raise ``ModelFileError``; see ``parse_configuration``."""
    try:
        text = read_regular_file(path, LARGEST_FILE_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelFileError(f"{path}: {reason}; expected a network's .cfg file") from error
    return parse_configuration(text, str(path))


def parse_configuration(text: str, name: str) -> Configuration:
    """Return the network that ``text`` describes; errors call the file ``name``.

    Options that only Darknet's training reads are preserved without effect. Raise
    ``ModelFileError``, which names the line, for an unknown layer or option (with a
    suggestion), a repeated option, an option before the first section, and a text that does not
    begin with ``[net]`` or has no layer.
    """
    sections: list[Section] = []
    for number, line in enumerate(text.splitlines(), 1):
        content = re.sub(r"\s", "", line)
        if not content or content[0] in "#;":
            continue
        try:
            if content[0] == "[":
                sections.append(_opened(content, number, name))
            else:
                _add_option(sections, content, number)
        except ModelFileError as error:
            raise ModelFileError(f"{name}:{number}: {error}") from None
    if not sections or sections[0].kind != "net":
        raise ModelFileError(
            f"{name}:{sections[0].line if sections else 1}: the first section is "
            f"{'[' + sections[0].kind + ']' if sections else 'missing'}; expected [net]"
        )
    if len(sections) == 1:
        raise ModelFileError(f"{name}: has no layer; expected one section for each")
    return Configuration(tuple(sections), name)


def _opened(content: str, line: int, name: str) -> Section:
    if not content.endswith("]"):
        raise ModelFileError(f"{content!r}: expected [kind] on a line")
    kind = content[1:-1]
    kind = ALIASES.get(kind, kind)
    if kind in ELSEWHERE.split():
        raise ModelFileError(
            f"Darknet's layer [{kind}] is not supported; expected a classifier of "
            f"{', '.join(sorted(OPTIONS.keys() - {'net'}))}"
        )
    if kind not in OPTIONS:
        raise ModelFileError(f"unknown layer [{kind}]; {suggestion(kind, [*OPTIONS, *ALIASES])}")
    return Section(kind, {}, line, {}, name)


def _add_option(sections: list[Section], content: str, line: int) -> None:
    option, equals, value = content.partition("=")
    if not equals or not option:
        raise ModelFileError(f"{content!r}: expected [kind] or option=value")
    if not sections:
        raise ModelFileError(f"{option} before the first section; expected [net]")
    section = sections[-1]
    known = [*OPTIONS[section.kind].split(), *_of_training(section.kind), *ONLY_ZERO.split()]
    if option not in known:
        nearest = suggestion(option, known)
        raise ModelFileError(f"[{section.kind}] has no option {option}; {nearest}")
    if option in section.options and option in _of_training(section.kind):
        return  # Darknet's files have a line for training and another for tests; use the first
    if option in section.options:
        raise ModelFileError(
            f"[{section.kind}] repeats {option} of line {section.lines[option]}; expected it once"
        )
    if option in ONLY_ZERO.split() and value != "0":
        raise ModelFileError(
            f"[{section.kind}] {option}={value} is a Darknet variant that is not "
            f"supported; expected 0"
        )
    section.options[option] = value
    section.lines[option] = line


def _of_training(kind: str) -> list[str]:
    return f"{OF_TRAINING.get(kind, '')} {OF_TRAINING_EVERYWHERE}".split()


def configuration_text(configuration: Configuration) -> str:
    """Return the text of a .cfg file: all options in order, without comments."""
    sections = [section(each.kind, **each.options) for each in configuration.sections]
    return "\n\n".join(sections) + "\n"


def section(kind: str, **options: str | float) -> str:
    return "\n".join([f"[{kind}]", *(f"{name}={value}" for name, value in options.items())])


def write_configuration(configuration: Configuration, path: Path) -> None:
    """Write ``configuration`` to a .cfg file atomically; raise ``FileWriteError``."""
    with written(path) as file:
        file.write(configuration_text(configuration).encode())
