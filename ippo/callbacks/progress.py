"""Lightning's progress bars, counting what a user of this package counts: warm-start steps and PPO iterations."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class WarmStartProgress(TQDMProgressBar):
    """Lightning's bar under a name that says which stage is running."""

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description("Warm start")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Metrics without their group, as the bar has little room; only validation keeps its own."""
        metrics = super().get_metrics(trainer, pl_module)
        kept = {name: value for name, value in metrics.items() if name != "v_num"}
        return {name if name.startswith("val/") else name.rpartition("/")[2]: value for name, value in kept.items()}


class RolloutProgress(WarmStartProgress):
    """One bar for the whole run: an epoch of a single batch makes Lightning's own start and end anew each iteration.

    During long rollouts :class:`ippo.rollout.engines.hf.HFGenerate` shows a bar of its own below it. What it says fits
    into eighty columns, also after hours: there is no percentage, and no rate, which the time left tells.
    """

    _FORM = "{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.train_progress_bar.bar_format = self._FORM
        self.train_progress_bar.set_description("Iteration")
        self.train_progress_bar.reset(total=trainer.max_epochs if (trainer.max_epochs or 0) > 0 else None)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.train_progress_bar.n = trainer.current_epoch

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.train_progress_bar.n = trainer.current_epoch + 1
        self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The same, with the share of what was kept under a short name."""
        metrics = super().get_metrics(trainer, pl_module)
        return {"kept" if name == "kept_fraction" else name: value for name, value in metrics.items()}

    def init_validation_tqdm(self) -> Tqdm:
        """The bar of a validation, gone when it is done."""
        bar = super().init_validation_tqdm()
        bar.leave = False
        return bar

    def init_test_tqdm(self) -> Tqdm:
        """The bar of a test run, gone when it is done: the table says what came of it."""
        bar = super().init_test_tqdm()
        bar.leave = False
        return bar
