"""Seconds of one PPO iteration: against TRL's PPO trainer, with and without the filter, and what scoring costs.

    python benchmarks/iteration.py --peer-python PEERS/bin/python

``PEERS`` is a virtual environment with ``benchmarks/requirements-peers.txt``; without it the comparison is left out.
Everything that is compared runs in turn, A B A B, within this one call; ratios of medians are what counts. Writes
``docs/results/iteration.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ippo import PPOModule, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.data import EmbeddedOptions, Task, columns, embedded_task
from ippo.influence import ExactScorer
from ippo.models import ModelOptions, SeparateModels, build_models, tiny_llama, train_tokenizer
from ippo.ppo.options import EvaluationOptions, PPOOptions
from ippo.recipes.screen import quiet
from ippo.rollout.end_tokens import EndTokens
from ippo.rollout.engines.compiled import CompiledGenerate
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
PROMPT, RESPONSE, VOCABULARY, EPISODES = 10, 34, 384, 256


class FullLength:
    """Before an engine: no token of its policy ends a response."""

    def generate(self, *args: Any) -> Any:
        past = EndTokens((VOCABULARY,), closing=VOCABULARY)
        with patch("ippo.rollout.engines.hf.end_tokens", lambda *_: past):
            return super().generate(*args)  # type: ignore[misc]


class FullHF(FullLength, HFGenerate): ...


class FullCompiled(FullLength, CompiledGenerate): ...


class Clock(L.Callback):
    """Seconds and phases of every iteration."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.phases: list[dict[str, float]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)
        times = {name[5:]: float(value) for name, value in trainer.logged_metrics.items() if name.startswith("time/")}
        self.phases.append(times)


def fit(module: PPOModule, task: Task, iterations: int, *callbacks: L.Callback) -> Clock:
    """Seconds of ``iterations`` iterations, after one that is not counted."""
    clock = Clock()
    trainer = L.Trainer(
        max_epochs=1 + iterations,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[*callbacks, clock],
    )
    trainer.fit(module, PromptDataModule(task))
    clock.seconds, clock.phases = clock.seconds[1:], clock.phases[1:]
    return clock


