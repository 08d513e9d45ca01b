"""A run of a recipe from its options to its result, for the command and for Python."""

from typing import Any, NamedTuple, Self

from rich.console import Console

from dist_net.data import Dataset
from dist_net.errors import CheckpointError, MissingExtraError, RunDirectoryError
from dist_net.ground.checkpoint import read_resumable_checkpoint
from dist_net.ground.command_line import AUTO
from dist_net.ground.printable import counted
from dist_net.nets.recipes.recipe import LoadedRecipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.terminal import FetchProgress, announced
from dist_net.training.run.evaluation import Evaluation
from dist_net.training.run.local_run import RunHost
from dist_net.training.run.plots import plot_confusion, plot_training
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.run_outcome import write_outcome
from dist_net.training.run.standby_run import run_on
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState


class PreparedRun(NamedTuple):
    """A recipe, its dataset, and the validated options and settings of a run of both."""

    loaded: LoadedRecipe
    dataset: Dataset
    options: RunOptions
    settings: RunSettings

    @classmethod
    def read(cls, loaded: LoadedRecipe, options: RunOptions, console: Console) -> Self:
        """Read the dataset. Raise SettingError, and the errors of reading a dataset."""
        loading = announced(console, f"loading the dataset of {loaded.name}")
        with FetchProgress(console) as fetching, loading:
            dataset = loaded.recipe.load_dataset(fetching)
        options = options.on(loaded, dataset)
        return cls(loaded, dataset, options, options.settings(loaded))

    def train(self, host: RunHost) -> dict[str, Any]:
        """Train in the host's directory, or resume its run, and plot it; return the JSON object.

        Raise the errors of ``LocalRun.run``, and CheckpointError if the run cannot be resumed.
        """
        loaded, settings, directory = self.loaded, self.settings, host.directory
        console, workers = host.display.console, host.local.workers
        with directory.locked(), host.display:
            if directory.has_begun:
                # Raises if the checkpoint does not fit, before any file of the run is changed.
                RunState.resumed(settings, read_resumable_checkpoint(directory.checkpoint))
            elif directory.options.exists() and host.follows is None:
                console.print(f"{directory.path} has no checkpoint yet: it starts at version 0")
            console.print(
                f"{loaded.name}: {settings.parameter_count:,} parameters, {settings.samples:,} "
                f"samples, {counted(settings.epochs, 'epoch')} of minibatches of "
                f"{settings.batch_size}; "
                f"{AUTO if workers is None else counted(workers, 'worker')}"
            )
            training = run_on(host, loaded, self.dataset, self.options)
            try:
                return training.run()
            finally:
                draw(directory, loaded, self.dataset, training.evaluation, console)


def draw(
    directory: RunDirectory,
    loaded: LoadedRecipe,
    dataset: Dataset,
    evaluation: Evaluation | None,
    console: Console,
) -> None:
    """Plot the recorded part of the run, and write its outcome; print the reason if that fails."""
    try:
        records = directory.read_metrics()
        classes = evaluation if evaluation is not None and evaluation.labels.size else None
        if classes is not None and records:
            done = records[-1]["samples"]
            write_outcome(directory, done, loaded.recipe.model, dataset, classes)
        if records:
            with directory.replacing(directory.training_plot) as file:
                plot_training(records, len(dataset.train_targets), loaded.name, file)
        if classes is not None:
            with directory.replacing(directory.confusion_plot) as file:
                plot_confusion(classes.confusion, dataset.class_names, loaded.name, file)
    except MissingExtraError as error:
        console.print(str(error))
    except (OSError, RunDirectoryError, CheckpointError) as error:
        console.print(f"cannot plot the run: {error}")
