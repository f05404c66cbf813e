"""The rule that compares rows with gold rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ippo.errors import UsageError
from ippo.influence import ExactScorer, LikeGold, RandomMatched, RightAndRandom, ValidationDirection
from ippo.influence.keep_like_gold import look_at_gold


class Words(nn.Module):
    """An embedding, a layer over time and one without: each has a length of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(5, 9), nn.Linear(9, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.mix(self.words(words)).tanh().mean(1))


def losses(module: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_each_gold_row_is_held_against_the_mean_gradient_of_the_others(parts: int, one_pass: bool) -> None:
    torch.manual_seed(0)
    module, words, labels = Words(), torch.randint(5, (6, 4)), torch.randint(3, (6,))
    gradients = torch.stack(
        [
            torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(module.parameters()))])
            for loss in [losses(module, (words[row : row + 1], labels[row : row + 1])).sum() for row in range(6)]
        ]
    )
    others = (gradients.sum(0) - gradients) / 5
    batches = [*zip(words.split(6 // parts), labels.split(6 // parts), strict=True)]
    scorer = ExactScorer()
    direction = ValidationDirection(batches, losses).compute(module)
    if one_pass:  # once hooks have scored
        scorer.score(module, losses, batches, direction)
    found = look_at_gold(module, scorer, losses, batches)
    torch.testing.assert_close(found.scores, (gradients * others).sum(1))
    torch.testing.assert_close(found.losses, losses(module, (words, labels)).detach())
    torch.testing.assert_close(dict(found.direction), direction, rtol=1e-4, atol=1e-6)


def test_gold_rows_that_hooks_refuse_are_scored_all_the_same() -> None:
    """Where hooks scored the training's rows, they may refuse the gold ones: here a row needs the others."""
    torch.manual_seed(0)
    module, words, labels = Words(), torch.randint(5, (6, 4)), torch.randint(3, (6,))

    def coupled(module: nn.Module, batch: Any) -> Tensor:
        values = losses(module, batch)
        return values + values.mean()

    scorer = ExactScorer()
    direction = ValidationDirection([(words, labels)], losses).compute(module)
    scorer.score(module, losses, [(words, labels)], direction)
    assert scorer.choice.startswith("ghost")
    found = look_at_gold(module, scorer, coupled, [(words, labels)])
    rows = coupled(module, (words, labels))
    gradients = torch.stack(
        [
            torch.cat(
                [part.flatten() for part in torch.autograd.grad(row, list(module.parameters()), retain_graph=True)]
            )
            for row in rows
        ]
    )
    torch.testing.assert_close(found.scores, (gradients * (gradients.sum(0) - gradients) / 5).sum(1))


def keeps(rule: Any, scores: list[float]) -> list[bool]:
    n = len(scores)
    return rule(torch.tensor(scores), torch.ones(n), torch.arange(n)).tolist()


def test_the_controls_match_its_number() -> None:
    gold, scores = torch.arange(1.0, 20.0), [0.0, 5.0, 0.5, 9.0]
    assert keeps(LikeGold().bind(gold), scores) == [False, True, False, True]
    assert sum(keeps(RandomMatched(LikeGold()).bind(gold), scores)) == 2
    assert sum(keeps(RightAndRandom(LikeGold(), threshold=2.0).bind(gold), scores)) == 2


def test_too_few_gold_rows_are_refused_by_their_number() -> None:
    LikeGold(0.2).bind(torch.ones(19))
    with pytest.raises(UsageError, match=r"keep = 'LikeGold with 18 gold rows': fdr=0\.2 takes at least 19"):
        LikeGold(0.2).bind(torch.ones(18))
    with pytest.raises(UsageError, match="it reads the scores of gold rows"):
        keeps(LikeGold(), [1.0])
    with pytest.raises(UsageError, match=r"fdr = 0\.0"):
        LikeGold(0.0)
