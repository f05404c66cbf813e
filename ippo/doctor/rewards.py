"""The reward against what is known to be right, and against the policy's own responses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ippo.doctor.finding import Finding, grade, report, worst


def gold_answers(correct: Sequence[bool], chains: Sequence[str]) -> Finding:
    """Gold solutions are right by the task's own check, steps included: scores are only as good as what they point to.

    With a wrong step in 30 % of them a filter brings nothing (docs/results/conditions.md).

    Args:
        correct: whether each gold solution's answer is right.
        chains: the class of each gold solution's chain.
    """
    wrong = sum(not right for right in correct) / len(correct)
    faithful = sum(chain == "faithful" for chain in chains) / len(chains)
    spoiled = sum(chain not in ("faithful", "unverifiable") for chain in chains) / len(chains)
    found = f"{1 - wrong:.1%} of {len(correct)} gold solutions are right, {faithful:.1%} faithful"
    state = worst(grade(wrong, warning=0.0, wrong=0.05), grade(spoiled, warning=0.05, wrong=0.2))
    return report("gold answers", state, found, "mend or remove the gold solutions that the task's check refuses")


def gold_rewards(rewards: Sequence[float | None]) -> Finding:
    """The training reward pays for gold solutions. What it refuses there it also refuses where the policy is right.

    Args:
        rewards: of the gold solutions; None where none applies.
    """
    given = [reward for reward in rewards if reward is not None]
    if not given:
        remedy = "let a reward function return a number for such rows: they are left out of the training"
        return Finding("reward", "wrong", f"none applies to any of {len(rewards)} gold solutions", remedy)
    refused = sum(reward <= 0 for reward in given) / len(given)
    found = f"it pays {1 - refused:.0%} of {len(given)} gold solutions"
    remedy = "mend the verifier, or the answer format that it reads"
    return report("reward", grade(refused, warning=0.1, wrong=0.5), found, remedy)


def contrast(rewards: Tensor, groups: Tensor) -> Finding:
    """Rewards of the policy's responses differ: PPO learns from differences, a group method from those in a group.
    Where none earns anything, there is nothing to learn at all.

    Args:
        rewards: [n] of the responses, unfinished ones below their ceiling.
        groups: [n] equal for the samples of one prompt.
    """
    each = [rewards[groups == group] for group in groups.unique()]
    mixed = sum(bool((row != row[0]).any()) for row in each) / len(each)
    found = f"mean reward {float(rewards.mean()):.2f}; {mixed:.0%} of {len(each)} prompts have rewards that differ"
    differ = bool((rewards != rewards[0]).any())
    remedy = "easier prompts, more samples a prompt (ppo.samples_per_prompt), or a longer warm start (sft.steps)"
    earns = float(rewards.max()) > 0
    if not differ and not earns:
        found = f"no response earns anything: mean reward {float(rewards.mean()):.2f} on all of {len(each)} prompts"
    return report("contrast", "ok" if differ else "warning" if earns else "wrong", found, remedy)
