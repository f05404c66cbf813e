"""What influence scores cost: every backend, subsets, memory, precision, sketches, and dattri-llm beside them.

    python benchmarks/scoring.py                        # all sections: about half an hour on two cores
    python benchmarks/scoring.py --models tiny --sections backends memory

Ratios are of medians; what is compared runs in turn, A B A B, within one process. Models have random weights in the
shapes of real ones; nothing is downloaded. The section ``peer`` needs ``dattri-llm`` in the same environment
(``pip install dattri-llm==0.1.0``) and is left out without it. Writes ``docs/results/scoring.md``, section by section,
so that sections may be run apart.
"""

from __future__ import annotations

import argparse
import copy
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ippo.functional import policy_loss, sft_loss, token_logprobs
from ippo.influence import ExactScorer, RandomProjectionScorer, ValidationDirection, hook_check, score_and_backward

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs/results/scoring.md"
SHAPES = ((16, 128), (64, 64))


class Batch(NamedTuple):
    """[n, t] token ids and [n, t - 1] advantages; old log-probabilities are the model's own, so that ratios are 1."""

    ids: Tensor
    advantages: Tensor


def make_model(name: str, tied: bool = True) -> nn.Module:
    """Random weights in the shape of the embedded policy, of GPT-2 small or of SmolLM2-135M."""
    torch.manual_seed(0)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(tie_word_embeddings=tied)).eval()
    sizes = {
        "tiny": {"vocab_size": 433, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3},
        "smollm2": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    }[name]
    heads = {"tiny": (4, 2), "smollm2": (9, 3)}[name]
    config = LlamaConfig(
        **sizes, num_attention_heads=heads[0], num_key_value_heads=heads[1], tie_word_embeddings=tied, pad_token_id=0
    )
    return LlamaForCausalLM(config).eval()


def make_batch(model: Any, n: int, t: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, model.config.vocab_size, (n, t), generator=generator)
    return Batch(ids, torch.randn(n, t - 1, generator=generator))


