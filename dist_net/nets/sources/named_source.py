"""The source that a user names: a name, a path, an address or a join token, with options."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dist_net.data import Progress
from dist_net.errors import ModelSourceError
from dist_net.ground.spelling import did_you_mean, suggestion
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.darknet.configuration import read_configuration
from dist_net.nets.darknet.published import PUBLISHED, fetch_weights, imagenet_labels
from dist_net.nets.onnx_gate import PixelOptions, onnx_files
from dist_net.nets.run_directory import RunDirectory, suggest_runs
from dist_net.nets.sources.followed_run import FollowedRun
from dist_net.nets.sources.found_model import (
    MODELS,
    NO_PRECISION,
    DarknetFiles,
    OnnxFile,
    PretrainedNet,
    RunFiles,
)
from dist_net.wire.security import CLIENT, PeerKeys
from dist_net.wire.serving_messages import MODEL_NAME
from dist_net.wire.token import TRAINING, JoinToken, is_token
from dist_net.wire.token_exchange import join_by_token
from dist_net.wire.transport import ServerAccess

RUN_PRECISION = "RUN,precision=SHARE: at least this share of a folder's answers is to be right"
LIVE = ("tcp://", "ipc://")
FILE_NAMES = "weights", "labels"
OPTION_NAMES = (*FILE_NAMES, "precision", *PixelOptions._fields)
NO_PIXEL_OPTIONS = PixelOptions()


ModelSource = DarknetFiles | PretrainedNet | RunFiles | OnnxFile | FollowedRun
"""Each source's ``read`` returns the current model, or raises a DistNetError."""


def files_of(source: ModelSource) -> list[Path]:
    """Return the files that a source reads and others may have written. Raise a DistNetError."""
    match source:
        case OnnxFile(path):
            return onnx_files(path)
        case DarknetFiles():
            return [source.weights()]
        case RunFiles(path) if path.is_dir():
            return [*path.iterdir()]
        case RunFiles(path):
            return [path, RunDirectory(path.parent).held_out]
        case _:
            return []


def model_source(
    named: "NamedSource", progress: Progress, keys: PeerKeys | None, trust_recipe: bool
) -> ModelSource:
    """Return the source that a user names; see ``NamedSource.open``."""
    _, model, weights, labels, pixels, _ = named
    if model in PUBLISHED:
        published = PUBLISHED[model]
        return DarknetFiles(
            published.configuration,
            lambda: weights or fetch_weights(published, progress),
            labels or imagenet_labels(),
        )
    if model == lite0.NAME:
        if weights is not None:
            raise ModelSourceError(f"{model} has its own weights; expected no --weights")
        return PretrainedNet(labels)
    path = Path(model)
    if path.suffix == ".cfg":
        return _configured(path, weights, labels)
    if not is_live(model) and not path.exists():
        known = did_you_mean(model, [lite0.NAME, *PUBLISHED])
        hint = known or suggest_runs(path) or f"expected {MODELS}"
        raise ModelSourceError(f"no model {model!r}; {hint}")
    if path.suffix == ".onnx" and weights is None:
        return OnnxFile(path, labels, pixels)
    if pixels != NO_PIXEL_OPTIONS:
        raise ModelSourceError(f"{model} has its own preprocessing; expected it for an .onnx file")
    if weights is not None:
        raise ModelSourceError(
            f"{model} is a run or an .onnx file, which has its own weights; expected no --weights"
        )
    if not is_live(model):
        return RunFiles(path, labels, progress, trust_recipe)
    return FollowedRun(*live_server(model, keys), labels, progress, trust_recipe)


def is_live(model: str) -> bool:
    """Return whether ``model`` names a parameter server, by its address or a join token."""
    return model.startswith(LIVE) or (is_token(model) and not Path(model).exists())


def live_server(place: str, keys: PeerKeys | None, role: str = CLIENT) -> ServerAccess:
    """Return the access to a parameter server, by its address and keys, or by a join token.

    A token is exchanged for a key of this role. Raise the errors of ``join_by_token``.
    """
    if not is_token(place):
        return ServerAccess(place, keys)
    token = JoinToken.parse(place)
    token.require_kind(TRAINING)
    return join_by_token(token, role)


def _configured(path: Path, weights: Path | None, labels: Path | None) -> ModelSource:
    read_configuration(path)
    if weights is None or labels is None:
        raise ModelSourceError(
            f"{path} defines an architecture without weights; also pass --weights FILE and "
            f"--labels FILE"
        )
    return DarknetFiles(lambda: read_configuration(path), lambda: weights, labels)