def fixed_length_module(compiled: bool = False) -> tuple[PPOModule, Task]:
    """The peer's model and sizes. Every response has exactly 34 tokens: nothing ends it.

    Args:
        compiled: whether each layer is a compiled program in updates, and decoding steps are.
    """
    words = {f"t{i}": i for i in range(VOCABULARY - 1)} | {"<eos>": VOCABULARY - 1}
    inner = Tokenizer(WordLevel(words, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="t0", eos_token="<eos>", padding_side="left")
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=True,
            max_position_embeddings=PROMPT + RESPONSE,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    rng = random.Random(0)
    texts = {" ".join(f"t{rng.randrange(VOCABULARY - 1)}" for _ in range(PROMPT)) for _ in range(4 * EPISODES + 3)}
    rows = [{"prompt": text, "solution": text, "answer": "0"} for text in sorted(texts)]

    def check(completions: list[str], **_: Any) -> dict[str, list[Any]]:
        count = len(completions)
        return {"answer": [None] * count, "correct": [False] * count, "chain": ["wrong"] * count}

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [len(text) % 2 for text in completions]

    task = Task("fixed", rows[3:], rows[:1], rows[1:2], rows[2:3], reward, check)
    ppo = PPOOptions(samples_per_prompt=4, inner_epochs=2, learning_rate=3e-4, value_learning_rate=3e-4, kl_coef=0.05)
    sampling = Sampling(max_new_tokens=RESPONSE)
    engine = (FullCompiled if compiled else FullHF)(tokenizer)
    models = build_models("separate", policy, ModelOptions(compile_layers=compiled))
    return PPOModule(models, tokenizer, reward, check, ppo, sampling, engine=engine), task


def embedded_module(inner_epochs: int) -> tuple[PPOModule, Task]:
    """The embedded task and its tiny policy at random weights, 256 episodes an iteration."""
    task = embedded_task(EmbeddedOptions(train_size=2000, verifier_error=0.25))
    tokenizer = train_tokenizer([row["prompt"] + row["solution"] for row in task.train])
    ppo = PPOOptions(samples_per_prompt=4, inner_epochs=inner_epochs, learning_rate=1e-6, value_learning_rate=1e-6)
    model = SeparateModels(tiny_llama(tokenizer))
    return PPOModule(model, tokenizer, task.reward, task.check, ppo, Sampling(), EvaluationOptions()), task


def peer(python: str, iterations: int, threads: int, *options: str) -> dict[str, Any]:
    command = [python, str(ROOT / "benchmarks/peers/trl_ppo.py"), "--iterations", str(iterations)]
    command += [
        *options,
        "--threads",
        str(threads),
        "--vocab",
        str(VOCABULARY),
        "--prompt",
        str(PROMPT),
        "--response",
        str(RESPONSE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def in_turn(rounds: int, **measured: Callable[[], list[float]]) -> dict[str, float]:
    """Median seconds of each, run A B A B ..."""
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            seconds[name] += measure()
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(work: Callable[[], object]) -> list[float]:
    start = time.perf_counter()
    work()
    return [time.perf_counter() - start]


def against_trl(python: str, rounds: int, iterations: int, threads: int) -> dict[str, float]:
    """Plain PPO at the same sizes, two inner epochs of four minibatches."""
    module, task = fixed_length_module()
    compiled, _ = fixed_length_module(compiled=True)
    fit(compiled, task, 1)  # compiles
    trl = lambda: peer(python, iterations, threads)["seconds"]  # noqa: E731
    shipped = lambda: peer(python, iterations, threads, "--no-freeze-gc")["seconds"]  # noqa: E731
    return in_turn(
        rounds,
        ippo=lambda: fit(module, task, iterations).seconds,
        compiled=lambda: fit(compiled, task, iterations).seconds,
        trl=trl,
        shipped=shipped,
    )


def with_filter(rounds: int, iterations: int) -> dict[str, float]:
    """Plain and filtered iterations at four inner epochs on the embedded task; scores in the pass that takes the old
    log-probabilities, as they are by default, and in a pass of their own."""
    module, task = embedded_module(inner_epochs=4)

    def filtered(**options: Any) -> Callable[[], list[float]]:
        return lambda: fit(module, task, iterations, InfluenceFilterCallback.paper(**options)).seconds

    return in_turn(
        rounds,
        plain=lambda: fit(module, task, iterations).seconds,
        filtered=filtered(),
        jvp_apart=filtered(scorer=ExactScorer("jvp"), one_pass=False),
        ghost_apart=filtered(scorer=ExactScorer("ghost"), one_pass=False),
    )


def scoring(rounds: int) -> dict[str, float]:
    """Scores of 256 episodes of the embedded task; their forward and backward; and their log-probabilities, plain and
    with their jvps."""
    module, task = embedded_module(inner_epochs=1)
    batches = module.roll_out(columns(task.train[:64])).chunks(64)
    policy, objective = module.scored_module, module.objective
    direction = {name: torch.randn_like(parameter) for name, parameter in policy.named_parameters()}

    def forward_backward() -> None:
        for batch in batches:
            policy.zero_grad()
            objective.losses(policy, batch).sum().backward()

    @torch.no_grad()
    def logprobs() -> None:
        for batch in batches:
            objective.logprobs(policy, batch)

    measured = {
        "fb": lambda: timed(forward_backward),
        "logprobs": lambda: timed(logprobs),
        "jvps": lambda: timed(lambda: ExactScorer("jvp").derivatives(policy, objective.logprobs, batches, direction)),
        "jvp": lambda: timed(lambda: ExactScorer("jvp").score(policy, objective.losses, batches, direction)),
        "ghost": lambda: timed(lambda: ExactScorer("ghost").score(policy, objective.losses, batches, direction)),
    }
    in_turn(2, **measured)  # warm-up
    return in_turn(rounds, **measured)


def growth(iterations: int) -> dict[str, float]:
    """Change of each phase's seconds over a run of equal iterations, last quarter against first quarter, as a ratio."""
    module, task = embedded_module(inner_epochs=2)
    phases = fit(module, task, iterations, InfluenceFilterCallback.paper()).phases
    quarter = max(1, iterations // 4)
    middle = lambda part, name: statistics.median(one[name] for one in part)  # noqa: E731
    return {name: middle(phases[-quarter:], name) / middle(phases[:quarter], name) for name in phases[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=None, help="python of the peers' virtual environment")
    parser.add_argument("--iterations", type=int, default=5, help="counted iterations a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", default="trl,filter,scoring,growth", help="some of these; the page has them alone")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "results" / "iteration.md")
    a = parser.parse_args()
    quiet()
    torch.set_num_threads(a.threads)
    L.seed_everything(0, verbose=False)
    lines = ["| compared | seconds | seconds | ratio |", "|---|---|---|---|"]
    parts = a.parts.split(",")
    if a.peer_python and "trl" in parts:
        t = against_trl(a.peer_python, a.rounds, a.iterations, a.threads)
        for own, here in (("ippo", "plain iteration here"), ("compiled", "the same compiled")):
            for name, label in (("shipped", "TRL's PPO as shipped"), ("trl", "TRL's PPO without its collections")):
                lines.append(f"| {label} / {here} | {t[name]:.2f} | {t[own]:.2f} | {t[name] / t[own]:.2f} |")
    if "filter" in parts:
        t = with_filter(a.rounds, a.iterations)
        for name, base, label in (
            ("filtered", "plain", "filtered / plain, four inner epochs"),
            ("filtered", "jvp_apart", "filtered / the same, jvp in a pass of its own"),
            ("filtered", "ghost_apart", "filtered / the same, ghost in a pass of its own"),
        ):
            lines.append(f"| {label} | {t[name]:.2f} | {t[base]:.2f} | {t[name] / t[base]:.2f} |")
    if "scoring" in parts:
        t = scoring(4 * a.rounds)
        for name, base, label in (
            ("jvp", "fb", "jvp scores / forward and backward"),
            ("ghost", "fb", "ghost scores / forward and backward"),
            ("jvps", "fb", "log-probabilities with jvps / forward and backward"),
            ("logprobs", "fb", "log-probabilities alone / forward and backward"),
        ):
            lines.append(f"| {label} | {t[name]:.3f} | {t[base]:.3f} | {t[name] / t[base]:.2f} |")
    grown = "not measured"
    if "growth" in parts:
        grown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in growth(8 * a.iterations).items())
    page = [
        "# Seconds of one iteration",
        "",
        f"`python benchmarks/iteration.py --rounds {a.rounds} --iterations {a.iterations} --parts {a.parts}` · "
        f"{a.threads} threads on {os.cpu_count()} cores, {platform.machine()} · torch {torch.__version__}. Medians; "
        "all that is compared ran in turn.",
        "",
        *lines,
        "",
        "First rows: 256 episodes of 10 prompt and 34 response tokens, two inner epochs of four minibatches, a 4-layer "
        "policy of width 64 with a separate critic and a reference, in both trainers (`trl.experimental.ppo` of trl "
        "1.12.0, which collects garbage twice an iteration). *Compiled* is `--engine compiled --models.compile_layers "
        "true`, without the time to compile. The others: 256 episodes of the embedded task by its "
        "tiny policy at random weights.",
        "",
        f"Growth over {8 * a.iterations} iterations with equal episode counts, last quarter over first: {grown}.",
        "",
    ]
    a.report.parent.mkdir(parents=True, exist_ok=True)
    a.report.write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
