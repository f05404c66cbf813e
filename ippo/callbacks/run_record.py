"""What each iteration cost and kept, for the summary at the end of a run."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from ippo.callbacks.influence_filter import InfluenceFilterCallback
from ippo.callbacks.throughput import Throughput


class RunRecord(L.Callback):
    """Collects, iteration by iteration, the figures that ``summary.json`` holds; they outlive a resume."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
        # Of the filters themselves: a curve keeps its last value over iterations that are not filtered.
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        filters = [one for one in callbacks if isinstance(one, InfluenceFilterCallback)]
        applied = [one.applied for one in filters if one.applied is not None]
        earlier = math.prod(selection.survival for selection in applied[:-1])  # the last one's weights are the product
        # Of nothing that could be checked there is no share, and the curve still shows that of an earlier iteration.
        checkable = bool(logged.get("accuracy/em")) and logged.get("accuracy/unverifiable", 0.0) < 1.0
        self.iterations.append(
            {
                "kept_fraction": earlier * applied[-1].survival if applied else 1.0,
                "effective_sample_size": earlier * applied[-1].effective_sample_size if applied else 1.0,
                "gold_loss": next((one.gold_loss for one in filters if one.gold_loss is not None), None),
                "em": logged.get("accuracy/em"),
                "reward": logged.get("reward/mean"),
                "unfinished": logged.get("reward/unfinished"),
                "false_positive": logged.get("accuracy/false_positive") if checkable else None,
                "hacked": logged.get("accuracy/hacked"),
                "update_tokens": int(logged.get("ppo/update_tokens", 0)),
                "seconds": {
                    "rollout": logged.get("time/rollout", 0.0),
                    "scoring": sum(one.seconds for one in filters),
                    "update": logged.get("time/update", 0.0),
                },
                "speed": next((one.last for one in callbacks if isinstance(one, Throughput)), {}),
            }
        )

    def state_dict(self) -> dict[str, Any]:
        return {"iterations": self.iterations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iterations = list(state_dict["iterations"])