class NamedSource(NamedTuple):
    """The parts of ``NAME=SOURCE[,weights=FILE][,labels=FILE]``, PixelOptions and a precision."""

    name: str
    source: str
    weights: Path | None = None
    labels: Path | None = None
    pixels: PixelOptions = NO_PIXEL_OPTIONS
    precision: float | None = None

    def open(
        self, progress: Progress, keys: PeerKeys | None = None, trust_recipe: bool = False
    ) -> ModelSource:
        """Return the source of this name or path; see MODELS. A name takes precedence over a path.

        It may also be the address of a parameter server, to connect to with ``keys``, or a join
        token. A published classifier's weights are downloaded if necessary, reported to
        ``progress``, unless ``weights`` is their file. The lines of the file ``labels`` replace the
        class names. ``trust_recipe``: see ``read_run``. ``pixels`` applies to an .onnx file, and
        ``precision`` to a run on a folder.

        Raise ModelSourceError if there is no such model, or if a file is missing or not applicable,
        ModelFileError for a damaged .cfg file, and the errors of ``join_by_token``.
        """
        source = model_source(self, progress, keys, trust_recipe)
        if self.precision is None:
            return source
        if not isinstance(source, RunFiles):
            raise ModelSourceError(NO_PRECISION.format(self.source))
        return replace(source, precision=self.precision)

    @property
    def text(self) -> str:
        """The argument that ``parse_named_source`` parses to these parts."""
        files = {"weights": self.weights, "labels": self.labels}
        given = files | self.pixels._asdict() | {"precision": self.precision}
        options = (f",{name}={value}" for name, value in given.items() if value or value == 0)
        return f"{self.name}={self.source}{''.join(options)}"


def parse_named_source(text: str) -> NamedSource:
    """Parse a command-line argument that names one of several models.

    Without ``NAME=`` the model is named after its source, with "-" for invalid characters. Raise
    ModelSourceError for an invalid name, and for ``stats``, which a URL reserves for statistics.
    """
    source, *options = re.split(rf",({'|'.join(OPTION_NAMES)})=", text)
    name, _, rest = source.partition("=")
    if rest and re.fullmatch(r"[\w.-]+", name) and not Path(source).exists():
        source = rest
    else:
        name = ""
    if (wrong := re.search(r",(\w+)=", source)) and not Path(source).exists():
        hint = suggestion(wrong[1], OPTION_NAMES)
        raise ModelSourceError(f"{text} has an unknown option {wrong[1]}; {hint}")
    given = dict(zip(options[::2], options[1::2], strict=True))
    files = {name: Path(given.pop(name)) for name in FILE_NAMES if name in given}
    name = name or ("live" if is_live(source) else _name_after(source))
    if name == "stats" or not MODEL_NAME.fullmatch(name):
        raise ModelSourceError(
            f"a model cannot be served as {name!r}; expected NAME={source}, with a NAME other than "
            f"'stats' of 1 to 100 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    text = given.pop("precision", None)
    try:
        precision = None if text is None else float(text)
    except ValueError:
        raise ModelSourceError(f"precision={text}: expected a share, such as 0.9") from None
    weights, labels = map(files.get, FILE_NAMES)
    return NamedSource(name, source, weights, labels, PixelOptions(**given), precision)


def parse_pool_sources(
    texts: Sequence[str], weights: Path | None, labels: Path | None
) -> list[NamedSource]:
    """Parse the models of one pool; ``weights`` and ``labels`` are for a pool of one model.

    Raise ModelSourceError for names that are not unique, and for files of several models.
    """
    sources = [parse_named_source(text) for text in texts]
    if len({each.name for each in sources}) < len(sources):
        names = ", ".join(each.name for each in sources)
        raise ModelSourceError(f"the models are named {names}; expected unique names")
    if len(sources) > 1 and (weights or labels):
        raise ModelSourceError(
            "--weights or --labels with several models; expected the files after the source of "
            "their model: NAME=SOURCE,weights=FILE,labels=FILE"
        )
    return [
        each._replace(weights=each.weights or weights, labels=each.labels or labels)
        for each in sources
    ]


def _name_after(source: str) -> str:
    path = Path(source)
    if path.is_file() and path.name == RunDirectory(path.parent).checkpoint.name:
        path = path.parent.resolve()  # every run's checkpoint has the same name
    name = path.stem if path.suffix == ".cfg" or path.is_file() else path.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("-._")[:100] or "model"
