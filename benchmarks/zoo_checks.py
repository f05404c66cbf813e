"""One model through everything that ippo does with it, each number held against plain torch: one row at a time."""

from __future__ import annotations

import copy
import inspect
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from zoo_models import tiny_model, tokenizer

from ippo import Episodes, PPOModule, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.data import Task
from ippo.data.prompts import PromptOptions
from ippo.errors import UsageError
from ippo.influence import ExactScorer, Uniform
from ippo.influence.parameters import choose
from ippo.models import SeparateModels, export, responses
from ippo.ppo.options import EvaluationOptions, PPOOptions
from ippo.rewards import NUMBERS
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences

LOGPROBS, SCORES = 1e-5, 1e-4
"""What may be missing at most: nats, and shares of the largest score, gradient or logit."""

NEW = 6


@dataclass
class Examined:
    """What came out for one type.

    Args:
        kind: the type.
        outcome: ``"works"``, ``"refused"`` before the first rollout, ``"wrong"``, ``"error"`` or ``"not built"``.
        why: of anything but ``"works"``.
        parts: how the logits of many tokens are worked out, ``"parts"`` or ``"whole"``.
        route: how the default filter's scores came about.
        errors: largest deviation of each number.
    """

    kind: str
    outcome: str
    why: str = ""
    parts: str = ""
    route: str = ""
    errors: dict[str, float] | None = None


