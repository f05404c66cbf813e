from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from ippo.functional import gae, group_relative, rloo, token_rewards, whiten

NAN = float("nan")


def prefix_mask(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


class TestTokenRewards:
    def test_hand_worked(self) -> None:
        logprobs = torch.tensor([[-1.0, -2.0, NAN], [-0.5, -0.5, -1.0]])
        ref_logprobs = torch.tensor([[-1.5, -1.0, NAN], [-0.5, -1.5, -3.0]])
        scores = torch.tensor([1.0, -2.0])

        rewards = token_rewards(scores, logprobs, ref_logprobs, prefix_mask([2, 3], 3), kl_coef=0.1)

        # log ratios .5, -1 and 0, 1, 2; the score joins the last token of the response, not the one after it
        expected = [[-0.05, 0.1 + 1.0, 0.0], [0.0, -0.1, -0.2 - 2.0]]
        torch.testing.assert_close(rewards, torch.tensor(expected))

    def test_k1_rows_sum_to_the_penalised_score(self) -> None:
        torch.manual_seed(0)
        logprobs, ref_logprobs, scores = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3)
        mask = prefix_mask([4, 1, 2], 4)

        rewards = token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=0.3)

        log_ratio = torch.stack([(logprobs - ref_logprobs)[i, :k].sum() for i, k in enumerate([4, 1, 2])])
        torch.testing.assert_close(rewards.sum(dim=1), scores - 0.3 * log_ratio)

    def test_estimator_is_used(self) -> None:
        arguments = (torch.zeros(1), torch.tensor([[3.0]]), torch.zeros(1, 1), torch.ones(1, 1))
        assert token_rewards(*arguments, kl_coef=1.0, estimator="k2").item() == -4.5  # -(3 ** 2) / 2

    def test_without_penalty_the_reference_is_not_read(self) -> None:
        mask = prefix_mask([1, 2], 2)
        reference = torch.full((2, 2), NAN)
        rewards = token_rewards(torch.tensor([3.0, 4.0]), torch.zeros(2, 2), reference, mask, kl_coef=0.0)
        assert rewards.tolist() == [[3.0, 0.0], [0.0, 4.0]]

    def test_empty_response_earns_nothing(self) -> None:
        nothing = torch.full((1, 2), NAN)
        rewards = token_rewards(torch.tensor([5.0]), nothing, nothing, prefix_mask([0], 2), kl_coef=1.0)
        assert rewards.tolist() == [[0.0, 0.0]]


class TestGAE:
    def test_hand_worked(self) -> None:
        rewards = torch.tensor([[0.0, 0.0, 1.0]])
        values = torch.tensor([[0.25, 0.5, 0.75]])
        advantages, returns = gae(rewards, values, torch.ones(1, 3), gamma=0.5, lam=0.5)
        # deltas: 0 + .5 * .5 - .25 = 0,  0 + .5 * .75 - .5 = -.125,  1 - .75 = .25
        # advantages, with gamma * lam = .25: .25,  -.125 + .25 * .25 = -.0625,  0 - .25 * .0625 = -.015625
        assert advantages.tolist() == [[-0.015625, -0.0625, 0.25]]
        assert returns.tolist() == [[0.234375, 0.4375, 1.0]]

    @pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0), (0.5, 1.0)])
    def test_equals_the_sum_over_each_unpadded_list(self, gamma: float, lam: float) -> None:
        torch.manual_seed(0)
        lengths, width = [5, 1, 3, 0], 6
        rewards, values = torch.randn(4, width), torch.randn(4, width)
        mask = prefix_mask(lengths, width)

        advantages, returns = gae(rewards.where(mask, NAN), values.where(mask, NAN), mask, gamma, lam)

        for row, length in enumerate(lengths):
            r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), 0.0]
            deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
            for t in range(width):
                expected = sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, length))
                assert advantages[row, t].item() == pytest.approx(expected, abs=1e-5)
                assert returns[row, t].item() == pytest.approx(expected + v[t] if t < length else 0, abs=1e-5)

    def test_at_one_and_one_returns_are_the_rewards_to_go(self) -> None:
        _, returns = gae(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[3.0, -1.0, 8.0]]), torch.ones(1, 3))
        assert returns.tolist() == [[7.0, 6.0, 4.0]]

    def test_names_the_argument_of_the_wrong_shape(self) -> None:
        with pytest.raises(ValueError, match=r"values must have shape \[n=2, t=3\], got \[2, 4\]"):
            gae(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3))


