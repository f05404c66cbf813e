"""I-PPO (arXiv 2604.01597) in one file: PPO that asks of each rollout whether to learn from it.

A Llama of 0.2 M parameters learns word problems from a verifier that errs on one reward in four. Each rollout is scored
by the dot product of its PPO gradient with the gradient of the SFT loss on 256 solutions that we trust. What points the
other way is dropped before the update.

    python examples/ippo_in_one_file.py                                       # what stays weighs alike
    python examples/ippo_in_one_file.py --filter paper                        # what stays weighs as it scores
    python examples/ippo_in_one_file.py --filter none --learning_rate 2e-4    # plain PPO, at the rate that suits it

Read `ippo`, which is the algorithm, then what it calls. Of the library there is only the task: problems, verifier, and
the check that knows the truth. Settings and results are those of `ippo.recipes.math --filter uniform` with as many
random errors. Left out: what a small model does not need (processes, half precision, LoRA, micro-batches) nor a short
run (checkpoints, guards, curves, episode files); what is not the paper's choice (other scores, directions, rules,
advantages); scores in the pass of the old log-probabilities, which saves time and hides what a score is; the stop.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad
from torch.optim import AdamW, lr_scheduler
from torch.utils.data import DataLoader, RandomSampler
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ippo.data.embedded import EmbeddedOptions, embedded_task


@dataclass
class Settings:
    filter: Literal["uniform", "paper", "none"] = "uniform"
    seed: int = 0
    warm_start_steps: int = 1500
    iterations: int = 40
    prompts: int = 64  # an iteration
    samples: int = 4  # responses to each prompt
    inner_epochs: int = 2
    minibatch_size: int = 64
    learning_rate: float = 4e-4
    value_learning_rate: float = 1e-3
    clip: float = 0.2
    kl_coef: float = 0.03


class Texts(NamedTuple):
    """n prompts, padded on the left, each with its response, padded on the right, so that all responses start in one
    column. Whatever belongs to a token, here and below, is [n, t] and zero outside of the responses."""

    ids: Tensor  # [n, t]
    real: Tensor  # [n, t] True where there is no padding
    response: Tensor  # [n, t] True on the response, its end-of-sequence token included

    def inputs(self) -> dict[str, Any]:
        """What a model is called with. Positions count from the first token that is real."""
        ids_and_mask = {"input_ids": self.ids, "attention_mask": self.real.long(), "use_cache": False}
        return {**ids_and_mask, "position_ids": (self.real.cumsum(1) - 1).clamp(min=0)}

    def mean(self, values: Tensor) -> Tensor:
        """[n] means over the tokens of each response."""
        return values.sum(1) / self.response.sum(1)


class Episodes(NamedTuple):
    """The rollout buffer."""

    texts: Texts
    logprobs: Tensor  # [n, t] under the policy that sampled
    values: Tensor  # [n, t] the critic's at that time
    advantages: Tensor  # [n, t]
    returns: Tensor  # [n, t] what the critic is to learn
    weights: Tensor  # [n] of the policy losses

    def rows(self, index: Tensor) -> Episodes:
        return Episodes(Texts(*(each[index] for each in self.texts)), *(each[index] for each in self[1:]))


def ippo(policy: Any, tokenizer: Any, task: Any, settings: Settings) -> Iterator[tuple[float, float]]:
    """Train the policy in place; of each iteration, tell the share of right responses, and of those learned from."""
    reference, critic, gold = copy.deepcopy(policy), Critic(policy), encode(tokenizer, task.gold)
    rates = {policy: settings.learning_rate, critic: settings.value_learning_rate}
    optimizer = AdamW([{"params": each.parameters(), "lr": rate} for each, rate in rates.items()], weight_decay=0.0)
    schedule = lr_scheduler.LambdaLR(optimizer, lambda i: 1 - 0.9 * i / settings.iterations)
    for _ in range(settings.iterations):
        # Roll out: some responses to each prompt. The verifier rewards them; an unfinished one earns nothing.
        drawn = torch.randperm(len(task.train))[: settings.prompts]
        rows = [task.train[place] for place in drawn for _ in range(settings.samples)]
        texts, answers = sample(policy, tokenizer, rows)
        last = texts.response & ~pad(texts.response[:, 1:], (0, 1))  # [n, t] True on each response's last token
        rewards = torch.tensor(task.reward(**answers)) * (texts.ids[last] == tokenizer.eos_token_id)

        # Advantages. The reward goes to the last token, the price of leaving the reference to each. This is GAE with
        # gamma = lambda = 1: the rewards that are still to come, minus the value; then whitened over all tokens.
        with torch.no_grad():
            logprobs, values = response_logprobs(policy, texts), critic(texts)
            token_rewards = -settings.kl_coef * (logprobs - response_logprobs(reference, texts))
        token_rewards[last] += rewards
        returns = token_rewards.flip(1).cumsum(1).flip(1) * texts.response
        std, mean = torch.std_mean((returns - values)[texts.response], correction=0)
        advantages = (returns - values - mean) / (std + 1e-8) * texts.response
        episodes = Episodes(texts, logprobs, values, advantages, returns, weights=torch.ones(len(rows)))

        if settings.filter != "none":
            # An episode that scores below zero goes: to learn from it would raise the loss of the gold solutions.
            scores = influence_scores(policy, episodes, gold, settings.clip)
            episodes = episodes.rows(scores > 0)
            if settings.filter == "paper":
                episodes = episodes._replace(weights=scores[scores > 0] / scores[scores > 0].mean())

        n = len(episodes.weights)  # of those that stay; PPO epochs over them follow, and what was dropped costs nothing
        for _ in range(settings.inner_epochs if n else 0):
            for index in torch.randperm(n).tensor_split(-(-n // settings.minibatch_size)):
                batch = episodes.rows(index)
                policy_losses = ppo_losses(response_logprobs(policy, batch.texts), batch, settings.clip)
                losses = batch.weights * policy_losses + value_losses(critic(batch.texts), batch, settings.clip)
                optimizer.zero_grad()
                losses.mean().backward()
                for model in (policy, critic):
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        schedule.step()
        yield sum(task.check(**answers)["correct"]) / len(rows), n / len(rows)


class Critic(nn.Module):
    """The return to expect before each token: a copy of the policy's trunk, with a head that starts at zero."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.trunk, self.head = copy.deepcopy(policy.model), nn.Linear(policy.config.hidden_size, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, texts: Texts) -> Tensor:
        values = self.head(self.trunk(**texts.inputs()).last_hidden_state[:, :-1]).squeeze(-1)
        return pad(values, (1, 0)) * texts.response


