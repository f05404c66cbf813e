"""``unit="buffer"`` in projects that know nothing of :class:`ippo.Episodes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from parts import GivenScores, MakeTrainer
from pyarrow import parquet
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ippo import emit
from ippo.callbacks import InfluenceFilterCallback
from ippo.errors import UsageError
from ippo.influence import MaxVariance, Proportional, Uniform, ValidationDirection

STATES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])


class Stranger(L.LightningModule):
    """Samples episodes of whatever type it is told, and trains on what comes back."""

    def __init__(self, make: Any = dict) -> None:
        super().__init__()
        self.policy, self.make = nn.Linear(2, 2), make
        self.trained: list[Any] = []

    def losses(self, episodes: Any) -> Tensor:
        logprobs = self.policy(episodes["state"]).log_softmax(-1)
        return -episodes["rewards"] * logprobs[:, 0]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        episodes = self.make(state=batch, rewards=torch.tensor([1.0, -1.0, 1.0, -1.0]), text=list("abcd"))
        episodes = emit(self.trainer, self, "on_rollout_end", episodes)
        self.trained.append(episodes)
        return self.losses(episodes).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Own:
    """A buffer class of the project's own."""

    def __init__(self, weights: Tensor | None = None, **columns: Any) -> None:
        self.columns, self.weights = columns, weights

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def select(self, mask: Tensor) -> Own:
        kept = {"state": self["state"][mask], "rewards": self["rewards"][mask], "text": self["text"]}
        return Own(None if self.weights is None else self.weights[mask], **kept)

    def reweight(self, weights: Tensor) -> Own:
        return Own(weights, **self.columns)


def data() -> DataLoader:
    return DataLoader(STATES, batch_size=4)


def along_states(module: Any, states: Tensor) -> Tensor:
    return -module.policy(states).log_softmax(-1)[:, 0]


def make_filter(*scores: list[float], **options: Any) -> InfluenceFilterCallback:
    direction = ValidationDirection([STATES[:1]], along_states)
    settings: dict[str, Any] = {"losses": Stranger.losses, "direction": direction}
    return InfluenceFilterCallback(**{**settings, **({"scorer": GivenScores(*scores)} if scores else {}), **options})


def test_a_dict_comes_back_as_a_dict_of_the_kept(make_trainer: MakeTrainer) -> None:
    module = Stranger()
    make_trainer(make_filter([3.0, -1.0, 1.0, -1.0], weight=Proportional())).fit(module, data())
    (episodes,) = module.trained
    assert episodes["state"].tolist() == STATES[[0, 2]].tolist()
    assert episodes["text"] == ["a", "c"]
    assert episodes["weight"].tolist() == [1.5, 0.5]


def test_a_row_id_that_is_not_there_is_told(make_trainer: MakeTrainer) -> None:
    with pytest.raises(UsageError, match=r"row_id = 'txt': a dict has no such entry"):
        make_trainer(make_filter(audit="audit", row_id="txt")).fit(Stranger(), data())