def logprobs(model: nn.Module, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return token_logprobs(logits[:, :-1], ids[:, 1:])


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """[n] PPO losses at ratio 1."""
    new = logprobs(model, batch.ids)
    return policy_loss(new, new.detach(), batch.advantages, torch.ones_like(batch.advantages))


def gold_losses(model: nn.Module, ids: Tensor) -> Tensor:
    return sft_loss(logprobs(model, ids), torch.ones(len(ids), ids.shape[1] - 1))


def direction_of(model: Any, t: int) -> dict[str, Tensor]:
    return ValidationDirection([make_batch(model, 8, t, seed=1).ids], gold_losses).compute(model)


def timed(actions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each action; they take turns, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def forward_backward(model: nn.Module, batch: Batch) -> None:
    model.zero_grad(set_to_none=True)
    losses(model, batch).sum().backward()


def singles(batch: Batch) -> list[Batch]:
    return [Batch(*(part[row : row + 1] for part in batch)) for row in range(len(batch.ids))]


def backends(options: argparse.Namespace) -> str:
    """Every backend on every model and shape, as multiples of one forward and backward."""
    rows = [backend_row(name, n, t, options) for name in options.models for n, t in SHAPES]
    return f"""Multiples of one forward and backward of the same batch. *Loop* is one backward an episode, in batches of
one; *projection* makes sketches of rank 16.

| model | episodes × tokens | forward + backward, s | ghost | jvp | loop | fd | projection | best exact |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}"""


def backend_row(name: str, n: int, t: int, options: argparse.Namespace) -> str:
    model = make_model(name)
    batch, along = make_batch(model, n, t), direction_of(model, t)

    def score(backend: Any, batches: list[Batch]) -> Callable[[], Any]:
        return lambda: ExactScorer(backend).score(model, losses, batches, along)

    actions: dict[str, Callable[[], Any]] = {
        "fb": lambda: forward_backward(model, batch),
        "ghost": score("ghost", [batch]),
        "jvp": score("jvp", [batch]),
        "loop": score("loop", singles(batch)),
        "fd": score("fd", [batch]),
        "projection": lambda: RandomProjectionScorer(16).sketches(model, losses, [batch]),
    }
    seconds = timed(actions, rounds_of(name, options))
    ratios = {key: value / seconds["fb"] for key, value in seconds.items()}
    best = min(("ghost", "jvp", "loop"), key=lambda key: ratios[key])
    print(name, n, t, {key: round(value, 3) for key, value in ratios.items()}, flush=True)
    cells = " | ".join(f"{ratios[key]:.2f}" for key in list(actions)[1:])
    return f"| {name} | {n} × {t} | {seconds['fb']:.3f} | {cells} | {best} {ratios[best]:.2f} |"


def checks(options: argparse.Namespace) -> str:
    """What a pass with hooks takes where its rows are probed, and the first one, which is tried against a backward."""
    rows = []
    for name in options.models:
        for n, t in SHAPES:
            model = make_model(name)
            batch, along = make_batch(model, n, t), direction_of(model, t)

            def probed(every: int, model: nn.Module = model, batch: Batch = batch, along: Any = along) -> None:
                with patch.multiple(hook_check, PROBED_FIRST=0, PROBED_EVERY=every):
                    ExactScorer("ghost").score(model, losses, [batch], along)

            def tried(model: nn.Module = model, batch: Batch = batch, along: Any = along) -> None:
                hook_check._trusted.pop(model, None)
                ExactScorer("ghost").score(model, losses, [batch], along)

            actions = {"never": lambda: probed(10**9), "each": lambda: probed(1), "first": tried}
            seconds = timed(actions, rounds_of(name, options))
            each, first = (seconds[key] / seconds["never"] for key in ("each", "first"))
            often = 1 + (each - 1) / hook_check.PROBED_EVERY
            print(name, n, t, round(each, 3), round(often, 3), round(first, 3), flush=True)
            rows.append(f"| {name} | {n} × {t} | {each:.2f} | {often:.3f} | {first:.2f} |")
    return f"""Multiples of a pass with hooks that is not checked. A probe is one backward more through the same graph,
which tells for every row of every layer whether it belongs to one episode; the first pass is also tried against a plain
forward and backward.

| model | episodes × tokens | probed | on the mean, one batch in {hook_check.PROBED_EVERY} | the first |
|---|---|---|---|---|
{chr(10).join(rows)}"""


def rounds_of(name: str, options: argparse.Namespace) -> int:
    return options.rounds if name == "tiny" else options.large_rounds


def fused(options: argparse.Namespace) -> str:
    """A filtered step in one backward, against a plain one and against scoring first."""
    rows = [fused_row(name, n, t, options) for name in options.models for n, t in SHAPES]
    return f"""`score_and_backward`, its direction cached, as multiples of one forward and backward of the whole batch,
beside scoring first (ghost) and then training on the rows that are kept.

| model | episodes × tokens | kept | forward + backward, s | fused | score, then step |
|---|---|---|---|---|---|
{chr(10).join(rows)}"""


def fused_row(name: str, n: int, t: int, options: argparse.Namespace) -> str:
    model = make_model(name)
    batch, along = make_batch(model, n, t), direction_of(model, t)
    scorer = ExactScorer("ghost")
    kept = (scorer.score(model, losses, [batch], along) > 0).nonzero().flatten()

    def in_one() -> None:
        model.zero_grad(set_to_none=True)
        score_and_backward(model, losses, batch, along, lambda scores: (scores > 0).float())

    def one_after_the_other() -> None:
        scorer.score(model, losses, [batch], along)
        forward_backward(model, Batch(*(part[kept] for part in batch)))

    actions = {"fb": lambda: forward_backward(model, batch), "fused": in_one, "apart": one_after_the_other}
    seconds = timed(actions, rounds_of(name, options))
    ratios = {key: value / seconds["fb"] for key, value in seconds.items()}
    print(name, n, t, len(kept), {key: round(value, 3) for key, value in ratios.items()}, flush=True)
    cells = f"{len(kept)} | {seconds['fb']:.3f} | {ratios['fused']:.2f} | {ratios['apart']:.2f}"
    return f"| {name} | {n} × {t} | {cells} |"


def subsets(options: argparse.Namespace) -> str:
    """The last quarter of the blocks, and LoRA on a frozen model."""
    rows = []
    name = "gpt2" if "gpt2" in options.models else options.models[0]
    model, (n, t) = make_model(name), SHAPES[0]
    batch = make_batch(model, n, t)
    blocks = model.config.n_layer if name == "gpt2" else model.config.num_hidden_layers  # type: ignore[union-attr]
    quarter = max(1, blocks // 4)
    along = direction_of(model, t)
    lora: Any = get_peft_model(
        copy.deepcopy(model),
        LoraConfig(r=16, target_modules=["c_attn", "c_proj", "c_fc"] if name == "gpt2" else "all-linear"),  # type: ignore[arg-type]
    ).eval()
    lora_along = direction_of(lora, t)
    actions: dict[str, Callable[[], Any]] = {
        "fb": lambda: forward_backward(model, batch),
        "lora fb": lambda: forward_backward(lora, batch),
    }
    for backend in ("ghost", "jvp"):
        last = ExactScorer(backend, parameters=quarter)  # type: ignore[arg-type]
        actions[f"last {backend}"] = lambda last=last: last.score(model, losses, [batch], along)
        whole = ExactScorer(backend)  # type: ignore[arg-type]
        actions[f"lora {backend}"] = lambda whole=whole: whole.score(lora, losses, [batch], lora_along)
    seconds = timed(actions, rounds_of(name, options))
    for label, part, base in (
        (f"last {quarter} of {blocks} blocks", "last", "fb"),
        ("LoRA r = 16 on the frozen model", "lora", "lora fb"),
    ):
        ghost, jvp = (seconds[f"{part} {backend}"] / seconds[base] for backend in ("ghost", "jvp"))
        print(name, label, round(ghost, 3), round(jvp, 3), flush=True)
        what = "the whole model" if base == "fb" else "the same LoRA model"
        rows.append(f"| {name}, {label} | {what} | {ghost:.2f} | {jvp:.2f} |")
    return "\n".join(["| scored | against forward + backward of | ghost | jvp |", "|---|---|---|---|", *rows])


def memory(options: argparse.Namespace) -> str:
    """Time and peak memory against the number of episodes; each number in a process of its own."""
    rows = []
    for backend in ("ghost", "jvp"):
        for n in (64, 256, 1024):
            command = [sys.executable, __file__, "--child", backend, str(n), "--threads", str(options.threads)]
            seconds, extra = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            print(backend, n, seconds, extra, flush=True)
            rows.append(f"| {backend} | {n} | {float(seconds):.2f} | {float(seconds) / n * 1000:.2f} | {extra} |")
    return "\n".join(
        [
            "The tiny policy, 64 tokens an episode, micro-batches of 32. Extra memory is the peak of the process over",
            "what it was after one forward, backward and scoring of a micro-batch.",
            "",
            "| backend | episodes | seconds | ms an episode | extra MiB |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def child(backend: Any, n: int) -> None:
    """Print seconds and extra MiB of scoring ``n`` episodes."""
    model: Any = make_model("tiny")
    along = direction_of(model, 64)
    first = make_batch(model, 32, 64)
    forward_backward(model, first)
    ExactScorer(backend).score(model, losses, [first], along)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    ExactScorer(backend).score(model, losses, (make_batch(model, 32, 64, seed) for seed in range(n // 32)), along)
    seconds = time.perf_counter() - start
    print(f"{seconds:.3f} {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f}")


def precision(options: argparse.Namespace) -> str:
    """Signs that bfloat16 flips, and how near to zero they were."""
    rows = []
    for name in options.models:
        model: Any = make_model(name)
        t = 64
        batches = [make_batch(model, 16, t, seed) for seed in range(16 if name == "tiny" else 2)]
        along = direction_of(model, t)
        exact = ExactScorer("ghost").score(model, losses, batches, along)
        half = copy.deepcopy(model).bfloat16()
        for backend in ("ghost", "jvp"):
            scores = ExactScorer(backend).score(half, losses, batches, along)  # type: ignore[arg-type]
            flipped = (scores > 0) != (exact > 0)
            error = float((scores - exact).abs().max() / exact.abs().max())
            margin = float(exact[flipped].abs().max() / exact.abs().max()) if flipped.any() else 0.0
            print(name, backend, float(flipped.float().mean()), margin, error, flush=True)
            rows.append(
                f"| {name} | {backend} | {len(exact)} | {flipped.float().mean():.1%} | {margin:.4f} | {error:.4f} |"
            )
    return "\n".join(
        [
            "Weights and activations in bfloat16 against float32. *Margin* is the largest score whose sign flipped,",
            "and *error* the largest error, both as shares of the largest score.",
            "",
            "| model | backend | episodes | signs flipped | margin | error |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def ranks(options: argparse.Namespace) -> str:
    """How well sketches agree with exact scores."""
    model: Any = make_model("tiny")
    batches = [make_batch(model, 64, 64, seed) for seed in range(4)]
    along = direction_of(model, 64)
    exact = ExactScorer("ghost").score(model, losses, batches, along)
    rows = []
    for rank in (4, 8, 16, 32, 64):
        found = [RandomProjectionScorer(rank, seed).score(model, losses, batches, along) for seed in range(8)]
        correlation = [float(torch.corrcoef(torch.stack([scores, exact]))[0, 1]) for scores in found]
        agreement = [float(((scores > 0) == (exact > 0)).float().mean()) for scores in found]
        between = float(torch.corrcoef(torch.stack(found[:2]))[0, 1])
        size = RandomProjectionScorer(rank).sketches(model, losses, batches[:1]).rows.shape[1]
        print(rank, statistics.mean(correlation), statistics.mean(agreement), flush=True)
        cells = f"{statistics.mean(correlation):.2f} | {statistics.mean(agreement):.1%} | {between:.2f}"
        rows.append(f"| {rank} | {size:,} | {cells} |")
    return "\n".join(
        [
            "The tiny policy (174,848 parameters), 256 episodes; means over eight seeds of the projection.",
            "",
            "| rank | numbers a sketch | correlation with exact | same sign | between two seeds |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def peer(options: argparse.Namespace) -> str:
    """dattri-llm's data selection on the same rows: a pruned buffer of four epochs, and a single filtered step."""
    rows = [row for name in options.models if name != "smollm2" for row in peer_rows(name, rounds_of(name, options))]
    return f"""Untied models, where both definitions are the same (the peer counts a tied weight apart in each layer).
*Buffer*: ours takes a fresh direction, scores once and trains on the survivors; the peer selects in every step, with a
fresh validation gradient each time, as its `target="val_loader"` does. *One step*: the direction is held on both sides;
the peer's is the faster of a factorized and a summed target. *Score error* is the largest difference of scores, as a
share of the largest.

| | ours, s | dattri-llm 0.1.0, s | ratio | score error |
|---|---|---|---|---|
{chr(10).join(rows)}"""


def peer_rows(name: str, rounds: int) -> list[str]:
    sys.path.insert(0, str(ROOT / "benchmarks/peers"))
    import dattri_selection as dattri

    n, t = SHAPES[1] if name == "tiny" else SHAPES[0]
    model: Any = make_model(name, tied=False)
    batch, gold = make_batch(model, n, t), make_batch(model, 8, t, seed=1).ids
    their_batch = dattri.Rows(
        batch.ids, torch.ones_like(batch.ids), nn.functional.pad(batch.advantages / (t - 1), (1, 0))
    )
    gold_weights = nn.functional.pad(torch.full((len(gold), t - 1), 1 / (t - 1)), (1, 0))
    their_gold = dattri.Rows(gold, torch.ones_like(gold), gold_weights)
    direction = ValidationDirection([gold], gold_losses)
    along, target = direction.compute(model), dattri.validation_gradient(model, their_gold)
    scores = ExactScorer("ghost").score(model, losses, [batch], along)
    their_scores = sum(dattri.layer_scores(model, their_batch, target).values())
    error = float((scores - their_scores).abs().max() / scores.abs().max())

    optimizer = cheap_optimizer(model)
    size = 16

    def step(rows: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        losses(model, Batch(*(part[rows] for part in batch))).mean().backward()
        optimizer.step()

    def score_once_and_train() -> None:
        kept = (ExactScorer("ghost").score(model, losses, [batch], direction) > 0).nonzero().flatten()
        for _ in range(4):
            for rows in kept.split(size):
                step(rows)

    def fused_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        score_and_backward(model, losses, batch, along, lambda scores: (scores > 0) / (scores > 0).sum().clamp(min=1))
        optimizer.step()

    def training(validation: Any) -> Any:
        own = copy.deepcopy(model)
        return dattri.FilteredTraining(own, cheap_optimizer(own), validation, renormalize=True)

    def select_in_each_step(side: Any) -> None:
        for _ in range(4):
            for rows in torch.arange(n).split(size):
                side.step(dattri.Rows(*(part[rows] for part in their_batch)))

    fresh = training(their_gold)
    buffer = timed({"ours": score_once_and_train, "theirs": lambda: select_in_each_step(fresh)}, rounds)
    fresh.close()
    held, summed = training(target), training(dattri.summed(target))
    single = timed(
        {
            "plain": lambda: step(torch.arange(n)),
            "ours": fused_step,
            "factorized": lambda: held.step(their_batch),
            "summed": lambda: summed.step(their_batch),
        },
        rounds,
    )
    best = min(single["factorized"], single["summed"])
    print(name, error, buffer, single, flush=True)
    steps = f"four epochs, minibatches of {size}"
    plain = f"a plain step takes {single['plain']:.3f}"
    return [
        f"| {name}, {n} × {t}: buffer, {steps} | {buffer['ours']:.3f} | {buffer['theirs']:.3f} "
        f"| {buffer['theirs'] / buffer['ours']:.2f} | {error:.1e} |",
        f"| {name}, {n} × {t}: one step ({plain}) | {single['ours']:.3f} | {best:.3f} "
        f"| {best / single['ours']:.2f} | |",
    ]


def cheap_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The same on every side, at a rate that leaves the model where it is."""
    return torch.optim.SGD(model.parameters(), 1e-9)


SECTIONS: dict[str, tuple[str, Callable[[argparse.Namespace], str]]] = {
    "backends": ("Backends", backends),
    "checks": ("What checking costs", checks),
    "fused": ("One backward that scores and trains", fused),
    "subsets": ("Fewer parameters", subsets),
    "memory": ("Memory and time against the number of episodes", memory),
    "precision": ("bfloat16", precision),
    "ranks": ("Random projection", ranks),
    "peer": ("Against dattri-llm", peer),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "gpt2", "smollm2"])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=9, help="of the tiny model")
    parser.add_argument("--large-rounds", type=int, default=2, help="of the others")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.child[0], int(options.child[1]))
        return
    versions = f"python {platform.python_version()} torch {torch.__version__} transformers {transformers.__version__}"
    for key in options.sections:
        title, section = SECTIONS[key]
        command = f"python benchmarks/scoring.py --sections {key} --models {' '.join(options.models)}"
        try:
            body = section(options)
        except ModuleNotFoundError as error:
            print(f"{key}: left out, {error}")
            continue
        threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
        where = f"{threads}, {platform.machine()}, {versions}, float32 unless said"
        write(title, f"`{command}` · {where}.\n\n{body}")


def write(title: str, body: str) -> None:
    """Put a section into the report, in the place of its predecessor."""
    text = REPORT.read_text() if REPORT.exists() else "# What scores cost\n"
    section = f"## {title}\n\n{body}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    found = pattern.search(text)
    text = text[: found.start()] + section + "\n" + text[found.end() :] if found else f"{text.rstrip()}\n\n{section}"
    REPORT.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
