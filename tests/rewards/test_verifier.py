from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from ippo.errors import UsageError
from ippo.rewards import ErrsOn, NoisyVerifier, numeric_reward
from ippo.rewards.verifier import beta_of, error_rates

COUNT = 20_000


def alternating(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    return [float(place % 2) for place in range(len(completions))]


class TestNoisyVerifier:
    @pytest.mark.parametrize("rate", [0.05, 0.25, 0.5])
    @pytest.mark.parametrize("right", [0, 1])
    def test_errs_at_its_rate_both_ways(self, rate: float, right: int) -> None:
        texts = [""] * (2 * COUNT)
        rewards = NoisyVerifier(alternating, rate)(texts, texts)[right::2]
        flipped = sum(reward != right for reward in rewards) / COUNT
        assert flipped == pytest.approx(rate, abs=3 * math.sqrt(rate * (1 - rate) / COUNT))

    def test_error_0_and_1_are_exact(self) -> None:
        texts = [""] * 1000
        exact = alternating(texts, texts)
        assert NoisyVerifier(alternating, 0.0)(texts, texts) == exact
        assert NoisyVerifier(alternating, 1.0)(texts, texts) == [1.0 - value for value in exact]

    @pytest.mark.parametrize(
        ("errs_on", "expected"), [("both", [1.0, 0.0]), ("right", [0.0, 0.0]), ("wrong", [1.0, 1.0])]
    )
    def test_errs_on_one_side_alone(self, errs_on: ErrsOn, expected: list[float]) -> None:
        assert NoisyVerifier(alternating, 1.0, errs_on)(["", ""], ["", ""]) == expected

    def test_refuses_a_side_it_does_not_know(self) -> None:
        with pytest.raises(UsageError, match="verifier_errs_on = 'left'"):
            NoisyVerifier(alternating, 0.5, "left")  # type: ignore[arg-type]

    def test_seed_repeats_the_flips(self) -> None:
        verifier, texts = NoisyVerifier(alternating, 0.3), [""] * 100
        torch.manual_seed(7)
        first, second = verifier(texts, texts), verifier(texts, texts)
        torch.manual_seed(7)
        assert verifier(texts, texts) == first
        assert verifier(texts, texts) == second
        assert first != second

    def test_columns_reach_the_reward(self) -> None:
        assert NoisyVerifier(numeric_reward, 0.0)(["p"], ["#### 4"], answer=["4"], steps=[[]]) == [1.0]

    @pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
    def test_refuses_a_rate_that_is_no_share(self, rate: float) -> None:
        with pytest.raises(UsageError, match="verifier_error = "):
            NoisyVerifier(alternating, rate)

    def test_leaves_out_what_its_reward_leaves_out(self) -> None:
        assert NoisyVerifier(lambda completions, **_: [None, 1.0], 1.0)(["", ""], ["", ""]) == [None, 0.0]

    def test_refuses_to_flip_what_is_neither_0_nor_1(self) -> None:
        with pytest.raises(UsageError, match="a verifier that errs flips 0 and 1 alone"):
            NoisyVerifier(lambda completions, **_: [-1.0, 1.0], 0.5)(["", ""], ["", ""])


def intraclass_correlation(table: torch.Tensor) -> float:
    """Of [groups, samples], by the analysis of variance (Shrout and Fleiss 1979, ICC(1, 1))."""
    samples = table.shape[1]
    between = samples * table.mean(1).var()
    within = table.var(1).mean()
    return float((between - within) / (between + (samples - 1) * within))


class TestErrorsOfOnePrompt:
    @pytest.mark.parametrize(("rate", "icc"), [(0.25, 0.5), (0.1, 0.2), (0.5, 0.9)])
    def test_the_beta_distribution_has_the_mean_and_the_variance_that_are_asked_for(
        self, rate: float, icc: float
    ) -> None:
        first, second = beta_of(rate, icc)
        total = first + second
        assert first / total == pytest.approx(rate)
        assert first * second / (total**2 * (total + 1)) == pytest.approx(icc * rate * (1 - rate))

    @pytest.mark.parametrize("icc", [0.0, 0.53, 1.0])
    def test_errors_correlate_as_told_and_their_rate_stays(self, icc: float) -> None:
        torch.manual_seed(0)
        prompts = [str(place // 8) for place in range(8 * 4000)]
        exact = lambda prompts, completions, **_: [0.0] * len(completions)  # noqa: E731
        flips = torch.tensor(NoisyVerifier(exact, 0.25, icc=icc)(prompts, [""] * len(prompts))).view(-1, 8)
        assert float(flips.mean()) == pytest.approx(0.25, abs=0.03)
        assert intraclass_correlation(flips) == pytest.approx(icc, abs=0.03)

    def test_the_samples_of_a_prompt_share_a_rate_wherever_they_stand(self) -> None:
        torch.manual_seed(0)
        first, other, again = error_rates(["p", "q", "p"], 0.25, 0.5).tolist()
        assert first == again != other

    def test_without_a_correlation_the_flips_are_those_of_independent_errors(self) -> None:
        texts = [""] * 100
        torch.manual_seed(3)
        drawn = (torch.rand(100) < 0.1).tolist()
        torch.manual_seed(3)
        rewards = NoisyVerifier(alternating, 0.1)(texts, texts)
        assert [reward != right for reward, right in zip(rewards, alternating(texts, texts), strict=True)] == drawn

    @pytest.mark.parametrize("icc", [-0.1, 1.1, math.nan])
    def test_refuses_what_is_no_correlation(self, icc: float) -> None:
        with pytest.raises(UsageError, match="verifier_error_icc = "):
            NoisyVerifier(alternating, 0.5, icc=icc)