def test_scores_are_those_of_the_modules_losses(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    module = Stranger()
    before = module.policy.weight.detach().clone(), module.policy.bias.detach().clone()
    make_trainer(make_filter(batch_size=3, audit="audit", row_id="text", dry_run=True)).fit(module, data())
    with torch.no_grad():
        module.policy.weight.copy_(before[0])
        module.policy.bias.copy_(before[1])
    parameters = list(module.policy.parameters())
    along = torch.autograd.grad(along_states(module, STATES[:1]).sum(), parameters)
    expected = []
    for row in range(4):
        one = {"state": STATES[row : row + 1], "rewards": torch.tensor([1.0 - 2 * (row % 2)])}
        found = torch.autograd.grad(module.losses(one).sum(), parameters)
        expected.append(sum(float((a * b).sum()) for a, b in zip(found, along, strict=True)))
    table = parquet.read_table(tmp_path / "audit").to_pydict()
    assert table["score"] == pytest.approx(expected, abs=1e-6)
    assert table["id"] == list("abcd")
    assert len(module.trained[0]["text"]) == 4  # a dry run


def test_a_class_of_its_own(make_trainer: MakeTrainer) -> None:
    module = Stranger(Own)
    make_trainer(make_filter([1.0, -1.0, 1.0, -1.0], weight=Uniform())).fit(module, data())
    assert module.trained[0]["state"].tolist() == STATES[[0, 2]].tolist()
    assert module.trained[0].weights.tolist() == [1.0, 1.0]


def test_weights_alone(make_trainer: MakeTrainer) -> None:
    module = Stranger()
    make_trainer(make_filter([3.0, -1.0, 1.0, -1.0], action="weight", weight=Proportional())).fit(module, data())
    assert module.trained[0]["weight"].tolist() == [3.0, 0.0, 1.0, 0.0]
    assert len(module.trained[0]["text"]) == 4


def test_keep_rules_read_rewards_and_groups(make_trainer: MakeTrainer) -> None:
    def make(**columns: Any) -> dict[str, Any]:
        return {**columns, "groups": torch.tensor([0, 0, 0, 0])}

    module = Stranger(make)
    make_trainer(make_filter([1.0] * 4, keep=MaxVariance(2))).fit(module, data())
    assert sorted(module.trained[0]["rewards"].tolist()) == [-1.0, 1.0]
    with pytest.raises(UsageError, match="keep = 'MaxVariance': it reads groups"):
        make_trainer(make_filter([1.0] * 4, keep=MaxVariance(2))).fit(Stranger(), data())


def test_nothing_survives(make_trainer: MakeTrainer) -> None:
    module = Stranger()
    make_trainer(make_filter([-1.0] * 4, on_empty="keep_all")).fit(module, data())
    assert len(module.trained[0]["text"]) == 4


def test_what_is_in_a_dict_of_the_dict_goes_with_its_episodes(make_trainer: MakeTrainer) -> None:
    def make(**columns: Any) -> dict[str, Any]:
        return {**columns, "more": {"step": torch.arange(4), "pair": (torch.zeros(4, 2), list("efgh"))}}

    module = Stranger(make)
    make_trainer(make_filter([1.0, -1.0, 1.0, -1.0])).fit(module, data())
    (episodes,) = module.trained
    assert episodes["more"]["step"].tolist() == [0, 2]
    assert [len(part) for part in episodes["more"]["pair"]] == [2, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_episodes_of_a_data_loader_are_told_from_those_of_a_step(make_trainer: MakeTrainer, workers: int) -> None:
    """A loader that rolls out runs before the step, where nothing can be logged."""

    class Rollouts(IterableDataset):
        def __init__(self, module: Any) -> None:
            self.module = module

        def __iter__(self) -> Any:
            episodes = {"state": STATES, "rewards": torch.ones(4)}
            yield emit(self.module.trainer, self.module, "on_rollout_end", episodes)

    class Loading(Stranger):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(Rollouts(self), batch_size=None, num_workers=workers, multiprocessing_context=context)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.losses(batch).mean()

    context = "fork" if workers else None
    with pytest.raises(
        (UsageError, RuntimeError), match=r"emit = 'in .*data.?loader': .* filter the batches .* with unit='batch'"
    ):
        make_trainer(make_filter([1.0] * 4)).fit(Loading())
    make_trainer(make_filter([1.0] * 4, unit="batch")).fit(Loading())


@pytest.mark.parametrize("option", [{"patience": 1}, {"on_empty": "stop"}], ids=str)
def test_episodes_without_a_gradient_end_no_training(make_trainer: MakeTrainer, option: Any) -> None:
    """All rewards alike: an advantage of 0, and nothing to learn from this time."""
    nothing, none = [0.0] * 4, [-1.0, -1.0, 0.0, 0.0]
    callback = make_filter(nothing, nothing, [1.0] * 4, nothing, none, [1.0] * 4, **option)
    trainer = make_trainer(callback, max_epochs=6)
    module = Stranger()
    trainer.fit(module, data())
    assert trainer.current_epoch == 5
    assert callback.stopping_reason_message is not None


def test_what_cannot_be_filtered_is_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(UsageError, match="episodes = 'a tuple': emit a dict of tensors"):
        make_trainer(make_filter()).fit(Stranger(lambda **columns: tuple(columns.values())), data())
