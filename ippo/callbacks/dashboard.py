"""TensorBoard as a place to see whether a run goes well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.tensorboard.summary import hparams

from ippo.callbacks.influence_filter import InfluenceFilterCallback
from ippo.callbacks.tensorboard.answers import Answer, first_answers, page
from ippo.callbacks.tensorboard.described import write
from ippo.callbacks.tensorboard.layout import layout
from ippo.errors import require
from ippo.ppo.module import PPOModule

_FINAL = ("em", "em_greedy", "mv", "pass@k", "false_positive", "hacked", "reward")


class Dashboard(L.Callback):
    """Makes a run of a :class:`ippo.PPOModule` readable in TensorBoard; with other loggers it is silent.

    - *Custom scalars*: "Is it going well?", the curves that matter with what they began at (``baseline/em``,
      ``baseline/gold_loss``), and "Is the machinery sound?".
    - *HParams*: the run's settings with its figures, a row a run of a ``--logdir`` of several; ``final/*`` of one that
      was tested when it was trained.
    - *Text*: answers to the same validation problems, at first and now.

    What a curve shows stands at its name where the logger is a
    :class:`ippo.callbacks.tensorboard.DescribedCurves`. For a first point before training, call ``trainer.validate``
    before ``trainer.fit``.

    Args:
        settings: the columns of the hparams table, plain values; the module's PPO and sampling options by default.
        answers: validation problems whose answers are shown.

    Raises:
        UsageError: if an option is wrong; at the start, if the module is no :class:`ippo.PPOModule`.
    """

    def __init__(self, settings: Mapping[str, bool | int | float | str] | None = None, answers: int = 10) -> None:
        require(answers >= 0, "answers", answers, "use 0 (none) or more")
        for name, value in (settings or {}).items():
            plain = isinstance(value, bool | int | float | str)
            require(plain, f"settings[{name!r}]", value, "use a number, a text, or true or false")
        self.settings, self.answers = settings, answers
        self.baseline: dict[str, float] = {}
        self.first_answers: list[Answer] = []
        self.first_at = self.latest_at = 0  # iterations done by then
        self.latest_answers: list[Answer] = []
        self._filters: list[str] = []
        self._trained = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        ours, remedy = isinstance(pl_module, PPOModule), "leave the callback out: it shows runs of ippo.PPOModule"
        require(ours, "Dashboard", type(pl_module).__name__, remedy)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._filters = [one.name for one in callbacks if isinstance(one, InfluenceFilterCallback)]
        settings = self.settings if self.settings is not None else _options(pl_module)
        final = (f"final/{name}" for name in _FINAL)
        curves = ("val/em", "reward/mean", *(f"{name}/kept_fraction" for name in self._filters))
        figures = dict.fromkeys((*final, *curves))
        self._trained = False
        for logger in _loggers(trainer):
            logger.experiment.add_custom_scalars(layout(self._filters))
            experiment, start, _ = hparams(dict(settings), figures)
            for summary in (experiment, start):  # the figures are read from their curves, whenever these come
                write(logger.experiment, summary)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._hold(trainer, "gold_loss", [f"{name}/gold_loss" for name in self._filters], trainer.current_epoch)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.latest_answers = []

    def on_answers(self, trainer: L.Trainer, pl_module: L.LightningModule, table: dict[str, Sequence[Any]]) -> None:
        """Called with the columns of each batch of judged answers, in a test too."""
        if trainer.validating:
            more = self.answers - len(self.latest_answers)
            self.latest_answers += first_answers(table, cast("PPOModule", pl_module).evaluation.samples, more)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        step = trainer.current_epoch + (trainer.state.fn == TrainerFn.FITTING)  # epochs are iterations
        self._hold(trainer, "em", ["val/em"], step)
        self.latest_at = step
        if not self.first_answers:
            self.first_answers, self.first_at = self.latest_answers, step
        if self.latest_answers:
            for logger in _loggers(trainer):
                text = page(self.first_answers, self.latest_answers, step - self.first_at)
                logger.experiment.add_text("answers", text, step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in _loggers(trainer):
            write(logger.experiment, hparams({}, {})[2])
        self._trained = True

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What a test after the training finds is final; one before it has the same curves, ``test/*``."""
        found = {name: trainer.callback_metrics.get(f"test/{name}") for name in _FINAL}
        if self._trained:
            for logger in _loggers(trainer):
                final = {f"final/{name}": float(value) for name, value in found.items() if value is not None}
                logger.log_metrics(final, trainer.current_epoch)

    def _hold(self, trainer: L.Trainer, name: str, tags: Sequence[str], step: int) -> None:
        """Draw on the line of a curve's first value."""
        found = [float(trainer.callback_metrics[tag]) for tag in tags if tag in trainer.callback_metrics]
        if found:
            self.baseline.setdefault(name, found[0])
            for logger in _loggers(trainer):
                logger.log_metrics({f"baseline/{name}": self.baseline[name]}, step)

    def state_dict(self) -> dict[str, Any]:
        return {"baseline": self.baseline, "first_answers": self.first_answers, "first_at": self.first_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.baseline, self.first_answers = dict(state_dict["baseline"]), list(state_dict["first_answers"])
        self.first_at = state_dict["first_at"]


def _loggers(trainer: L.Trainer) -> list[TensorBoardLogger]:
    """Those of TensorBoard, on the rank that writes."""
    return [one for one in trainer.loggers if isinstance(one, TensorBoardLogger)] if trainer.is_global_zero else []


def _options(module: L.LightningModule) -> dict[str, Any]:
    """The options of a PPO module that are plain values."""
    groups = {name: vars(getattr(module, name)) for name in ("ppo", "sampling")}
    return {
        f"{group}.{name}": value
        for group, options in groups.items()
        for name, value in options.items()
        if isinstance(value, bool | int | float | str)
    }
