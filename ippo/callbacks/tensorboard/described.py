"""A TensorBoard logger whose curves say what they show."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, Summary
from tensorboard.plugins.scalar.metadata import create_summary_metadata
from torch.utils.tensorboard import SummaryWriter

from ippo.callbacks.tensorboard.descriptions import description


class DescribedCurves(TensorBoardLogger):
    """Lightning's logger, with a description of each curve that does not explain itself.

    TensorBoard shows it at the curve's ⓘ. It takes the description from a curve's first point, which is written here;
    all others go Lightning's way.
    """

    _told: frozenset[str] = frozenset()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers; of a curve that begins, with what it shows."""
        new = {} if self._prefix else {tag: description(tag) for tag in metrics if tag not in self._told}
        self._told |= new.keys()
        begun = {tag: text for tag, text in new.items() if text}
        super().log_metrics({tag: value for tag, value in metrics.items() if tag not in begun}, step)
        for tag, text in begun.items():
            about = create_summary_metadata(display_name=tag, description=text)
            about.data_class = DATA_CLASS_SCALAR  # without it TensorBoard's fast reader makes metadata of its own
            point = Summary.Value(tag=tag, simple_value=float(metrics[tag]), metadata=about)
            write(self.experiment, Summary(value=[point]), step)


def write(experiment: SummaryWriter, summary: Summary, step: int | None = None) -> None:
    """Write a summary as it is: what torch's writer has no method for."""
    experiment._get_file_writer().add_summary(summary, step)
