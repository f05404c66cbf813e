"""What each iteration cost and kept, for the summary at the end of a run."""

from __future__ import annotations

from typing import Any

import lightning as L


class RunRecord(L.Callback):
    """Collects, iteration by iteration, the figures that ``summary.json`` holds; they outlive a resume."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
        self.iterations.append(
            {
                "kept_fraction": logged.get("influence/kept_fraction", 1.0),
                "effective_sample_size": logged.get("influence/effective_sample_size", 1.0),
                "reference_loss": logged.get("influence/reference_loss"),
                "em": logged.get("accuracy/em"),
                "false_positive": logged.get("accuracy/false_positive"),
                "update_tokens": int(logged.get("ppo/update_tokens", 0)),
                "seconds": {
                    "rollout": logged.get("time/rollout", 0.0),
                    "scoring": logged.get("time/score", 0.0),
                    "update": logged.get("time/update", 0.0),
                },
            }
        )

    def state_dict(self) -> dict[str, Any]:
        return {"iterations": self.iterations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iterations = list(state_dict["iterations"])
