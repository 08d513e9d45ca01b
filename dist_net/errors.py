"""Every exception of the project, one leaf per cause; imports nothing.

A message says what happened, with the value, what was expected, and what to do. ``exit_code`` is
what a command ends with: 2 for bad usage or bad input, 1 when the work itself failed.
"""


class DistNetError(Exception):
    """Root of every error that this project raises on purpose."""

    exit_code = 1


class BadInputError(DistNetError):
    """What the caller gave cannot be used; nothing was started."""

    exit_code = 2


# Expressions and plans


class ShapeError(BadInputError):
    """The shapes of an operation's inputs do not fit together."""


class DTypeError(BadInputError):
    """The dtypes of an operation's inputs do not fit together."""


class IndexRangeError(BadInputError):
    """An index, such as a sample's label, lies outside of what it is to select from."""


class GraphError(BadInputError):
    """An expression graph was asked for something that it does not contain."""


class GradientError(DistNetError):
    """An operation's VJP contradicts the slope of its values."""


class ParameterError(BadInputError):
    """A layer's parameters, or the vector that they lie in, are not what was declared."""


# Recipes


class UnknownRecipeError(BadInputError):
    """No recipe has this name, and no file this path."""


class RecipeError(BadInputError):
    """A recipe's file does not run, or what it describes does not fit together."""


class RecipeChangedError(BadInputError):
    """The Python files that a run carries are not those that its model was trained with."""


class UntrustedRecipeError(BadInputError):
    """A run's recipe is code that somebody else may have written, and nobody said to trust it."""


# The wire


class ProtocolError(DistNetError):
    """A message, received or to be sent, is not of this protocol."""


class AddressError(BadInputError):
    """An address is malformed, or its host name is unknown."""


class ListenError(BadInputError):
    """This process cannot listen on an address: in use, not this host's, or not permitted."""


class InsecureAddressError(BadInputError):
    """An address reaches beyond this host, and no keys were given."""


class KeyFileError(BadInputError):
    """A key file is missing, malformed, readable by others, or would be overwritten."""


class NoAnswerError(DistNetError):
    """Nobody answered at an address within the time allowed."""


class SegmentError(DistNetError):
    """A shared-memory segment cannot be made, or cannot be attached from this process."""


# Optimizers


class UnknownOptimizerError(BadInputError):
    """No optimizer has this name."""


class HyperParameterError(BadInputError):
    """A setting of an optimizer or a schedule lies outside its range."""


# Data


class UnknownDatasetError(BadInputError):
    """No dataset has this name."""


class DatasetError(BadInputError):
    """Arrays do not form a dataset: shapes, dtypes or labels do not fit together."""


class DataFileError(BadInputError):
    """A data file is corrupt, cut short, or not what it should be."""


class SourceError(DistNetError):
    """One source of a published file could not deliver it; another one may."""


class DownloadError(SourceError):
    """A file could not be downloaded."""


class DebianPackageError(SourceError):
    """A Debian package is not installed, could not be fetched, or lacks the file."""


class ContentError(SourceError):
    """What a source delivered is not the published content."""


class CacheError(DistNetError):
    """The cache directory cannot be written or read."""


class NotFetchedError(DistNetError):
    """None of the sources could deliver a dataset, or the weights of a net."""


# Darknet's formats


class ConfigurationError(BadInputError):
    """A .cfg file cannot be read, or does not describe a network."""


class WeightsFileError(BadInputError):
    """A .weights file is damaged, or is not of the network that it is given for."""


class UnknownClassifierError(BadInputError):
    """No published classifier has this name."""


class NetworkWriteError(DistNetError):
    """A .cfg or .weights file could not be written."""


class LabelsError(BadInputError):
    """A file of labels cannot be read, or has not one for each class."""


class PreparedKernelsError(DistNetError):
    """Prepared kernels cannot be written beside the weights."""


class ImageError(BadInputError):
    """A picture cannot be read, or is none that can be answered for."""


class PredictionError(DistNetError):
    """What a net said of a picture is not finite."""


# Models by what a person calls them


class UnknownModelError(BadInputError):
    """What was given as a model is none."""


class ModelOptionError(BadInputError):
    """An option that this model needs is missing, or one was given that it has no use for."""


# The parameter server


class SettingError(BadInputError):
    """A setting of a run has a value that it cannot have."""


class CheckpointMissingError(BadInputError):
    """There is no file where a checkpoint was expected, or it cannot be opened."""


class NotACheckpointError(BadInputError):
    """A file was given as a checkpoint and is something else."""


class CheckpointDamagedError(BadInputError):
    """A checkpoint is cut short, or its parts contradict each other."""


class CheckpointFormatError(BadInputError):
    """A checkpoint was written by a later version of this project."""


class CheckpointMismatchError(BadInputError):
    """A checkpoint is of another model or another run than it was asked to be."""


class CheckpointWriteError(DistNetError):
    """A checkpoint could not be written; the one before it is still there."""


class JoinRefusedError(BadInputError):
    """The server does not let this worker join its run."""


class WorkerRefusedError(DistNetError):
    """The server dismissed this worker for what it sent."""


class ServerLostError(DistNetError):
    """The parameter server does not answer any more."""


# Asking the inference pool


class QuestionError(BadInputError):
    """What a model of the pool was asked cannot be answered: it does not fit the model."""


class ModelNotServedError(BadInputError):
    """The pool serves no such model, or no such version of it."""


class PoolUnavailableError(DistNetError):
    """The pool cannot answer now: it is full, too late already, draining, or has no worker.

    ``retry_after_s``: when asking again may help; 0: unknown.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestExpiredError(DistNetError):
    """The pool is there, but did not answer a request within the time that it had."""


class RequestFailedError(DistNetError):
    """A request ended the workers that tried it, or its outputs are not numbers."""


class RequestCancelledError(DistNetError):
    """The result was asked for of a request that had been cancelled."""


class ReloadError(DistNetError):
    """A model could not be read again, or not be put away; what was served before still is."""


# Asking it over HTTP


class BadRequestError(BadInputError):
    """A request over HTTP is not what its address expects."""


class RequestTooLargeError(BadInputError):
    """A request over HTTP, or what it decompresses to, is larger than the limit."""


class UnsupportedEncodingError(BadInputError):
    """The body of a request is compressed in a way that is not known here."""


class UnsupportedRequestError(BadInputError):
    """A part of the Open Inference Protocol, or of its extensions, that is not offered here."""


# Runs


class RunDirectoryError(BadInputError):
    """A run's directory is missing, taken, or cannot be written."""


class ProcessFailedError(DistNetError):
    """A process of the run ended before its time, or did not start."""


class RunOverdueError(DistNetError):
    """A run was not done within the time allowed."""


class MissingExtraError(DistNetError):
    """Something needs a package that is not installed."""


class InterruptedRunError(DistNetError):
    """The run was interrupted, or this worker left it; the run's checkpoint is on disk."""

    exit_code = 130


# Benchmarks


class BenchmarkError(DistNetError):
    """A measurement could not be completed."""


# The workers of the inference pool


class ModelLoadError(DistNetError):
    """A worker cannot load a version of a model: its arrays or its recipe are not to be had."""


class GatewayLostError(DistNetError):
    """The gateway of the inference pool does not answer any more."""
