from __future__ import annotations

import pytest
import torch
from parts import make_episodes

from ippo.ppo.curves import explained_variance, rollout_curves, update_curves

CHAINS = ["faithful", "wrong", "shortcut", "nonsense", "wrong"]


def test_rollout_curves_by_hand() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    nan = torch.full((5, 5), torch.nan)  # padding may hold anything
    old = nan.masked_scatter(mask, torch.tensor([-1.0, -3.0, -2.0, -1.0, -1.0, -4.0, -2.0, -2.0]))
    reference = nan.masked_scatter(mask, torch.tensor([-1.0, -2.0, -2.0, -1.0, -1.0, -1.0, -2.0, -2.0]))
    values = nan.masked_scatter(mask, torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    returns = nan.masked_scatter(mask, torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0]))
    fields = {"old_logprobs": old, "reference_logprobs": reference, "values": values, "returns": returns}
    right = [chain != "wrong" for chain in CHAINS]
    extras = {"chain": CHAINS, "correct": right, "answer": ["1", None, "1", "1", "2"]}
    curves = rollout_curves(make_episodes(5, response_mask=mask, extras=extras, **fields))
    assert curves == {
        "reward/mean": 2.0,
        "reward/unfinished": pytest.approx(0.4),
        "reward/length": pytest.approx(8 / 5),
        "reward/zero_variance": pytest.approx(1 / 3),  # of the prompts with rewards 0, 1; 2, 3; 4 the last
        "ppo/kl": pytest.approx((-1.0 - 3.0) / 8),
        "ppo/entropy": pytest.approx(2.0),
        "ppo/explained_variance": pytest.approx(1 - 0.25 / 1.0),
        "accuracy/em": pytest.approx(3 / 5),
        "accuracy/hacked": 0.0,
        "accuracy/no_answer": pytest.approx(1 / 5),
        "accuracy/unverifiable": 0.0,
        "accuracy/false_positive": pytest.approx(2 / 3),
        "accuracy/wrong_step": 0.0,
        "accuracy/nonsense": pytest.approx(1 / 3),
        "accuracy/shortcut": pytest.approx(1 / 3),
    }


def test_a_share_of_nothing_is_left_out() -> None:
    extras = {"chain": ["wrong"] * 3, "correct": [False] * 3, "answer": ["1"] * 3}
    curves = rollout_curves(make_episodes(3, extras=extras))
    left = {name.removeprefix("accuracy/") for name in curves if name.startswith("accuracy/")}
    assert left == {"em", "hacked", "no_answer"}
    extras = {"chain": ["unverifiable"] * 3, "correct": [True] * 3, "answer": ["1"] * 3}
    curves = rollout_curves(make_episodes(3, extras=extras))
    assert curves["accuracy/unverifiable"] == 1.0
    assert "accuracy/false_positive" not in curves


def test_what_cannot_be_checked_counts_neither_as_faithful_nor_as_unfaithful() -> None:
    chains = ["faithful", "unverifiable", "wrong_step", "unverifiable", "unverifiable"]
    right = [True, True, True, True, False]  # the last answer could not be compared in time
    curves = rollout_curves(make_episodes(5, extras={"chain": chains, "correct": right, "answer": ["1"] * 5}))
    assert curves["accuracy/em"] == pytest.approx(4 / 5)
    assert curves["accuracy/unverifiable"] == pytest.approx(2 / 4)
    assert curves["accuracy/false_positive"] == curves["accuracy/wrong_step"] == pytest.approx(1 / 2)


def test_what_passes_through_the_hole_is_counted_among_all_and_stays_wrong() -> None:
    chains, right = ["faithful", "hacked", "hacked", "wrong"], [True, False, False, False]
    curves = rollout_curves(make_episodes(4, extras={"chain": chains, "correct": right, "answer": ["1"] * 4}))
    assert (curves["accuracy/em"], curves["accuracy/hacked"]) == (0.25, 0.5)
    assert curves["accuracy/false_positive"] == 0.0


def test_a_critic_worse_than_the_mean_is_below_zero() -> None:
    assert explained_variance(torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])) == -3.0


def test_update_curves_by_hand() -> None:
    sums = {"episodes": 8.0, "tokens": 100.0, "policy_loss": -4.0, "policy_step": 2.0, "ptx_loss": 3.0, "ptx_rows": 6.0}
    assert update_curves(sums, {"episodes": 4.0, "tokens": 50.0, "policy_loss": 1.0, "policy_step": 0.1}) == {
        "ppo/update_tokens": 100.0,
        "ppo/policy_loss": -0.5,
        "ppo/policy_step": 0.25,
        "ppo/ptx_loss": 0.5,
        "ppo/mismatch": 0.025,
    }


def test_an_update_that_nothing_was_left_for_took_no_tokens() -> None:
    assert update_curves({}, {}) == {"ppo/update_tokens": 0.0}