def response_logprobs(policy: Any, texts: Texts, parameters: Mapping[str, Tensor] = {}) -> Tensor:
    """[n, t] log-probabilities of the responses' tokens, each predicted by the one before it."""
    logprobs = torch.func.functional_call(policy, parameters, (), texts.inputs()).logits[:, :-1].log_softmax(-1)
    return pad(logprobs.gather(-1, texts.ids[:, 1:, None]).squeeze(-1), (1, 0)) * texts.response


def influence_scores(policy: Any, episodes: Episodes, gold: Texts, clip: float) -> Tensor:
    """[n] dot products of each episode's PPO gradient with the direction, the gradient of the SFT loss on the gold
    solutions. No episode's gradient is ever made: the product is how fast its loss changes as the parameters move along
    the direction, and one pass in forward mode tells that of all episodes."""
    parameters = dict(policy.named_parameters())
    gold_loss = -gold.mean(response_logprobs(policy, gold)).mean()
    direction = dict(zip(parameters, torch.autograd.grad(gold_loss, tuple(parameters.values())), strict=True))

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        return ppo_losses(response_logprobs(policy, episodes.texts, parameters), episodes, clip)

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward derivative
        return torch.func.jvp(losses, (parameters,), (direction,))[1]


def ppo_losses(logprobs: Tensor, episodes: Episodes, clip: float) -> Tensor:
    """[n] clipped surrogates: what is scored is what is trained."""
    ratio, advantages = (logprobs - episodes.logprobs).exp(), episodes.advantages
    return -episodes.texts.mean(torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages))


def value_losses(values: Tensor, episodes: Episodes, clip: float) -> Tensor:
    """[n] half the squared errors; to move further than ``clip`` from the old value gains nothing."""
    near = episodes.values + (values - episodes.values).clamp(-clip, clip)
    return episodes.texts.mean(torch.maximum((values - episodes.returns) ** 2, (near - episodes.returns) ** 2)) / 2