class TestGroupRelative:
    REWARDS = torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 6.0])
    GROUPS = torch.tensor([3, 3, 3, 3, -1, -1])

    def test_hand_worked(self) -> None:
        # group 3: mean 1/4, sample variance (9 + 1 + 1 + 1) / 16 / 3 = 1/4, std 1/2
        # group -1: mean 4, sample variance (4 + 4) / 1 = 8
        expected = torch.tensor([1.5, -0.5, -0.5, -0.5, -(0.5**0.5), 0.5**0.5])
        torch.testing.assert_close(group_relative(self.REWARDS, self.GROUPS), expected)

    def test_without_scale(self) -> None:
        advantages = group_relative(self.REWARDS, self.GROUPS, scale_by_std=False)
        assert advantages.tolist() == [0.75, -0.25, -0.25, -0.25, -2.0, 2.0]

    def test_order_of_episodes_does_not_matter(self) -> None:
        order = torch.tensor([4, 0, 2, 5, 3, 1])
        shuffled = group_relative(self.REWARDS[order], self.GROUPS[order])
        torch.testing.assert_close(shuffled, group_relative(self.REWARDS, self.GROUPS)[order])

    @pytest.mark.parametrize("reward", [0.0, 0.1, 1000.1, -3e-5])
    def test_rounding_is_no_advantage(self, reward: float) -> None:
        rewards = torch.full((7,), reward)
        rewards[3] = torch.nextafter(rewards[3], torch.tensor(torch.inf))
        assert group_relative(rewards, torch.zeros(7, dtype=torch.long)).tolist() == [0.0] * 7

    def test_small_rewards_are_not_taken_for_rounding(self) -> None:
        advantages = group_relative(torch.tensor([1e-8, 3e-8]), torch.tensor([0, 0]))
        torch.testing.assert_close(advantages, torch.tensor([-(0.5**0.5), 0.5**0.5]))

    def test_alone_in_its_group(self) -> None:
        assert group_relative(torch.tensor([5.0, 1.0]), torch.tensor([0, 1])).tolist() == [0.0, 0.0]


class TestRLOO:
    def test_equals_the_mean_of_the_others(self) -> None:
        rewards, groups = torch.tensor([1.0, 5.0, 2.0, 7.0, 6.0]), torch.tensor([0, 1, 0, 1, 0])
        # group 0 (1, 2, 6): 1 - 4, 2 - 3.5, 6 - 1.5; group 1 (5, 7): 5 - 7, 7 - 5
        torch.testing.assert_close(rloo(rewards, groups), torch.tensor([-3.0, -2.0, -1.5, 2.0, 4.5]))

    def test_alone_in_its_group(self) -> None:
        assert rloo(torch.tensor([5.0]), torch.tensor([9])).tolist() == [0.0]

    def test_names_the_argument_of_the_wrong_shape(self) -> None:
        with pytest.raises(ValueError, match=r"groups must have shape \[n=3\], got \[2\]"):
            rloo(torch.zeros(3), torch.zeros(2))