def examine(kind: str, model: Any = None) -> Examined:
    """A tiny model of the type ``kind``, or the given one, sampled from, scored, trained, saved and loaded again."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if model is None:
        try:
            model = tiny_model(kind)
        except Exception as error:
            return Examined(kind, "not built", _first_line(error))
    watcher = Watcher()
    try:
        errors = _whole_way(model, watcher)
    except UsageError as refusal:
        before = "refused" if watcher.before is None else "error"
        return Examined(kind, before, str(refusal))
    except Exception as error:
        return Examined(kind, "error", _first_line(error))
    limits = {"old log-probabilities": LOGPROBS, "in parts": LOGPROBS}
    wrong = [f"{name} off by {error:.1e}" for name, error in errors.items() if not error <= limits.get(name, SCORES)]
    outcome = "wrong" if wrong else "works"
    return Examined(kind, outcome, "; ".join(wrong), watcher.parts, watcher.route, errors)


class Closing(HFGenerate):
    """Samples, then ends each response at a place of its own: an untrained model seldom ends by itself."""

    def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Sequences:
        drawn = super().generate(policy, prompts, sampling)
        ids = drawn.response_ids.clone()
        for row in range(len(ids)):
            ids[row, row % ids.shape[1]] = self.tokenizer.eos_token_id
        ended = ids.eq(self.tokenizer.eos_token_id).int()
        mask = (ended.cumsum(1) - ended) == 0
        return replace(drawn, response_ids=ids, response_mask=mask, finished=mask.any(1)).trim()


class Watcher(L.Callback):
    """Keeps what passes by: the policy before its step, the episodes before and after the filter, and the gradient."""

    def __init__(self) -> None:
        self.before: Any = None
        self.episodes: Episodes
        self.kept: Episodes
        self.gradients: dict[str, Tensor] = {}
        self.parts = self.route = ""

    def on_rollout_end(self, trainer: L.Trainer, pl_module: Any, episodes: Episodes) -> Episodes:
        self.before, self.episodes = copy.deepcopy(pl_module.model.policy), episodes
        return episodes.with_extras(row=list(range(len(episodes))))

    def scores(self) -> Tensor:
        """[n] in the order in which the episodes were drawn, of those that were dropped, too."""
        parts = (self.kept, *self.kept.dropped)
        found = {row: score for one in parts for row, score in zip(one.extras["row"], one.extras["score"], strict=True)}
        return torch.tensor([found[row] for row in range(len(self.episodes))])

    def on_update_start(self, trainer: L.Trainer, pl_module: Any, episodes: Episodes) -> None:
        self.kept = episodes

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.model.policy.named_parameters()
        self.gradients = {name: one.grad.clone() for name, one in named if one.grad is not None}


def _whole_way(model: Any, watcher: Watcher) -> dict[str, float]:
    """Largest deviations of what one iteration of I-PPO computes with this model."""
    letters = tokenizer()
    task = _task()
    L.seed_everything(0, verbose=False)
    ppo = PPOOptions(samples_per_prompt=2, inner_epochs=1, minibatch_size=16, kl_coef=0.0, learning_rate=1e-3)
    sampling, evaluation = Sampling(max_new_tokens=NEW), EvaluationOptions()
    models, engine = SeparateModels(model), Closing(letters)
    module = PPOModule(models, letters, task.reward, task.check, ppo, sampling, evaluation, engine)
    scorer = ExactScorer(parameters=1)
    selection = InfluenceFilterCallback(scorer, weight=Uniform(), on_empty="keep_all")
    data = PromptDataModule(task, PromptOptions(prompts_per_iteration=4))
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[watcher, selection],
            default_root_dir=folder,
            logger=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
    watcher.route = scorer.choice
    policy, episodes = watcher.before, watcher.episodes
    plain = [plain_logprobs(policy, episodes, row) for row in range(len(episodes))]
    return {
        "old log-probabilities": _largest([a[: len(b)] - b for a, b in zip(episodes.old_logprobs, plain, strict=True)]),
        "in parts": _in_parts(policy, episodes, plain, watcher),
        "sampled tokens": _greedy_gap(policy, letters, task),
        "scores": _scores(policy, episodes, plain, letters, task, watcher),
        "gradient of the step": _step(policy, watcher),
        "loaded again": _loaded_again(module, letters, episodes),
    }


def plain_logprobs(policy: Any, sequences: Sequences, row: int) -> Tensor:
    """[length] log-probabilities of one response, from a plain forward without padding; keeps the graph."""
    prompt = sequences.prompt_ids[row][sequences.prompt_mask[row]]
    response = sequences.response_ids[row][sequences.response_mask[row]]
    ids = torch.cat([prompt, response])[None]
    takes = inspect.signature(policy.forward).parameters
    positions = {"position_ids": torch.arange(ids.shape[1])[None]} if "position_ids" in takes else {}
    logits = policy(input_ids=ids, use_cache=False, **positions).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, response[:, None])[:, 0]


def _in_parts(policy: Any, episodes: Episodes, plain: list[Tensor], watcher: Watcher) -> float:
    """The same log-probabilities, two tokens of each row at a time."""
    whole, responses.LOGITS_AT_A_TIME = responses.LOGITS_AT_A_TIME, 2 * len(episodes) * 48
    try:
        with torch.no_grad(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = responses.response_logprobs(policy, episodes)
    finally:
        responses.LOGITS_AT_A_TIME = whole
    watcher.parts = "whole" if any("held at a time" in str(one.message) for one in said) else "parts"
    return _largest([a[: len(b)] - b for a, b in zip(found, plain, strict=True)])


@torch.no_grad()
def _greedy_gap(policy: Any, letters: PreTrainedTokenizerBase, task: Task) -> float:
    """How much likelier, at most, another token than the one that ``generate`` took for the likeliest is."""
    drawn = HFGenerate(letters).generate(
        policy, [row["prompt"] for row in task.train[:5]], Sampling(temperature=0.0, max_new_tokens=NEW)
    )
    gaps = []
    for row in range(len(drawn)):
        prompt = drawn.prompt_ids[row][drawn.prompt_mask[row]]
        response = drawn.response_ids[row][drawn.response_mask[row]]
        ids = torch.cat([prompt, response])[None]
        takes = inspect.signature(policy.forward).parameters
        positions = {"position_ids": torch.arange(ids.shape[1])[None]} if "position_ids" in takes else {}
        logits = policy(input_ids=ids, use_cache=False, **positions).logits[0, len(prompt) - 1 : -1]
        gaps.append(logits.max(-1).values - logits.gather(-1, response[:, None])[:, 0])
    return _largest(gaps)


def _scores(
    policy: Any,
    episodes: Episodes,
    plain: list[Tensor],
    letters: PreTrainedTokenizerBase,
    task: Task,
    watcher: Watcher,
) -> float:
    """The filter's scores against one gradient a row, of the PPO loss and of each gold solution."""
    names = sorted(choose(policy, 1))
    parameters = [policy.get_parameter(name) for name in names]
    direction = [torch.zeros_like(one) for one in parameters]
    for row in task.gold:
        prompt, solution = (
            letters(row[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "solution")
        )
        ids = torch.tensor([[*prompt, *solution, letters.eos_token_id]])
        whole = Sequences(
            ids[:, : len(prompt)],
            torch.ones(1, len(prompt)).bool(),
            ids[:, len(prompt) :],
            torch.ones(1, len(solution) + 1).bool(),
        )
        loss = -plain_logprobs(policy, whole, 0).mean() / len(task.gold)
        for total, part in zip(direction, _gradients(loss, parameters), strict=True):
            total += part
    expected = []
    for row, logprobs in enumerate(plain):
        gradients = _gradients(_ppo_loss(logprobs, episodes, row), parameters)
        expected.append(sum((a.double() * b.double()).sum() for a, b in zip(gradients, direction, strict=True)))
    wanted = torch.stack([torch.as_tensor(one) for one in expected]).detach()
    return float((watcher.scores() - wanted).abs().max() / wanted.abs().max())


def _step(policy: Any, watcher: Watcher) -> float:
    """The gradient of the step against the sum of plain gradients of the episodes that were kept, clipped."""
    kept = watcher.kept
    named = {name: one for name, one in policy.named_parameters() if one.requires_grad}
    losses = [_ppo_loss(plain_logprobs(policy, kept, row), kept, row) for row in range(len(kept))]
    wanted = dict(zip(named, _gradients(torch.stack(losses).mean(), list(named.values())), strict=True))
    norm = torch.stack([one.norm() for one in wanted.values()]).norm()
    factor = min(1.0, 1.0 / (float(norm) + 1e-6))
    largest = max(float(one.abs().max()) for one in wanted.values()) * factor
    zero = torch.zeros(())
    errors = [(watcher.gradients.get(name, zero) - factor * one).abs().max() for name, one in wanted.items()]
    return float(max(errors)) / largest


@torch.no_grad()
def _loaded_again(module: PPOModule, letters: PreTrainedTokenizerBase, episodes: Episodes) -> float:
    """Logits of the trained policy after it was saved and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        export(module.model, letters, folder)
        again = AutoModelForCausalLM.from_pretrained(folder).eval()
    first, second = (responses.response_logits(one, episodes) for one in (module.model.policy, again))
    return float((first - second).abs().max() / first.abs().max())


def _ppo_loss(logprobs: Tensor, episodes: Episodes, row: int) -> Tensor:
    """The PPO loss of one row before the first step, by the paper's formula."""
    old, advantages = (values[row, : len(logprobs)] for values in (episodes.old_logprobs, episodes.advantages))
    ratio = (logprobs - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()


def _gradients(loss: Tensor, parameters: list[Any]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)


def _task() -> Task:
    """Sums, whose prompts differ in length, and a reward that an untrained model earns every other time."""
    sums = list(product((2, 7, 13, 105), (3, 40, 8)))
    rows = [{"prompt": f"{a}+{b}=", "solution": f"{a + b} #{a + b}", "answer": str(a + b)} for a, b in sums]

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [float(sum(map(ord, text)) % 2) for text in completions]

    return Task("sums", rows[:8], rows[8:10], rows[10:11], rows[11:], reward, NUMBERS.check)


def _largest(tensors: list[Tensor]) -> float:
    return max(float(one.abs().max()) for one in tensors if one.numel())


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"[:200]
