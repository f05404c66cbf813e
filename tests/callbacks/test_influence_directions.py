"""The filter with every scorer and every direction, in real short fits of the whole PPO module."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder, Reseed, state
from pyarrow import parquet
from torch import Tensor

from ippo import Episodes, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback, ReproducibleState
from ippo.callbacks.influence.gold_batches import GoldBatches
from ippo.errors import UsageError
from ippo.influence import (
    AdamPreconditioned,
    BufferDirection,
    Direction,
    ExactScorer,
    LookaheadScorer,
    RandomProjectionScorer,
    ReturnDirection,
    Scorer,
    TopFraction,
    TracInScorer,
    Uniform,
    ValidationDirection,
)
from ippo.ppo.logprobs import LogprobPass
from ippo.rollout.episodes import write_parquet
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences
from ippo.sft import demonstration_loss

TAGS = {"influence/kept_fraction", "influence/score_mean", "influence/effective_sample_size", "time/score"}


def keep_all(scorer: Scorer | None = None, direction: Any = None, **options: Any) -> InfluenceFilterCallback:
    """A filter that scores, and then drops nothing and weighs nothing: its scores come in the order of the buffer."""
    options = {"keep": TopFraction(1.0), "weight": Uniform(), "min_survival": 0.0, **options}
    return InfluenceFilterCallback.paper(scorer=scorer or ExactScorer(), direction=direction, **options)


class Looks(L.Callback):
    """Keeps what the filter before it has made of the log-probability pass."""

    def __init__(self) -> None:
        self.looks: list[LogprobPass] = []

    def on_logprob_pass(self, trainer: L.Trainer, pl_module: Any, look: LogprobPass) -> None:
        self.looks.append(look)


class Gradients(L.Callback):
    """[n, p] each episode's PPO gradient by a backward of its own, and [p] that of the gold solutions, just before
    the filter scores."""

    def __init__(self, gold: Sequences) -> None:
        self.gold = gold

    def on_rollout_end(self, trainer: L.Trainer, pl_module: Any, episodes: Episodes) -> None:
        policy = pl_module.model.policy
        with torch.enable_grad():
            rows = [pl_module.policy_losses(policy, one).sum() for one in episodes.chunks(1)]
            self.rows = torch.stack([self.flat(policy, loss) for loss in rows])
            self.reference = self.flat(policy, demonstration_loss(policy, self.gold).mean())

    @staticmethod
    def flat(policy: Any, loss: Tensor) -> Tensor:
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(policy.parameters()))])

    @property
    def others(self) -> Tensor:
        """[n, p] the mean of the other episodes' gradients."""
        return (self.rows.sum(0) - self.rows) / (len(self.rows) - 1)


def scores(episodes: Episodes) -> Tensor:
    return torch.tensor(episodes.records()["score"])


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (expected != 0).any()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


SCORERS: dict[str, Any] = {
    "auto": ExactScorer,
    "jvp": lambda: ExactScorer("jvp"),
    "ghost": lambda: ExactScorer("ghost"),
    "loop": lambda: ExactScorer("loop"),
    "last block": lambda: ExactScorer(parameters=1),
    "tracin": lambda: TracInScorer(snapshots=2),
    "projection": lambda: RandomProjectionScorer(rank=8),
    "lookahead": LookaheadScorer,
    "lookahead of the last block": lambda: LookaheadScorer(steps=2, learning_rate=0.01, parameters=1),
}
DIRECTIONS: dict[str, Any] = {
    "gold solutions": lambda: None,
    "buffer": BufferDirection,
    "the others of the buffer": lambda: BufferDirection(leave_one_out=True),
    "return": ReturnDirection,
    "return on validation": lambda: ReturnDirection("validation"),
    "adam": AdamPreconditioned,
    "adam of the buffer": lambda: AdamPreconditioned(BufferDirection()),
    "adam of the return on validation": lambda: AdamPreconditioned(ReturnDirection("validation")),
}