class TestWhiten:
    def test_hand_worked(self) -> None:
        # response tokens 0, 2, 4, 6: mean 3, variance (9 + 1 + 1 + 9) / 4 = 5
        values, mask = torch.tensor([[0.0, 2.0, NAN], [4.0, 6.0, NAN]]), prefix_mask([2, 2], 3)
        expected = torch.tensor([[-3.0, -1.0, 0.0], [1.0, 3.0, 0.0]]) / 5**0.5
        torch.testing.assert_close(whiten(values, mask), expected)
        shifted = torch.where(mask, expected + 3.0, 0.0)
        torch.testing.assert_close(whiten(values, mask, shift_mean=False), shifted)

    def test_survives_a_large_offset(self) -> None:
        # E[x^2] - E[x]^2 would give 0 here in float32
        values = torch.tensor([[10000.0, 10001.0, 10002.0]])
        expected = torch.tensor([[-1.0, 0.0, 1.0]]) / (2 / 3) ** 0.5
        torch.testing.assert_close(whiten(values, torch.ones(1, 3)), expected)

    @pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -77777.7])
    @pytest.mark.parametrize("count", [1, 7, 4099])
    def test_equal_values_give_zeros(self, value: float, count: int) -> None:
        whitened = whiten(torch.full((3, count), value), torch.ones(3, count))
        assert (whitened == 0.0).all()

    def test_empty_batch(self) -> None:
        assert whiten(torch.full((2, 2), NAN), torch.zeros(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]

    def test_ranks_together_whiten_as_one_process_does(self) -> None:
        torch.manual_seed(0)
        values, mask = torch.randn(5, 4), prefix_mask([4, 1, 3, 2, 4], 4)
        slots: list[Tensor] = [torch.empty(())] * 3
        barrier = Barrier(3, timeout=10)

        def run_rank(rank: int, first: int, last: int) -> Tensor:
            def total(local: Tensor) -> Tensor:
                slots[rank] = local
                barrier.wait()
                result = torch.stack(slots).sum(dim=0)
                barrier.wait()
                return result

            return whiten(values[first:last], mask[first:last], total=total)

        with ThreadPoolExecutor(3) as ranks:  # 1, 4 and 0 episodes
            parts = list(ranks.map(run_rank, range(3), [0, 1, 5], [1, 5, 5]))

        torch.testing.assert_close(torch.cat(parts), whiten(values, mask))


class TestMasks:
    @pytest.mark.parametrize("mask", [[[0, 1, 1]], [[1, 0, 1]]], ids=["padding on the left", "a hole"])
    def test_that_are_not_ones_and_then_zeros_are_refused_where_the_order_counts(self, mask: list[list[int]]) -> None:
        tokens = torch.ones(1, 3)
        with pytest.raises(ValueError, match="row 0 has a token after padding"):
            token_rewards(torch.ones(1), tokens, tokens, torch.tensor(mask), kl_coef=0.1)
        with pytest.raises(ValueError, match="row 0 has a token after padding"):
            gae(tokens, tokens, torch.tensor(mask))

    def test_of_any_shape_are_right_for_whitening(self) -> None:
        found = whiten(torch.tensor([[9.0, 1.0, 3.0], [5.0, NAN, 9.0]]), torch.tensor([[0, 1, 1], [1, 0, 0]]))
        scale = (3 / 8) ** 0.5  # of 1, 3 and 5: mean 3, variance (4 + 0 + 4) / 3
        torch.testing.assert_close(found, torch.tensor([[0.0, -2 * scale, 0.0], [2 * scale, 0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
class TestHalfPrecision:
    """Sums in it lose what they compare: in bfloat16 seven times 0.1 is 0.703."""

    def test_equal_rewards_have_no_advantage(self, dtype: torch.dtype) -> None:
        rewards, groups = torch.full((7,), 0.1, dtype=dtype), torch.zeros(7, dtype=torch.long)
        assert group_relative(rewards, groups).tolist() == [0.0] * 7
        torch.testing.assert_close(rloo(rewards, groups), torch.zeros(7), atol=1e-7, rtol=0)

    def test_is_computed_in_float32(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        tokens, mask, groups = torch.randn(6, 40).to(dtype), torch.ones(6, 40), torch.arange(6) // 3
        for given in (
            lambda values: group_relative(values[:, 0], groups),
            lambda values: rloo(values[:, 0], groups),
            lambda values: gae(values, values, mask, 0.9, 0.9)[0],
            lambda values: whiten(values, mask),
            lambda values: token_rewards(values[:, 0], values, values / 2, mask, 0.1),
        ):
            assert torch.equal(given(tokens), given(tokens.float()))
