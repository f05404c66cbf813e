from __future__ import annotations

from typing import Any

import lightning as L
import pytest
from parts import MakeTrainer

from ippo import emit


class Append(L.Callback):
    """Answers the event with the buffer and its own name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, episodes: list[str]) -> list[str]:
        return [*episodes, self.name]


class Look(L.Callback):
    def on_rollout_end(self, *arguments: Any) -> None:
        self.arguments = arguments


@pytest.fixture
def module() -> L.LightningModule:
    return L.LightningModule()


def test_callbacks_answer_in_the_trainers_order(make_trainer: MakeTrainer, module: L.LightningModule) -> None:
    trainer = make_trainer(Append("first"), L.Callback(), Append("second"))
    assert emit(trainer, module, "on_rollout_end", ["episodes"]) == ["episodes", "first", "second"]


def test_a_callback_without_an_answer_leaves_the_episodes(make_trainer: MakeTrainer, module: L.LightningModule) -> None:
    look = Look()
    trainer = make_trainer(Append("before"), look, Append("after"))
    assert emit(trainer, module, "on_rollout_end", []) == ["before", "after"]
    assert look.arguments == (trainer, module, ["before"])


def test_an_empty_answer_is_an_answer(make_trainer: MakeTrainer, module: L.LightningModule) -> None:
    class Drop(L.Callback):
        def on_rollout_end(self, *_: Any) -> list[str]:
            return []

    assert emit(make_trainer(Drop()), module, "on_rollout_end", ["episodes"]) == []


def test_an_event_that_nobody_knows_changes_nothing(make_trainer: MakeTrainer, module: L.LightningModule) -> None:
    episodes = ["episodes"]
    assert emit(make_trainer(Append("x")), module, "on_something_else", episodes) is episodes
    assert emit(make_trainer(), module, "on_rollout_end", episodes) is episodes