def sample(policy: Any, tokenizer: Any, rows: Sequence[Any]) -> tuple[Texts, dict[str, Any]]:
    """A response to each row's prompt, drawn from the policy's whole distribution: PPO's ratios are about no other."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    prompts = tokenizer(columns["prompt"], padding=True, return_tensors="pt")
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 40}
    ids = policy.generate(**prompts, **options)[:, prompts["input_ids"].shape[1] :]
    ends = (ids == tokenizer.eos_token_id).int()
    real = ends.cumsum(1) - ends == 0  # up to the first end of sequence, and with it
    texts = tokenizer.batch_decode([row[one] for row, one in zip(ids, real, strict=True)], skip_special_tokens=True)
    completions = [text * ended for text, ended in zip(texts, ends.any(1).tolist(), strict=True)]  # no end, no answer
    return join(*prompts.values(), ids, real), {**columns, "prompts": columns["prompt"], "completions": completions}


def encode(tokenizer: Any, rows: Sequence[Any]) -> Texts:
    """The rows' prompts, with their solutions as responses."""
    options = {"padding": True, "return_tensors": "pt"}
    prompts = tokenizer([row["prompt"] for row in rows], **options)
    solutions = tokenizer([row["solution"] + tokenizer.eos_token for row in rows], padding_side="right", **options)
    return join(*prompts.values(), *solutions.values())


def join(prompt_ids: Tensor, prompt: Tensor, response_ids: Tensor, response: Tensor) -> Texts:
    ids, real = torch.cat([prompt_ids, response_ids], 1), torch.cat([prompt, response], 1).bool()
    return Texts(ids, real, pad(response.bool(), (prompt.shape[1], 0)))


def new_policy(texts: Sequence[str]) -> tuple[Any, Any]:
    """A Llama with random weights, and a tokenizer made from the texts, to which a number is one token."""
    pieces = pre_tokenizers.Split(Regex(r"[0-9]{1,3}| ?\p{L}+|[\s\S]"), behavior="isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Sequence([pieces, in_bytes]), decoders.ByteLevel()
    options = {"initial_alphabet": in_bytes.alphabet(), "special_tokens": ["<pad>", "<eos>"], "show_progress": False}
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=512, **options))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>", padding_side="left")
    shape = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **heads, **tokens)), tokenizer


def warm_start(policy: Any, tokenizer: Any, task: Any, settings: Settings) -> None:
    """Fine-tune on the demonstrations, of which 45 % reach the right answer by an unfaithful chain."""
    steps, draw = settings.warm_start_steps, torch.Generator().manual_seed(settings.seed)
    order = RandomSampler(task.train, num_samples=32 * steps, generator=draw)
    optimizer = AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = lr_scheduler.LambdaLR(optimizer, lambda i: min(20 * (i + 1) / steps, 0.1 + 18 / 19 * (1 - i / steps)))
    for batch in DataLoader(task.train, 32, sampler=order, collate_fn=lambda rows: encode(tokenizer, rows)):
        loss = -batch.mean(response_logprobs(policy, batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def exact_match(policy: Any, tokenizer: Any, task: Any) -> str:
    truth = task.check(**sample(policy, tokenizer, 8 * task.test)[1])
    right, faithful = sum(truth["correct"]), truth["chain"].count("faithful")
    return f"EM {right / len(truth['correct']):.3f}, right by unfaithful reasoning {1 - faithful / max(1, right):.3f}"


if __name__ == "__main__":
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses()
    torch.manual_seed(settings.seed)
    task = embedded_task(EmbeddedOptions(verifier_error=0.25))
    policy, tokenizer = new_policy([row["prompt"] + row["solution"] for row in task.train])
    warm_start(policy, tokenizer, task, settings)
    print("Warm start:", exact_match(policy, tokenizer, task))
    for iteration, (right, kept) in enumerate(ippo(policy, tokenizer, task, settings)):
        print(f"Iteration {iteration}: {right:.0%} of the responses right, {kept:.0%} learned from")
    print("Trained:", exact_match(policy, tokenizer, task))