class TestRuns:
    """Two iterations, so that the second meets an optimizer with a state and parameters that have moved."""

    @staticmethod
    def fit(callback: InfluenceFilterCallback, module: Any, make_trainer: MakeTrainer, data: Any) -> Recorder:
        recorder = Recorder()
        make_trainer(callback, recorder, max_epochs=2).fit(module, data)
        assert len(recorder.curves) == 2
        for curves, episodes in zip(recorder.curves, recorder.episodes, strict=True):
            assert curves.keys() >= TAGS
            assert 0 < curves["influence/kept_fraction"] <= 1
            assert curves["time/score"] > 0
            found = scores(episodes)
            assert len(found) == 8
            assert found.isfinite().all()
            assert len(set(found.tolist())) == 8
            assert curves["influence/score_mean"] == pytest.approx(float(found.mean()), rel=1e-4, abs=1e-6)
            assert episodes.logprob_jvps is None
        return recorder

    @pytest.mark.parametrize("make", SCORERS.values(), ids=SCORERS)
    def test_with_every_scorer(
        self, make: Any, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        callback = InfluenceFilterCallback.paper(scorer=make(), min_survival=0.0)
        self.fit(callback, make_module(samples_per_prompt=2), make_trainer, data)

    @pytest.mark.parametrize("make", DIRECTIONS.values(), ids=DIRECTIONS)
    def test_with_every_direction(
        self, make: Any, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        callback = InfluenceFilterCallback.paper(direction=make(), min_survival=0.0)
        self.fit(callback, make_module(samples_per_prompt=2), make_trainer, data)

    def test_the_loss_of_the_gold_solutions_is_a_curve(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, gold: Sequences
    ) -> None:
        module = make_module(samples_per_prompt=2)
        with torch.no_grad():
            before = float(demonstration_loss(module.model.policy, gold).mean())
        callback = InfluenceFilterCallback.paper(direction=AdamPreconditioned(), min_survival=0.0)
        first, second = self.fit(callback, module, make_trainer, data).curves
        assert first["influence/gold_loss"] == pytest.approx(before, rel=1e-4)
        assert second["influence/gold_loss"] != first["influence/gold_loss"]

    def test_a_direction_without_a_loss_of_its_own_has_no_such_curve(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        callback = InfluenceFilterCallback.paper(direction=BufferDirection(), min_survival=0.0)
        for curves in self.fit(callback, make_module(samples_per_prompt=2), make_trainer, data).curves:
            assert "influence/gold_loss" not in curves


class TestScores:
    """Of the first iteration, by hand at the same moment."""

    @pytest.fixture
    def fit(self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, gold: Sequences) -> Any:
        def fit(scorer: Scorer | None = None, direction: Direction | None = None) -> tuple[Tensor, Gradients]:
            by_hand, recorder = Gradients(gold), Recorder()
            make_trainer(by_hand, keep_all(scorer, direction), recorder).fit(make_module(), data)
            return scores(recorder.episodes[0]), by_hand

        return fit

    @pytest.mark.parametrize("name", ["auto", "ghost", "loop"])
    def test_of_the_gold_solutions(self, fit: Any, name: str) -> None:
        found, by_hand = fit(SCORERS[name]())
        assert_same(found, by_hand.rows @ by_hand.reference)

    def test_of_the_gold_solutions_at_one_snapshot(self, fit: Any) -> None:
        found, by_hand = fit(TracInScorer())
        assert_same(found, 1e-3 * by_hand.rows @ by_hand.reference)  # at the learning rate

    def test_of_sketches_at_a_full_rank(self, fit: Any) -> None:
        found, by_hand = fit(RandomProjectionScorer(rank=400))
        assert_same(found, by_hand.rows @ by_hand.reference)

    def test_of_the_buffer(self, fit: Any) -> None:
        found, by_hand = fit(direction=BufferDirection())
        assert_same(found, by_hand.rows @ by_hand.rows.mean(0))

    def test_of_the_others_of_the_buffer(self, fit: Any) -> None:
        found, by_hand = fit(direction=BufferDirection(leave_one_out=True))
        assert_same(found, (by_hand.rows * by_hand.others).sum(1), 1e-4)

    def test_of_the_return(self, fit: Any) -> None:
        """At a ratio of 1 the gradient of PPO's loss is that of -A log pi: the return of the buffer is its mean."""
        found, by_hand = fit(direction=ReturnDirection())
        assert_same(found, by_hand.rows @ by_hand.rows.mean(0))

    def test_of_adam_before_its_first_step(self, fit: Any) -> None:
        found, by_hand = fit(direction=AdamPreconditioned())
        assert_same(found, by_hand.rows @ by_hand.reference)


def test_adam_divides_by_its_second_moments(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, gold: Sequences
) -> None:
    class Moments(Gradients):
        def on_rollout_end(self, trainer: L.Trainer, pl_module: Any, episodes: Episodes) -> None:
            super().on_rollout_end(trainer, pl_module, episodes)
            states = [trainer.optimizers[0].state[parameter] for parameter in pl_module.model.policy.parameters()]
            if states[0]:
                roots = [(one["exp_avg_sq"] / (1 - 0.999 ** float(one["step"]))).sqrt() for one in states]
                self.roots = torch.cat([root.flatten() for root in roots])

    by_hand, recorder = Moments(gold), Recorder()
    direction = AdamPreconditioned(eps=1e-4)
    make_trainer(by_hand, keep_all(direction=direction), recorder, max_epochs=2).fit(make_module(), data)
    assert_same(scores(recorder.episodes[1]), by_hand.rows @ (by_hand.reference / (by_hand.roots + 1e-4)))


class TestOnePass:
    """Scores from the pass that takes the old log-probabilities are those of a pass of their own."""

    OPTIONS: tuple[dict[str, Any], ...] = (
        {},
        {"kl_place": "loss", "kl_estimator": "k3", "advantage": "group_relative"},
        {"reduction": "sum", "dual_clip": 3.0},
        {"micro_batch_size": 3},
    )

    @pytest.fixture
    def fit(self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule) -> Any:
        def fit(callback: InfluenceFilterCallback, **ppo: Any) -> tuple[Episodes, LogprobPass]:
            looks, recorder = Looks(), Recorder()
            make_trainer(Reseed(), callback, looks, recorder).fit(make_module(**ppo), data)
            return recorder.episodes[0], looks.looks[0]

        return fit

    @pytest.mark.parametrize("ppo", OPTIONS, ids=str)
    def test_exactly(self, fit: Any, ppo: dict[str, Any]) -> None:
        (one, look), (two, plain) = (
            fit(keep_all(one_pass=one_pass, batch_size=5), **ppo) for one_pass in (True, False)
        )
        assert look.logprob_jvps is not None
        assert plain.logprobs is None
        assert_same(scores(one), scores(two), 5e-5)  # whitening hands rounding on from every token to every advantage
        assert torch.equal(one.response_ids, two.response_ids)
        for tokens, others in ((one.old_logprobs, two.old_logprobs), (one.advantages, two.advantages)):
            assert_same(tokens[one.response_mask], others[one.response_mask], 1e-6)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: keep_all(direction=ReturnDirection("validation")),
            lambda: keep_all(ExactScorer(parameters=1)),
            lambda: keep_all(ExactScorer("jvp", parameters="norm")),
        ],
        ids=["return on validation", "last block", "norms"],
    )
    def test_whatever_the_direction_and_the_part(self, fit: Any, make: Any) -> None:
        callback, other = make(), make()
        other.one_pass = False
        (one, look), (two, plain) = fit(callback), fit(other)
        assert look.logprob_jvps is not None
        assert plain.logprob_jvps is None
        assert_same(scores(one), scores(two))

    @pytest.mark.parametrize("one_pass", [True, False])
    def test_a_budget_of_tokens_leaves_each_score_with_its_episode(self, fit: Any, one_pass: bool) -> None:
        whole, parts = (fit(keep_all(one_pass=one_pass), micro_batch_tokens=tokens)[0] for tokens in (None, 150))
        assert len(parts.places(64, 150)) > 2
        assert torch.equal(parts.response_ids, whole.response_ids)
        assert_same(scores(parts), scores(whole), 5e-5)

    def test_at_another_temperature(self, fit: Any) -> None:
        sampling = Sampling(temperature=0.7, max_new_tokens=24)
        (one, look), (two, _) = (fit(keep_all(one_pass=one_pass), sampling=sampling) for one_pass in (True, False))
        assert look.logprob_jvps is not None
        assert_same(scores(one), scores(two))

    @pytest.mark.parametrize(
        ("callback", "ppo"),
        [
            (keep_all(), {"entropy_coef": 0.1}),
            (keep_all(one_pass=False), {}),
            (keep_all(ExactScorer("ghost")), {}),
            (keep_all(ExactScorer("loop")), {}),
            (keep_all(TracInScorer()), {}),
            (keep_all(RandomProjectionScorer()), {}),
            (keep_all(direction=BufferDirection()), {}),
            (keep_all(direction=ReturnDirection()), {}),
            (keep_all(losses=lambda policy, episodes: demonstration_loss(policy, episodes)), {}),
        ],
        ids=["entropy", "off", "ghost", "loop", "tracin", "projection", "buffer", "return", "other losses"],
    )
    def test_is_not_taken_where_it_would_not_do(
        self, fit: Any, callback: InfluenceFilterCallback, ppo: dict[str, Any]
    ) -> None:
        episodes, look = fit(callback, **ppo)
        assert look.logprobs is None
        assert look.logprob_jvps is None
        assert scores(episodes).isfinite().all()

    def test_token_scores_are_noted_where_asked_for(self, fit: Any, tmp_path: Path) -> None:
        episodes, _ = fit(keep_all(token_scores=True))
        noted = episodes.extras["token_scores"]
        assert [len(row) for row in noted] == episodes.lengths.tolist()
        assert_same(torch.tensor([sum(row) for row in noted]), scores(episodes))
        write_parquet(episodes.records(), tmp_path / "episodes.parquet")
        assert parquet.read_table(tmp_path / "episodes.parquet")["token_scores"].to_pylist() == noted
        assert "token_scores" not in fit(keep_all())[0].extras

    def test_the_tokens_beside_their_scores_spell_the_response(self, fit: Any) -> None:
        episodes, _ = fit(keep_all(token_scores=True))
        tokens = episodes.extras["tokens"]
        assert [len(row) for row in tokens] == episodes.lengths.tolist()
        plain = re.compile("[^\x01-\x7f]")  # a character of several bytes may be several tokens, none of them a text
        spelled = [plain.sub("", "".join(row).removesuffix("<eos>")) for row in tokens]
        assert spelled == [plain.sub("", text) for text in episodes.responses]

    def test_tokens_that_oppose_lose_their_advantage_and_the_others_keep_it(self, fit: Any) -> None:
        whole, silenced = (fit(keep_all(token_scores=True, drop_tokens=drop))[0] for drop in (False, True))
        assert torch.equal(scores(silenced), scores(whole))  # the episode is judged as it was
        for place, row in enumerate(whole.extras["token_scores"]):
            before, after = whole.advantages[place, : len(row)], silenced.advantages[place, : len(row)]
            opposing = torch.tensor(row) < 0
            assert (after[opposing] == 0).all()
            assert torch.equal(after[~opposing], before[~opposing])
        assert (silenced.advantages != whole.advantages).any()
        assert torch.equal(silenced.returns, whole.returns)  # the critic learns from all of them

    def test_a_dry_run_silences_no_token(self, fit: Any) -> None:
        whole, dry = (fit(keep_all(**options))[0] for options in ({}, {"drop_tokens": True, "dry_run": True}))
        assert torch.equal(dry.advantages, whole.advantages)

    def test_nothing_is_silenced_where_all_are_kept_for_want_of_a_survivor(self, fit: Any) -> None:
        class Nobody(TopFraction):
            def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
                return torch.zeros_like(scores, dtype=torch.bool)

        options = {"keep": Nobody(1.0), "on_empty": "keep_all"}
        whole, none = (fit(keep_all(drop_tokens=drop, **options))[0] for drop in (False, True))
        assert torch.equal(none.advantages, whole.advantages)
        assert (none.weights == 1).all()

    @pytest.mark.parametrize("what", ["token_scores", "drop_tokens"])
    @pytest.mark.parametrize(
        "options", [{"one_pass": False}, {"scorer": ExactScorer("ghost")}], ids=["two passes", "ghost"]
    )
    def test_tokens_are_refused_where_there_are_none(self, fit: Any, what: str, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=f"{what} = True: it needs one_pass"):
            fit(keep_all(**{what: True}, **options))

    def test_an_entropy_bonus_is_scored_all_the_same(self, fit: Any) -> None:
        (one, _), (two, _) = (fit(keep_all(ExactScorer(name)), entropy_coef=0.1) for name in ("jvp", "loop"))
        assert_same(scores(one), scores(two), 1e-4)
        assert not torch.allclose(scores(fit(keep_all())[0]), scores(one), rtol=1e-3)


class TestSeveralFilters:
    def test_those_that_only_look_note_their_scores_under_their_names(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        looks = [
            InfluenceFilterCallback.paper(scorer=ExactScorer(parameters=1), dry_run=True, name="last"),
            InfluenceFilterCallback.paper(direction=BufferDirection(), dry_run=True, name="buffer"),
        ]
        alone, beside = Recorder(), Recorder()
        make_trainer(Reseed(), keep_all(), alone).fit(make_module(), data)
        make_trainer(Reseed(), *looks, keep_all(), beside).fit(make_module(), data)
        (plain,), (episodes,) = alone.episodes, beside.episodes
        assert_same(scores(episodes), scores(plain), 5e-5)
        columns = [torch.tensor(episodes.extras[name]) for name in ("score", "score_last", "score_buffer")]
        assert len({tuple(column.tolist()) for column in columns}) == 3
        assert "score_last" not in plain.extras

    def test_each_scores_as_it_would_alone_though_one_of_them_takes_the_look_back(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        alone, beside = Recorder(), Recorder()
        make_trainer(Reseed(), keep_all(LookaheadScorer(), token_scores=True), alone).fit(make_module(), data)
        first = keep_all(dry_run=True, name="first")
        make_trainer(Reseed(), first, keep_all(LookaheadScorer(), token_scores=True), beside).fit(make_module(), data)
        assert_same(scores(beside.episodes[0]), scores(alone.episodes[0]), 1e-3)
        noted = [recorder.episodes[0].extras["token_scores"] for recorder in (beside, alone)]
        assert_same(*(torch.tensor([token for row in rows for token in row]) for rows in noted), 1e-2)

    def test_a_reading_of_the_gold_solutions_takes_as_many_as_it_says(
        self, make_module: MakeModule, make_trainer: MakeTrainer, gold: Sequences
    ) -> None:
        def ids(part: Any) -> list[list[int]]:
            return [row[real].tolist() for row, real in zip(part.response_ids, part.response_mask, strict=True)]

        trainer, every = make_trainer(), ids(gold)
        trainer.strategy.connect(make_module())
        batches = GoldBatches(trainer, [gold.rows(torch.arange(len(gold)))], 3)
        readings = [[row for part in batches for row in ids(part)] for _ in range(4)]
        assert [len(rows) for rows in readings] == [3] * 4
        read = [row for rows in readings for row in rows]
        assert read == [every[place % len(every)] for place in range(12)]


class TestLookahead:
    class Steps(L.Callback):
        """[n, t] log-probabilities before and after steps of Adam on the gold solutions, just before the filter."""

        def __init__(self, gold: Sequences, steps: int) -> None:
            self.gold, self.steps = gold, steps

        def on_rollout_end(self, trainer: L.Trainer, pl_module: Any, episodes: Episodes) -> None:
            moved = copy.deepcopy(pl_module.model.policy)
            optimizer = torch.optim.Adam(moved.parameters(), lr=trainer.optimizers[0].param_groups[0]["lr"])
            for _ in range(self.steps):
                optimizer.zero_grad()
                with torch.enable_grad():
                    demonstration_loss(moved, self.gold).mean().backward()
                optimizer.step()
            self.before, self.after = (
                pl_module.objective.logprobs(policy, episodes).detach() for policy in (pl_module.model.policy, moved)
            )

    def test_weighs_what_the_steps_do_to_each_token_by_its_advantage(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, gold: Sequences
    ) -> None:
        by_hand, looks, recorder = self.Steps(gold, 3), Looks(), Recorder()
        callback = keep_all(LookaheadScorer(steps=3), token_scores=True, batch_size=5)
        make_trainer(by_hand, callback, looks, recorder).fit(make_module(), data)
        (episodes,), (look,) = recorder.episodes, looks.looks
        mask, advantages = episodes.response_mask, episodes.advantages
        expected = advantages * (by_hand.after - by_hand.before) * mask / mask.sum(1, keepdim=True)
        assert_same(scores(episodes), expected.sum(1), 1e-4)
        for row, noted in zip(expected, episodes.extras["token_scores"], strict=True):
            assert_same(torch.tensor(noted), row[: len(noted)], 1e-3)
        assert not look.forward_mode  # plain passes, so that PPO's ratios start at 1 in any precision
        assert_same(episodes.old_logprobs * mask, by_hand.before * mask)

    def test_in_half_precision_ratios_start_at_one_all_the_same(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        """What the scores are there, tests/callbacks/influence/test_route.py holds against float32."""
        looks, recorder = Looks(), Recorder()
        make_trainer(keep_all(LookaheadScorer()), looks, recorder, precision="bf16-mixed").fit(make_module(), data)
        assert looks.looks[0].logprobs is None
        assert recorder.curves[0]["ppo/mismatch"] < 1e-7  # other neighbours, other padding: rounded otherwise

    def test_with_an_entropy_bonus_it_compares_the_losses(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        looks, recorder = Looks(), Recorder()
        make_trainer(keep_all(LookaheadScorer()), looks, recorder).fit(make_module(entropy_coef=0.1), data)
        assert looks.looks[0].logprob_jvps is None
        assert scores(recorder.episodes[0]).isfinite().all()


class TestTracIn:
    def test_remembers_each_iteration_and_its_learning_rate(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        scorer = TracInScorer(snapshots=2)
        module = make_module(samples_per_prompt=2, schedule="linear")  # 1, 0.7 and 0.4 of the peak over 3 iterations
        make_trainer(keep_all(scorer), max_epochs=3).fit(module, data)
        path = scorer.state_dict()["path"]
        assert [one["rate"] for one in path] == pytest.approx([0.7e-3, 0.4e-3])
        names = [name for name, _ in module.model.policy.named_parameters()]
        assert all(list(one["parameters"]) == names for one in path)
        assert not torch.equal(*(one["parameters"]["model.norm.weight"] for one in path))

    def test_state_outlives_a_checkpoint(
        self, tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        def fit(iterations: int, checkpoint: Path | None = None) -> tuple[L.Trainer, TracInScorer, Tensor]:
            scorer, recorder = TracInScorer(snapshots=3), Recorder()
            trainer = make_trainer(Reseed(), keep_all(scorer), recorder, max_epochs=iterations)
            trainer.fit(make_module(samples_per_prompt=2), data, ckpt_path=checkpoint)
            return trainer, scorer, scores(recorder.episodes[-1])

        _, unbroken, expected = fit(3)
        trainer, _, _ = fit(2)
        trainer.save_checkpoint(tmp_path / "two.ckpt")
        checkpoint = torch.load(tmp_path / "two.ckpt", weights_only=True)  # tensors and numbers, no pickled code
        assert "InfluenceFilterCallback{'name': 'influence', 'unit': 'buffer'}" in checkpoint["callbacks"]
        _, resumed, found = fit(3, tmp_path / "two.ckpt")
        paths = [scorer.state_dict()["path"] for scorer in (unbroken, resumed)]
        assert len(paths[0]) == len(paths[1]) == 3
        for one, two in zip(*paths, strict=True):
            assert one["rate"] == two["rate"]
            assert all(torch.equal(tensor, two["parameters"][name]) for name, tensor in one["parameters"].items())
        assert torch.equal(found, expected)


def test_a_direction_of_given_batches_is_taken_as_it_is(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, gold: Sequences
) -> None:
    found = []
    for direction in (None, ValidationDirection(gold.chunks(3), demonstration_loss)):
        recorder = Recorder()
        make_trainer(Reseed(), keep_all(direction=direction), recorder).fit(make_module(samples_per_prompt=2), data)
        found.append(scores(recorder.episodes[0]))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("make", [lambda: None, lambda: ReturnDirection("validation")], ids=["gold", "return"])
def test_a_resumed_run_ends_where_an_unbroken_one_does(
    make: Any, place: str, tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    """Also where the direction is sampled, and the trial at the start of training draws from the same generator."""

    def fit(iterations: int, checkpoint: Path | None = None) -> tuple[L.Trainer, dict[str, Tensor]]:
        module, callback = (
            make_module(samples_per_prompt=2),
            InfluenceFilterCallback.paper(direction=make(), min_survival=0.0),
        )
        callbacks = (callback, ReproducibleState()) if place == "before" else (ReproducibleState(), callback)
        trainer = make_trainer(*callbacks, max_epochs=iterations)
        trainer.fit(module, data, ckpt_path=checkpoint)
        return trainer, state(module.model)

    torch.manual_seed(0)
    _, unbroken = fit(3)
    torch.manual_seed(0)
    trainer, _ = fit(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    torch.manual_seed(77)
    _, resumed = fit(3, tmp_path / "two.ckpt")
    assert all(torch.equal(value, unbroken[name]) for name, value in resumed.items())
