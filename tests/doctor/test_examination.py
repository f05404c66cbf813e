"""Checks on real episodes, healthy ones and ones with a defect that no option can plant."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from ippo.data import Task
from ippo.data.task import Columns
from ippo.doctor import examination
from ippo.doctor.examined import Examined
from ippo.doctor.finding import Finding
from ippo.influence import ExactScorer, ValidationDirection
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences
from ippo.sft import demonstration_loss
from tests.parts import MakeModule


class HotEngine(HFGenerate):
    """Samples at another temperature than it is told: what a server with a default of its own does."""

    def generate(self, policy: Any, prompts: Any, sampling: Sampling) -> Sequences:
        return super().generate(policy, prompts, dataclasses.replace(sampling, temperature=1.4))


def examined_of(module: Any, task: Task, gold: Sequences, batch: Columns) -> Examined:
    torch.manual_seed(0)
    return Examined(task, module, gold, module.roll_out(batch), 1.0, prompts_per_iteration=64)


@pytest.fixture(scope="module")
def examined(make_module: MakeModule, task: Task, gold: Sequences, batch: Columns) -> Examined:
    return examined_of(make_module(samples_per_prompt=8), task, gold, batch)


def test_numbers_of_a_sound_model_agree(examined: Examined) -> None:
    checks = (
        examination.check_sampling,
        examination.check_logprobs,
        examination.check_backends,
        examination.check_composition,
        examination.check_finite,
        examination.check_gold_answers,
    )
    assert [check(examined).state for check in checks] == ["ok"] * len(checks)


def test_a_temperature_that_logprobs_ignore_is_found_in_the_samples_alone(
    make_module: MakeModule, task: Task, gold: Sequences, batch: Columns, tokenizer: Any
) -> None:
    hot = examined_of(make_module(samples_per_prompt=8, engine=HotEngine(tokenizer)), task, gold, batch)
    found = examination.check_sampling(hot)
    assert found.state == "wrong"
    assert "a token rarer than at T = 1 " in found.finding
    assert examination.check_logprobs(hot).state == "ok"  # the model is sound: the sampler is not


def test_generation_that_differs_is_found(examined: Examined, policy: LlamaForCausalLM) -> None:
    """A model that counts positions in another way while it generates."""

    def shift(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        moved = kwargs["use_cache"] and kwargs.get("position_ids") is not None
        return args, {**kwargs, "position_ids": kwargs["position_ids"] // 2} if moved else kwargs

    handle = examined.module.model.policy.register_forward_pre_hook(shift, with_kwargs=True)
    found = examination.check_logprobs(examined)
    handle.remove()
    assert found.state == "wrong"
    assert examination.check_logprobs(examined).state == "ok"


def test_rows_that_mix_are_found(examined: Examined) -> None:
    """As with statistics of the batch: what an episode scores depends on its company."""

    def mix(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + output.mean((0, 1))

    handle = examined.module.model.policy.model.layers[0].mlp.register_forward_hook(mix)
    found = examination.check_composition(examined)
    handle.remove()
    assert found.state == "wrong"
    assert examination.check_composition(examined).state == "ok"


def test_gold_solutions_of_other_problems_are_found(examined: Examined, task: Task) -> None:
    solutions = [row["solution"] for row in task.gold]
    mixed = [{**row, "solution": other} for row, other in zip(task.gold, solutions[1:] + solutions[:1], strict=True)]
    noise = dataclasses.replace(examined, task=dataclasses.replace(task, gold=mixed))
    assert examination.check_gold_answers(noise).state == "wrong"


def test_episodes_that_all_earned_the_same_are_still_compared(examined: Examined) -> None:
    episodes = examined.episodes
    flat = dataclasses.replace(
        examined, episodes=dataclasses.replace(episodes, advantages=torch.zeros_like(episodes.advantages))
    )
    assert not examined.score(flat.episodes).any()
    scores = examined.score(examination.with_signal(flat).episodes)
    assert (scores != 0).all()
    assert examination.with_signal(examined) is examined


def test_scores_point_along_the_gradient_of_the_gold_set(examined: Examined) -> None:
    policy = examined.module.model.policy
    demonstration_loss(policy, examined.gold).mean().backward()
    along = {name: parameter.grad for name, parameter in policy.named_parameters()}
    policy.zero_grad()
    expected = ExactScorer("loop").score(policy, examined.module.policy_losses, [examined.episodes], along)
    torch.testing.assert_close(examined.score(examined.episodes), expected, rtol=1e-3, atol=1e-5)


def test_scores_are_by_the_parameters_of_the_runs_filter(examined: Examined) -> None:
    policy, losses = examined.module.model.policy, examined.module.policy_losses
    direction = ValidationDirection([examined.gold], demonstration_loss)
    expected = ExactScorer("loop", parameters=1).score(policy, losses, [examined.episodes], direction)
    of_block = dataclasses.replace(examined, parameters=1)
    torch.testing.assert_close(of_block.score(examined.episodes), expected, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(examined.score(examined.episodes), expected, rtol=1e-1)
    assert examination.check_backends(of_block).state == "ok"


def test_halving_by_parts_is_halving(examined: Examined) -> None:
    """Scores are linear in the direction: eight parts give every half that is made of them."""
    half = torch.arange(0, len(examined.gold), 2)
    parts = torch.stack([examined.score(examined.episodes, gold=examined.gold.rows(row[None])) for row in half])
    torch.testing.assert_close(
        parts.mean(0), examined.score(examined.episodes, gold=examined.gold.rows(half)), rtol=1e-3, atol=1e-5
    )


def test_a_check_that_breaks_down_is_a_finding(examined: Examined) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("this model\n  cannot be asked")

    broken = dataclasses.replace(examined, task=dataclasses.replace(examined.task, check=refuse))
    findings = {one.check: one for one in examination.examine(broken, compared=4, iterations=2, needed=2**30)}
    assert findings["gold answers"] == Finding(
        "gold answers", "wrong", "it broke down: RuntimeError: this model cannot be asked", "mend this first"
    )
    assert findings["backends"].state == "ok"
    assert list(findings)[-1] == "time"
