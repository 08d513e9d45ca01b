"""Every exception of the project, one leaf per cause; imports nothing.

A message states the problem, the value, the expected value and the remedy. A command exits with
``exit_code``: 2 for bad usage or bad input, 1 if the work itself failed.
"""

INTERRUPTED = 130
"""The exit code of a process that SIGINT ended, as a shell reports it."""


class DistNetError(Exception):
    """Root of every error that this project raises on purpose."""

    exit_code = 1


class BadInputError(DistNetError):
    """The caller's input cannot be used; nothing was started."""

    exit_code = 2


class ShapeError(BadInputError):
    """The shapes of an operation's inputs do not fit together."""


class DTypeError(BadInputError):
    """The dtypes of an operation's inputs do not fit together."""


class NotFiniteError(DistNetError):
    """A loss in training, or the outputs of a net for an image, are not finite."""


class IndexRangeError(BadInputError):
    """An index, such as a sample's label, is out of range."""


class GraphError(BadInputError):
    """An expression graph does not contain the requested expression."""


class GradientError(DistNetError):
    """An operation's VJP contradicts the slope of its values."""


class ParameterError(BadInputError):
    """A layer's parameters, or the vector that holds them, are not as declared."""


class RecipeError(BadInputError):
    """A recipe is unknown, its file does not run, or what it describes does not fit together."""


class RecipeChangedError(BadInputError):
    """The Python files in a run directory differ from the files used in training."""


class UntrustedRecipeError(BadInputError):
    """A run's recipe is code that others may have written, and the user did not trust it."""


class ProtocolError(DistNetError):
    """A message, received or to be sent, does not follow the protocol."""


class AddressError(BadInputError):
    """An address is malformed, its host name is unknown, or it cannot be listened on."""


class InsecureAddressError(BadInputError):
    """An address reaches beyond this host, and no keys were given."""


class KeyFileError(BadInputError):
    """A key file is missing, malformed, readable by others, or would be overwritten."""


class TokenError(BadInputError):
    """A token is cut, damaged, of another release or kind, expired, or revoked."""


class NoAnswerError(DistNetError):
    """No answer arrived from an address in time."""


class AccessRefusedError(NoAnswerError):
    """A server refuses this process's keys, or is not the server that they are for."""


class SegmentError(DistNetError):
    """A shared-memory segment cannot be made or attached."""


class DatasetError(BadInputError):
    """A dataset or a folder of images is unknown, damaged or another host's, or does not fit."""


class CollectionError(BadInputError):
    """A label cannot be set or withdrawn, or a run's log of labels cannot be used."""


class FetchError(DistNetError):
    """No source could deliver a published file, or the cache cannot be written or read."""


class FileWriteError(DistNetError):
    """A file, checkpoint or journal could not be written; an earlier file is unchanged."""


class SourceError(DistNetError):
    """A source lacks a published file, or has other content; the next source is tried."""


class ForeignModelError(BadInputError):
    """An ONNX file is damaged, too large, or has something that dist_net does not run."""


class EngineMismatchError(BadInputError):
    """ONNX Runtime computes other outputs than dist_net for the same model."""


class TensorInputError(BadInputError):
    """A foreign model refuses an input: its values or its sizes do not fit."""


class ModelFileError(BadInputError):
    """A .cfg file, weights or labels cannot be read, or belong to another network."""


class PreparedKernelsError(DistNetError):
    """Prepared kernels cannot be written beside the weights."""


class ImageError(BadInputError):
    """An image cannot be read, or cannot be classified."""


class ModelSourceError(BadInputError):
    """No model has this name or path, or it needs other options."""


class ExportError(BadInputError):
    """A model cannot be exported as requested, or no format is known for the file."""


class UnknownOptionError(BadInputError, TypeError):
    """A function of Python is called with an unknown option, or without an argument it needs."""


class UnknownAttributeError(BadInputError, AttributeError):
    """A model was used like one of another library."""


class SettingError(BadInputError):
    """A setting of a run, an optimizer or a service is unknown or out of range."""


class CheckpointError(BadInputError):
    """A checkpoint is missing or damaged, or belongs to another model, run or format."""


class NotACheckpointError(CheckpointError):
    """A file that was passed as a checkpoint is another kind of file."""


class JournalDamagedError(BadInputError):
    """A journal, or a record of it, is cut short or contradicts itself."""


class JournalMismatchError(BadInputError):
    """A journal is missing, of another run or format, or ends before the requested version."""


class SupersededError(DistNetError):
    """Another parameter server has taken over the run, or its directory."""

    exit_code = 3


class ReplayError(DistNetError):
    """A replay does not reproduce the run's weights."""


class JoinRefusedError(BadInputError):
    """The server refuses to admit this process."""


class WorkerRefusedError(DistNetError):
    """The server dismissed this worker because of a message that it sent."""


class ServerLostError(DistNetError):
    """The parameter server no longer answers."""


class BadRequestError(BadInputError):
    """A request violates the protocol or does not fit its model; ``http_code`` is the reply's."""

    def __init__(self, message: str, http_code: int = 400) -> None:
        super().__init__(message)
        self.http_code = http_code


class ModelNotServedError(BadInputError):
    """The pool does not serve this model, or this version of it."""


class PoolUnavailableError(DistNetError):
    """The pool is full, slow, draining or without workers; ``retry_after_s`` is 0 if unknown."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaExceededError(PoolUnavailableError):
    """The client sends more requests than its quota permits."""


class RequestExpiredError(DistNetError):
    """The pool did not answer a request in time."""


class RequestFailedError(DistNetError):
    """A request crashed the workers that tried it, or its outputs are not finite."""


class RequestCancelledError(DistNetError):
    """The caller waited for the result of a cancelled request."""


class ReloadError(DistNetError):
    """A model could not be reloaded or unloaded; the version before is still served."""


class RequestTooLargeError(BadInputError):
    """A request is larger than the limit."""


class RunDirectoryError(BadInputError):
    """A run's directory is missing, taken, or cannot be written."""


class ProcessFailedError(DistNetError):
    """A process ended too early, or did not start."""


class RayClusterError(BadInputError):
    """No Ray cluster runs at an address, or this host is not a node of it."""


class RunOverdueError(DistNetError):
    """A run was not done in time."""


class MissingExtraError(BadInputError):
    """A feature needs a package that is not installed."""


class InterruptedRunError(DistNetError):
    """The run was interrupted, or this worker left it; the run's checkpoint is on disk."""

    exit_code = 130


class ModelLoadError(DistNetError):
    """A version of a model cannot be loaded: its arrays or its recipe are missing or damaged."""
