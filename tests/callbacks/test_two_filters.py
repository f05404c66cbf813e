"""Several filters in one trainer: each judges what those before it have kept, and their weights multiply."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from parts import GivenScores, MakeModule, MakeTrainer, Recorder
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ippo import Episodes, PromptDataModule, emit
from ippo.callbacks import InfluenceFilterCallback, RunRecord
from ippo.errors import UsageError
from ippo.influence import Proportional

N = 16  # episodes of an iteration
HALF, QUARTER = [1.0] * 8 + [-1.0] * 8, [1.0] * 4 + [-1.0] * 4


def given(scores: list[float], name: str, **options: Any) -> InfluenceFilterCallback:
    return InfluenceFilterCallback(GivenScores(scores), name=name, min_survival=0.0, **options)


class TestOfEpisodes:
    @pytest.fixture
    def fit(self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule) -> Any:
        def run(*filters: L.Callback) -> tuple[Episodes, dict[str, Any]]:
            recorder, record = Recorder(), RunRecord()
            make_trainer(*filters, recorder, record).fit(make_module(), data)
            return recorder.episodes[0], record.iterations[0]

        return run

    def test_weights_multiply_and_keep_their_mean(self, fit: Any) -> None:
        rising, falling = [float(i + 1) for i in range(N)], [float(N - i) for i in range(N)]
        episodes, _ = fit(given(rising, "a", weight=Proportional()), given(falling, "b", weight=Proportional()))
        product = torch.tensor(rising) * torch.tensor(falling)
        torch.testing.assert_close(episodes.weights, product / product.mean())

    @pytest.mark.parametrize("action", ["drop", "weight"])
    def test_what_the_first_has_dropped_stays_dropped(self, fit: Any, action: Any) -> None:
        second = [1.0] * 8 if action == "drop" else [1.0] * N
        episodes, record = fit(given(HALF, "a", action=action), given(second, "b", action=action))
        assert int((episodes.weights > 0).sum()) == 8
        assert record["kept_fraction"] == 0.5
        assert record["effective_sample_size"] == pytest.approx(0.5)

    @pytest.mark.parametrize("action", ["drop", "weight"])
    def test_the_summary_counts_all_of_them(self, fit: Any, action: Any) -> None:
        second = QUARTER if action == "drop" else [*QUARTER, *QUARTER]
        episodes, record = fit(given(HALF, "a", action=action), given(second, "b", action=action))
        assert int((episodes.weights > 0).sum()) == 4
        assert record["kept_fraction"] == 0.25
        assert record["effective_sample_size"] == pytest.approx(0.25)

    def test_the_second_has_nothing_to_stop_for_where_the_first_leaves_nothing(self, fit: Any) -> None:
        second = InfluenceFilterCallback(GivenScores([]), name="b", on_empty="stop", patience=1)
        fit(given([-1.0] * N, "a"), second)
        assert second.stopping_reason_message is None


class Weighing(L.LightningModule):
    """Trains on dicts with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.seen: list[Any] = []

    def losses(self, batch: Any) -> Tensor:
        return self.net(batch["x"]).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(batch["weight"].tolist())
        return (batch["weight"] * self.losses(batch)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class TestOfBatches:
    @staticmethod
    def filters(*scores: list[float], action: Any = "weight") -> list[InfluenceFilterCallback]:
        return [
            given(one, f"filter{place}", unit="batch", losses=Weighing.losses, action=action)
            for place, one in enumerate(scores)
        ]

    def test_weights_multiply_to_a_mean_over_the_kept(self, make_trainer: MakeTrainer) -> None:
        module, batch = Weighing(), {"x": torch.randn(4, 2)}
        filters = self.filters([1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0])
        make_trainer(*filters).fit(module, DataLoader([batch], batch_size=None))
        assert module.seen == [[4.0, 0.0, 0.0, 0.0]]

    def test_weights_of_the_data_multiply_too_and_are_back_after_the_step(self, make_trainer: MakeTrainer) -> None:
        module, own = Weighing(), torch.tensor([1.0, 3.0, 0.0, 4.0])
        batch = {"x": torch.randn(4, 2), "weight": own}
        callback = InfluenceFilterCallback(
            GivenScores(*[[1.0, 1.0, 1.0, -1.0]] * 2), unit="batch", losses=Weighing.losses, action="weight"
        )
        make_trainer(callback, max_epochs=2).fit(module, DataLoader([batch], batch_size=None))
        assert module.seen == [[2.0, 6.0, 0.0, 0.0]] * 2  # in their proportions, of the mean that they had
        assert batch["weight"] is own

    def test_an_entry_of_that_name_that_is_no_weight_is_refused(self, make_trainer: MakeTrainer) -> None:
        batch = {"x": torch.randn(4, 2), "weight": torch.tensor([70.0, -1.0, 80.0, 60.0])}
        with pytest.raises(UsageError, match=r"batch\['weight'\] = 'of shape \(4,\)': a filter sets the rows' weights"):
            make_trainer(*self.filters([1.0] * 4)).fit(Weighing(), DataLoader([batch], batch_size=None))

    def test_where_the_first_leaves_nothing_the_second_is_not_asked(self, make_trainer: MakeTrainer) -> None:
        module, batch = Weighing(), {"x": torch.randn(4, 2), "weight": torch.ones(4)}
        first, second = self.filters([-1.0] * 4, [1.0] * 4, action="drop")
        make_trainer(first, second).fit(module, DataLoader([batch], batch_size=None))
        assert module.seen == []
        assert second.applied is None

    def test_two_that_act_differently_are_refused(self, make_trainer: MakeTrainer) -> None:
        filters = [*self.filters([1.0]), given([1.0], "other", unit="batch", losses=Weighing.losses)]
        with pytest.raises(UsageError, match="action = 'drop': another filter has the other one"):
            make_trainer(*filters).fit(Weighing(), DataLoader([{"x": torch.randn(4, 2)}], batch_size=None))


class Own:
    """A buffer that does not say which weights it carries."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def select(self, mask: Tensor) -> Own:
        return Own(self.x[mask])

    def reweight(self, weights: Tensor) -> Own:
        return Own(self.x)


def test_a_buffer_whose_weights_nobody_can_read_is_refused(make_trainer: MakeTrainer) -> None:
    class Emitting(Weighing):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(emit(self.trainer, self, "on_rollout_end", Own(batch)).x).mean()

    def losses(module: Any, buffer: Own) -> Tensor:
        return module.net(buffer.x).squeeze(-1)

    direction = {"net.weight": torch.ones(1, 2), "net.bias": torch.ones(1)}
    options: dict[str, Any] = {"losses": losses, "direction": direction, "weight": Proportional()}
    filters = [given([1.0, 2.0, 3.0, 4.0], name, **options) for name in ("a", "b")]
    with pytest.raises(UsageError, match="the weights of two filters multiply: give it an attribute weights"):
        make_trainer(*filters).fit(Emitting(), DataLoader([torch.randn(4, 2)], batch_size=None))
