"""What a run's journal shows of the samples that it applied."""

from collections import Counter
from pathlib import Path

from dist_net.ground.checkpoint import read_checkpoint
from dist_net.training.server.journal import read_journal
from dist_net.training.server.journal_records import Applied


def assert_each_sample_once(run: Path, samples: int, journal: str = "journal") -> int:
    """Check that each sample of the epochs begun is applied once, or left to do in the checkpoint.

    Return the number of these epochs. That the weights contain what the journal lists is what
    ``dist-net replay`` shows.
    """
    checkpoint = read_checkpoint(run / "checkpoint.safetensors")
    times: Counter[tuple[int, int]] = Counter()
    for epoch, start, stop in checkpoint.ledger["remaining"]:
        times.update((epoch, sample) for sample in range(start, stop))
    for record in read_journal(run / journal).records():
        if isinstance(record, Applied) and record.version <= checkpoint.version:
            epoch, start, stop, *_ = record.steps
            times.update((epoch, sample) for sample in range(start, stop))
    epochs: int = checkpoint.ledger["next_epoch"]
    assert times == {(epoch, sample): 1 for epoch in range(epochs) for sample in range(samples)}
    return epochs
