"""All checks in the order in which a reader needs them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial

import torch

from ippo.data.task import columns
from ippo.doctor import cost, gold_size, rewards, sampling, texts
from ippo.doctor import scores as agreement
from ippo.doctor.examined import Examined
from ippo.doctor.finding import Finding, grade, report
from ippo.doctor.gold_style import gold_style
from ippo.influence.exact import Backend
from ippo.influence.hooks import UncoveredLayerError
from ippo.models import response_logits, response_logprobs
from ippo.models.memory import bytes_of, free_memory
from ippo.ppo.gold_style import own_surprise
from ippo.ppo.responses import arguments
from ippo.ppo.stopwatch import now
from ippo.rewards import Judge
from ippo.rollout.episodes import Episodes
from ippo.sft import demonstration_loss

Check = Callable[[Examined], Finding]


def examine(examined: Examined, compared: int, iterations: int, needed: int) -> list[Finding]:
    """Every check's finding. A check that breaks down is a finding too: what breaks it would break the run.

    Args:
        examined: see :class:`Examined`.
        compared: episodes for the checks that score them one by one or again.
        iterations: of the run, for its time.
        needed: bytes that the run will take.
    """
    few = partial(_few, count=compared)
    checks: dict[str, Check] = {
        "vocabulary": lambda one: texts.vocabulary(one.module.model.policy, one.module.tokenizer),
        "prompts": lambda one: texts.prompts([row["prompt"] for row in one.task.gold], one.module.tokenizer),
        "room to answer": lambda one: texts.room(one.gold.lengths.tolist(), one.module.sampling.max_new_tokens),
        "gold answers": check_gold_answers,
        "reward": check_reward,
        "finite numbers": check_finite,
        "end of sequence": check_ending,
        "contrast": lambda one: rewards.contrast(one.episodes.rewards, one.episodes.groups),
        "sampling": check_sampling,
        "log-probabilities": lambda one: check_logprobs(few(one)),
        "backends": lambda one: check_backends(few(with_signal(one))),
        "batch composition": lambda one: check_composition(few(with_signal(one))),
        "bfloat16": lambda one: check_half_precision(with_signal(one)),
        "gold style": check_gold_style,
        "gold set": lambda one: check_gold_set(with_signal(one)),
        "memory": lambda one: cost.memory(needed, free_memory() + bytes_of(one.module)),  # it is loaded already
        "time": lambda one: check_time(one, iterations),
    }
    findings = []
    for name, check in checks.items():
        if name not in _WITHOUT_EPISODES and not len(examined.episodes):
            findings.append(Finding(name, "warning", "not checked: there is no usable episode"))
            continue
        try:
            findings.append(check(examined))
        except Exception as error:
            findings.append(broken_down(name, error))
    return findings


def broken_down(name: str, error: Exception) -> Finding:
    """What is left of a check that raised.

    Example:
        >>> broken_down("backends", RuntimeError("expected float\\n but got half")).finding
        'it broke down: RuntimeError: expected float but got half'
    """
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return Finding(name, "wrong", f"it broke down: {what}", "mend this first")


_WITHOUT_EPISODES = ("vocabulary", "prompts", "room to answer", "gold answers", "reward", "finite numbers", "memory")


def with_signal(examined: Examined) -> Examined:
    """The examined with advantages to score by: where no episode has one, because all earned the same, random signs
    take their place. Whether numbers agree does not depend on what they are."""
    episodes = examined.episodes
    if bool(episodes.advantages.any()):
        return examined
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (len(episodes), 1), generator=generator).to(episodes.advantages) * 2 - 1
    advantages = signs * episodes.response_mask
    return dataclasses.replace(examined, episodes=dataclasses.replace(episodes, advantages=advantages))


def check_gold_answers(examined: Examined) -> Finding:
    """Hold the gold solutions against the task's own check."""
    verdicts = Judge(examined.task.check)([True] * len(examined.task.gold), **_as_responses(examined))
    return rewards.gold_answers(verdicts.correct, verdicts.chains)


def check_reward(examined: Examined) -> Finding:
    """Pay the gold solutions as if the policy had written them."""
    earned = examined.module.rewards.to(examined.module.device)(**_as_responses(examined))
    return rewards.gold_rewards(earned.total)


def check_finite(examined: Examined) -> Finding:
    """Every episode has finite log-probabilities, values and reward; those that have not were dropped."""
    kept, dropped = len(examined.episodes), sum(len(part) for part in examined.episodes.dropped)
    found = f"{kept} of {kept + dropped} episodes are finite in log-probabilities, values and reward"
    state = grade(dropped / (kept + dropped), warning=0.0, wrong=0.1)
    return report("finite numbers", state, found, "look for NaN or Inf in the policy's weights or in the reward")


def check_ending(examined: Examined) -> Finding:
    """Count the responses that end."""
    module = examined.module
    finished = examined.episodes.finished.tolist()
    return texts.ending(finished, module.model.policy, module.tokenizer, module.sampling.max_new_tokens)


@torch.no_grad()
def check_sampling(examined: Examined) -> Finding:
    """Hold every sampled token against the distribution that the training recomputes."""
    module, found = examined.module, sampling.Surprise(0.0, 0.0, 0)
    temperature = module.sampling.temperature
    for part in examined.episodes.chunks(module.ppo.micro_batch_size):
        logits = response_logits(module.model.policy, part)
        found += sampling.surprise(logits, part.response_ids, part.response_mask, temperature)
    return sampling.sampled_distribution(found, temperature)


def check_logprobs(examined: Examined) -> Finding:
    """Take the episodes' log-probabilities on the path that samples, and on the one that trains."""
    module, episodes = examined.module, examined.episodes
    temperature = module.sampling.temperature
    again = sampling.replay(module.model.policy, episodes, temperature, module.tokenizer.pad_token_id)
    width = again.shape[1]
    pair = (episodes.old_logprobs[:, :width], episodes.response_mask[:, :width])
    return sampling.recomputed_logprobs(again, *pair, half=examined.coarse)


def check_backends(examined: Examined) -> Finding:
    """Score the same episodes by all exact backends."""
    found = {"loop": examined.score(examined.episodes, examined.scorer("loop"))}
    refused: dict[str, str] = {}
    names: tuple[Backend, ...] = ("ghost", "jvp")
    for name in names:
        try:
            found[name] = examined.score(examined.episodes, examined.scorer(name))
        except UncoveredLayerError as refusal:
            refused[name] = f"{refusal.layer!r}, because {refusal.reason}"
        except NotImplementedError as refusal:
            refused[name] = str(refusal).split(".")[0]
    return agreement.backends(found, refused, examined.coarse)


def check_composition(examined: Examined) -> Finding:
    """Score episodes alone and together."""
    scorer = examined.scorer()
    alone = examined.score(examined.episodes, scorer, batch_size=1)
    together = examined.score(examined.episodes, scorer, batch_size=len(examined.episodes))
    return agreement.composition(alone, together, examined.coarse)


def check_half_precision(examined: Examined) -> Finding:
    """Score the same episodes by a copy of the policy in the other precision."""
    policy = examined.module.model.policy
    other = copy.deepcopy(policy).to(torch.float32 if examined.half else torch.bfloat16)
    temperature, size = examined.module.sampling.temperature, examined.module.ppo.micro_batch_size
    with torch.no_grad():  # the copy's own ratios start at 1, as they would in a run
        parts = [response_logprobs(other, part, temperature) for part in examined.episodes.chunks(size)]
    width = examined.episodes.response_ids.shape[1]
    old = torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
    there = examined.score(dataclasses.replace(examined.episodes, old_logprobs=old), policy=other)
    here = examined.score(examined.episodes)
    return agreement.half_precision(*((there, here) if examined.half else (here, there)), own=examined.half)


@torch.no_grad()
def check_gold_style(examined: Examined) -> Finding:
    """Hold the gold solutions' loss against that of the policy's own answers."""
    module, episodes = examined.module, examined.episodes
    chunks = examined.gold.chunks(module.ppo.micro_batch_size)
    gold_loss = torch.cat([demonstration_loss(module.model.policy, part) for part in chunks]).mean()
    return gold_style(float(gold_loss), own_surprise(episodes.old_logprobs, episodes.response_mask))


def check_gold_set(examined: Examined) -> Finding:
    """Score the episodes along the gradients of eight parts of the gold set."""
    rows = len(examined.gold)
    if rows < 2:
        return Finding("gold set", "wrong", "one gold solution cannot be split", "give at least a few dozen")
    parts = [part for part in torch.arange(rows).tensor_split(8) if len(part)]
    scores = torch.stack([examined.score(examined.episodes, gold=examined.gold.rows(part)) for part in parts])
    sizes = torch.tensor([len(part) for part in parts])
    return gold_size.gold_set(*gold_size.split_half(scores, sizes), rows)


def check_time(examined: Examined, iterations: int) -> Finding:
    """Score the episodes, and pass them backward through policy and critic, by the clock."""
    module, episodes = examined.module, examined.episodes
    start = now(module.device)
    examined.score(episodes)
    scored = now(module.device)
    for part in episodes.chunks(module.ppo.micro_batch_size):
        loss = module.policy_losses(module.model.policy, part).sum() + module.model.values(part).sum()
        loss.backward()
    module.zero_grad()
    spent = cost.Seconds(examined.seconds, scored - start, now(module.device) - scored)
    wanted = examined.prompts_per_iteration * module.ppo.samples_per_prompt
    return cost.time(spent, len(episodes), wanted, module.ppo.inner_epochs, iterations)


def _few(examined: Examined, count: int) -> Examined:
    """The examined with the first ``count`` episodes."""
    episodes: Episodes = examined.episodes.rows(torch.arange(min(count, len(examined.episodes)))).trim()
    return dataclasses.replace(examined, episodes=episodes)


def _as_responses(examined: Examined) -> dict[str, list]:
    """The gold solutions as arguments of rewards and checks."""
    table = columns(list(examined.task.gold))
    return arguments(table, table["solution"])
