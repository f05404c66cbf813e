"""What a rollout, an update, scores and an iteration cost on a card, section by section.

    python benchmarks/gpu.py                                    # all that fits into eight minutes, on the GPU
    python benchmarks/gpu.py --sections rollout,lora --shapes qwen05,llama8b
    python benchmarks/gpu.py --device cpu --shapes tiny         # a minute, to see that it runs

Weights are random, so that a response ends once in as many tokens as the vocabulary has: nearly all have their full
length. Each section is
written to ``--out`` (``gpu.md`` and ``gpu.json``) as it ends, so that what was measured stays whatever comes after.
What is compared runs in turn within the section; figures are medians of ``--repeats``, after one that is not counted.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ippo import Episodes, PPOModule, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback, Throughput
from ippo.callbacks.throughput import update_flops
from ippo.data import Task, columns
from ippo.data.prompts import PromptOptions
from ippo.errors import UsageError
from ippo.functional.agreement import flipped
from ippo.functional.throughput import peak_flops
from ippo.influence import ExactScorer
from ippo.influence.parameters import trainable
from ippo.models import LoraOptions, build_models, response_logprobs
from ippo.models.attention import without_cudnn_attention
from ippo.models.layouts import compile_layers
from ippo.models.projection import one_backward
from ippo.modes import evaluation_mode
from ippo.ppo.options import PPOOptions
from ippo.recipes.screen import quiet
from ippo.rollout.engines.base import RolloutEngine
from ippo.rollout.engines.compiled import CompiledGenerate
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A model's shape and the work that is measured with it.

    Args:
        config: of the model.
        layout: how policy, critic and reference share memory.
        episodes, prompt, response: of one iteration; four samples a prompt.
        micro: tokens of a micro-batch, padding included.
        half: whether the weights are kept in bfloat16, which only a frozen base can be.
    """

    config: Any
    layout: Any
    episodes: int
    prompt: int
    response: int
    micro: int
    half: bool = False


def llama(vocabulary: int, width: int, inner: int, layers: int, heads: int, kv: int, tied: bool = True) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        tie_word_embeddings=tied,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def qwen() -> Qwen2Config:
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


SHAPES: dict[str, Callable[[], Shape]] = {
    "tiny": lambda: Shape(llama(386, 64, 192, 2, 4, 2), "separate", 32, 10, 16, 1024),
    "tiny-lora": lambda: Shape(llama(386, 64, 192, 2, 4, 2), "lora", 32, 10, 16, 1024),
    "smollm2": lambda: Shape(llama(49_152, 576, 1536, 30, 9, 3), "separate", 512, 100, 256, 16_384),
    "qwen05": lambda: Shape(qwen(), "lora", 256, 100, 128, 16_384, half=True),
    "llama8b": lambda: Shape(llama(128_256, 4096, 14_336, 32, 32, 8, False), "lora", 64, 100, 128, 8192, half=True),
}


def words(vocabulary: int) -> PreTrainedTokenizerFast:
    """A token a word; the last two are padding and the end."""
    table = {f"t{place}": place for place in range(vocabulary - 2)}
    inner = Tokenizer(WordLevel(table | {"<pad>": vocabulary - 2, "<eos>": vocabulary - 1}, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left")


class Bench:
    """What the sections share for one shape: module, task, clock."""

    def __init__(self, shape: Shape, device: str, repeats: int) -> None:
        self.shape, self.device, self.repeats = shape, torch.device(device), repeats
        torch.manual_seed(0)
        kind = Qwen2ForCausalLM if isinstance(shape.config, Qwen2Config) else LlamaForCausalLM
        dtype = torch.bfloat16 if shape.half else torch.float32
        with torch.device(self.device):
            policy = kind(shape.config).to(dtype)
        self.tokenizer = words(shape.config.vocab_size)
        models = build_models(shape.layout, policy, lora=LoraOptions())
        rng = random.Random(0)
        count = shape.episodes // 4
        texts = [" ".join(f"t{rng.randrange(300)}" for _ in range(shape.prompt)) for _ in range(count + 10)]
        rows = [{"prompt": text, "solution": text, "answer": "0"} for text in texts]
        self.task = Task("random", rows[10:], rows[:8], rows[8:9], rows[9:10], reward, check)
        ppo = PPOOptions(
            samples_per_prompt=4,
            inner_epochs=2,
            minibatch_size=max(8, shape.episodes // 8),
            micro_batch_size=256,
            micro_batch_tokens=shape.micro,
            unfinished_reward=1.0,
        )
        self.module = PPOModule(models, self.tokenizer, reward, check, ppo, Sampling(max_new_tokens=shape.response)).to(
            self.device
        )
        self.module.eval()
        without_cudnn_attention()

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def prompts(self) -> list[str]:
        return [row["prompt"] for row in self.task.train[: self.shape.episodes // 4] for _ in range(4)]

    def rollout(self) -> Episodes:
        with self.autocast():
            return self.module.roll_out(columns(list(self.task.train[: self.shape.episodes // 4])))

    def seconds(self, **works: Callable[[], object]) -> dict[str, tuple[float, float]]:
        """The first call's seconds, and the median of the others, run in turn."""
        first = {name: self._timed(work) for name, work in works.items()}
        later: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(self.repeats):
            for name, work in works.items():
                later[name].append(self._timed(work))
        return {name: (first[name], statistics.median(later[name])) for name in works}

    def _timed(self, work: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def peak(self) -> Iterator[dict[str, float]]:
        """GiB at the peak of what runs inside; on a CPU nothing is known."""
        found: dict[str, float] = {}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield found
        if self.device.type == "cuda":
            found["gib"] = torch.cuda.max_memory_allocated() / 2**30


def reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text) % 2) for text in completions]


def check(completions: list[str], **_: Any) -> dict[str, list[Any]]:
    count = len(completions)
    return {"answer": [None] * count, "correct": [False] * count, "chain": ["wrong"] * count}


# -------------------------------------------------------------------------------------------- sections


def rollout(bench: Bench) -> list[Row]:
    """Seconds and tokens a second of each engine; the first call compiles."""
    sampling, policy = bench.module.sampling, bench.module.model.policy
    engines: dict[str, RolloutEngine] = {name: kind(bench.tokenizer) for name, kind in ENGINES.items()}

    tokens: dict[str, int] = {}

    def drawn(name: str, engine: RolloutEngine) -> Callable[[], object]:
        def work() -> None:
            with bench.autocast():
                tokens[name] = int(engine.generate(policy, bench.prompts(), sampling).lengths.sum())

        return work

    rows = []
    for name, engine in engines.items():  # one after another: what the first holds is not the second's peak
        with bench.peak() as peak:
            first, later = bench.seconds(**{name: drawn(name, engine)})[name]
        row = {"engine": name, "first, s": first, "then, s": later, "tokens/s": tokens[name] / later}
        rows.append({**row, "peak, GiB": peak.get("gib")})
    return rows


def forward_backward(bench: Bench, batches: list[Episodes]) -> Callable[[], object]:
    """Of all micro-batches once, policy and critic."""
    module = bench.module

    def work() -> object:
        sums: dict[str, float] = dict.fromkeys(SUMS, 0.0)
        for micro in batches:
            with bench.autocast():
                loss = module.loss(micro, sums)
            loss.backward()
        module.zero_grad()
        return None

    return work


SUMS = ("policy_loss", "value_loss", "clip_fraction", "policy_step", "episodes", "tokens")


def update(bench: Bench) -> list[Row]:
    """Forward and backward of all episodes once, without the optimizer's steps; then with each layer compiled."""
    episodes, ppo = bench.rollout(), bench.module.ppo
    prompts, responses = int(episodes.prompt_mask.sum()), int(episodes.response_mask.sum())
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else ""
    most = peak_flops(name)
    batches = episodes.chunks(ppo.micro_batch_size, ppo.token_budget)
    rows = []
    for way in ("as they are", "compiled"):
        with layers_compiled(bench) if way == "compiled" else nullcontext(), bench.peak() as peak:
            first, later = bench.seconds(once=forward_backward(bench, batches))["once"]
        flops = update_flops(bench.module.model, prompts, responses) / later
        row = {"layers": way, "first, s": first, "then, s": later, "tokens/s": (prompts + responses) / later}
        row |= {"TFLOP/s": flops / 1e12, "of the peak": flops / most if most else None, "peak, GiB": peak.get("gib")}
        rows.append(row)
    return rows


@contextmanager
def layers_compiled(bench: Bench) -> Iterator[None]:
    """By inductor on a GPU; on a CPU, where that takes minutes, only traced."""
    models: Any = bench.module.model
    compile_layers(models, backend="inductor" if bench.device.type == "cuda" else "eager")
    try:
        yield
    finally:
        for part in models.modules():
            part._compiled_call_impl = None


def padding(bench: Bench) -> list[Row]:
    """Forward and backward of episodes of many lengths: as they come or of like length together, padded on both sides
    with a mask or with each text first and none."""
    episodes, ppo = ragged(bench.rollout()), bench.module.ppo
    parts: list[Any] = [one for one in bench.module.model.modules() if isinstance(one, PreTrainedModel)]  # type: ignore[attr-defined]
    before = [getattr(part, "padding", "auto") for part in parts]
    size = max(1, ppo.micro_batch_tokens // (bench.shape.prompt + bench.shape.response))  # type: ignore[operator]
    batches = {"as they come": episodes.chunks(size), "of like length": episodes.chunks(256, ppo.micro_batch_tokens)}
    ways = {f"{order}, {side}": (order, side) for order in batches for side in ("both", "right")}
    looks: dict[str, int] = {}

    def work(way: str) -> None:
        order, side = ways[way]
        for part in parts:
            part.padding = side
        embeddings, counts = bench.module.model.policy.get_input_embeddings(), []
        handle = embeddings.register_forward_hook(lambda module, args, output: counts.append(args[0].numel()))
        forward_backward(bench, batches[order])()
        handle.remove()
        looks[way] = sum(counts)

    found = bench.seconds(**{way: partial(work, way) for way in ways})
    for part, own in zip(parts, before, strict=True):
        part.padding = own
    real = int(episodes.attention_mask.sum())
    return [
        {"episodes, padding": way, "tokens computed, of the real ones": looks[way] / real, "then, s": later}
        for way, (_, later) in found.items()
    ]


def ragged(episodes: Episodes) -> Episodes:
    """The same with prompts and responses of a quarter of their length and up, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for name in ("prompt_mask", "response_mask"):
        mask = getattr(episodes, name)
        width = mask.shape[1]
        lengths = torch.randint(max(1, width // 4), width + 1, (len(mask), 1), generator=generator).to(mask.device)
        columns = torch.arange(width, device=mask.device)
        inside = columns < lengths if name == "response_mask" else columns >= width - lengths
        masks[name] = mask & inside
    return replace(episodes, **masks)


def scoring(bench: Bench) -> list[Row]:
    """Scores in float32 and in bfloat16 against one forward and backward of the policy's losses, in turn; signs that
    bfloat16 changes."""
    episodes, module = bench.rollout(), bench.module
    policy, ppo = module.scored_module, module.ppo
    batches = episodes.chunks(ppo.micro_batch_size, ppo.token_budget)
    direction = {name: torch.randn_like(one) for name, one in trainable(policy).items()}
    scores: dict[str, torch.Tensor] = {}

    def plain() -> None:
        for batch in batches:
            with bench.autocast():
                losses = module.policy_losses(policy, batch)
            losses.sum().backward()
        module.zero_grad()

    def scored(name: str, scorer: ExactScorer) -> Callable[[], object]:
        def work() -> None:
            with bench.autocast():
                scores[name] = scorer.score(policy, module.policy_losses, batches, direction)

        return work

    ways: dict[str, Any] = {"all parameters": {}, "last block": {"parameters": 1}}
    halves = {}
    works = {"forward and backward": plain}
    for name, options in ways.items():
        halves[name] = ExactScorer("ghost", precision="bfloat16", **options)
        works[name] = scored(name, ExactScorer("ghost", **options))
        works[f"{name}, bfloat16"] = scored(f"{name}, bfloat16", halves[name])
    found = bench.seconds(**works)
    base = found["forward and backward"][1]
    rows = []
    for name, (_, later) in found.items():
        row: Row = {"scores by hooks": name, "then, s": later, "of forward and backward": later / base, "signs": None}
        if name.endswith("bfloat16"):
            row["signs"] = flipped(scores[name.removesuffix(", bfloat16")], scores[name])
            row["scores by hooks"] += (
                " (refused: float32)" if halves[name.removesuffix(", bfloat16")].state_dict()["refused"] else ""
            )
        rows.append(row)
    return rows


def tf32(bench: Bench) -> list[Row]:
    """Float32 scores with and without TF32: seconds, the largest error of a score, and signs that differ."""
    episodes, module = bench.rollout(), bench.module
    batches = episodes.chunks(module.ppo.micro_batch_size, module.ppo.token_budget)
    direction = {name: torch.randn_like(one) for name, one in trainable(module.scored_module).items()}
    scorer, kept, scores, rows = ExactScorer("ghost"), torch.get_float32_matmul_precision(), {}, []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)

        def work(precision: str = precision) -> None:
            scores[precision] = scorer.score(module.scored_module, module.policy_losses, batches, direction)

        _, later = bench.seconds(**{precision: work})[precision]
        off = (scores[precision] - scores["highest"]).abs().max() / scores["highest"].abs().max()
        flips = (scores[precision].sign() != scores["highest"].sign()).float().mean()
        rows.append({"float32 products": precision, "then, s": later, "error": float(off), "signs": float(flips)})
    torch.set_float32_matmul_precision(kept)
    return rows


def iteration(bench: Bench) -> list[Row]:
    """Whole iterations by phase, plain and with the default filter; medians without the first."""
    rows = []
    for name in ("plain", "default filter"):
        for engine in ENGINES:
            bench.module.engine = ENGINES[engine](bench.tokenizer)
            filters = [InfluenceFilterCallback(min_survival=0.0)] if name != "plain" else []
            with bench.peak() as peak:
                middle = fit(bench, bench.module, *filters)
            names = ("rollout", "score", "update", "iteration")
            seconds = {f"{phase}, s": middle.get(f"time/{phase}") for phase in names}
            share = middle.get("time/peak_share")
            rows.append(
                {
                    "filter": name,
                    "engine": engine,
                    **seconds,
                    "update, of the peak": share,
                    "peak, GiB": peak.get("gib"),
                }
            )
    return rows


ENGINES: dict[str, Any] = {"hf": HFGenerate, "compiled": CompiledGenerate}


def fit(bench: Bench, module: PPOModule, *callbacks: L.Callback) -> dict[str, float]:
    """Medians of ``time/*`` over the iterations of a training, but for the first."""
    phases: list[dict[str, float]] = []
    speed = Throughput()

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            named = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("time/")}
            phases.append({**named, **speed.last})

    trainer = L.Trainer(
        max_epochs=1 + bench.repeats,
        accelerator="gpu" if bench.device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if bench.device.type == "cuda" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, speed, Keep()],
    )
    trainer.fit(module, PromptDataModule(bench.task, PromptOptions(prompts_per_iteration=bench.shape.episodes // 4)))
    module.to(bench.device)
    return {key: statistics.median(one.get(key, 0.0) for one in phases[1:]) for key in phases[-1]}


def trl(bench: Bench) -> list[Row]:
    """Whole iterations of group-relative PPO without a reference, against TRL's GRPO trainer with its default
    generation: the same model, episodes, passes and optimizer steps."""
    if bench.shape.layout == "lora":
        return []
    if importlib.util.find_spec("trl") is None:
        raise UsageError("sections", "trl", "it is left out, for TRL is not installed: pip install trl==1.16.0")
    import trl as peer
    from peers.trl_grpo import grpo_seconds

    shape, base = bench.shape, bench.module.model.policy
    minibatch = bench.module.ppo.minibatch_size
    fitting = shape.micro // (shape.prompt + shape.response)
    micro = max(size for size in range(1, minibatch + 1) if minibatch % size == 0 and size <= fitting)
    theirs = grpo_seconds(
        copy.deepcopy(base),
        bench.tokenizer,
        [row["prompt"] for row in bench.task.train[: shape.episodes // 4]],
        reward,
        shape.response,
        minibatch,
        micro,
        bench.repeats,
        bench.device.type,
    )
    baseline = statistics.median(theirs)
    rows: list[Row] = [{"trainer": f"TRL {peer.__version__}, GRPO", "an iteration, s": baseline, "TRL's, of it": 1.0}]
    options = replace(bench.module.ppo, advantage="group_relative", value_coef=0.0, kl_coef=0.0)
    for engine, kind in ENGINES.items():
        models = build_models("separate", copy.deepcopy(base), critic=False, reference=False)
        module = PPOModule(models, bench.tokenizer, reward, check, options, bench.module.sampling)
        module.engine = kind(bench.tokenizer)
        seconds = fit(bench, module.to(bench.device))["time/iteration"]
        rows.append({"trainer": f"here, {engine}", "an iteration, s": seconds, "TRL's, of it": baseline / seconds})
    return rows


def memory(bench: Bench) -> list[Row]:
    """GiB at the peak of each phase; torch knows it of GPUs alone."""
    rows = []
    with bench.peak() as peak:
        episodes = bench.rollout()
    rows.append({"phase": "rollout", "peak, GiB": peak.get("gib")})
    with bench.peak() as peak:
        ppo = bench.module.ppo
        forward_backward(bench, episodes.chunks(ppo.micro_batch_size, ppo.token_budget))()
    rows.append({"phase": "forward and backward", "peak, GiB": peak.get("gib")})
    return rows


def lora(bench: Bench) -> list[Row]:
    """One decoding step of 256 rows (fewer on a small shape): adapters apart, merged, and the base alone."""
    models = bench.module.model
    if bench.shape.layout != "lora":
        return []
    prompts = (bench.prompts() * 256)[: min(256, 4 * bench.shape.episodes)]
    steps = min(32, bench.shape.response)
    sampling = Sampling(max_new_tokens=steps)

    def drawn(policy: Any, **options: Any) -> Callable[[], object]:
        engine = HFGenerate(bench.tokenizer, **options)

        def work() -> object:
            with bench.autocast(), evaluation_mode(policy):
                return engine.generate(policy, prompts, sampling)

        return work

    found = bench.seconds(
        apart=drawn(models.policy, merge_adapters=False), merged=drawn(models.policy), base=drawn(models.reference)
    )
    base = found["base"][1]
    return [
        {"adapters": name, "a step, ms": 1000 * later / steps, "of the base's": later / base}
        for name, (_, later) in found.items()
    ]


def projection(bench: Bench) -> list[Row]:
    """Log-probabilities and gradients in float32, 64 tokens' logits at a time: in pieces, computed twice, or in one."""
    policy, (episodes, *_) = bench.module.model.policy, bench.rollout().chunks(16)
    policy.logits_at_a_time = 64 * policy.config.vocab_size

    def work(fused: bool) -> None:
        policy.fused_projection = fused
        with one_backward():
            (response_logprobs(policy, episodes) * episodes.response_mask).sum().backward()
        policy.zero_grad()

    ways = {"pieces": partial(work, False), "in one": partial(work, True)}
    found = bench.seconds(**ways)
    return [
        {"way": name, "then, s": later, "of pieces": later / found["pieces"][1]} for name, (_, later) in found.items()
    ]


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "rollout": rollout,
    "update": update,
    "padding": padding,
    "scoring": scoring,
    "memory": memory,
    "iteration": iteration,
    "tf32": tf32,
    "projection": projection,
    "lora": lora,
    "trl": trl,
}


# -------------------------------------------------------------------------------------------- the page


def table(rows: list[Row]) -> list[str]:
    """Rows as Markdown; what was not measured is a dash."""
    heads = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(shown(row[name]) for name in heads) + " |" for row in rows]


def shown(value: Any) -> str:
    """Example:
    >>> shown(None), shown("hf"), shown(0.01234), shown(31612.4)
    ('–', 'hf', '0.0123', '31,612')
    """
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default="all", help="all, or some of " + ",".join(SECTIONS))
    parser.add_argument("--shapes", default=None, help="some of " + ",".join(SHAPES) + "; smollm2,qwen05 on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=8.0, help="no section begins after so many")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    a = parser.parse_args()
    sections = list(SECTIONS) if a.sections == "all" else a.sections.split(",")
    shapes = (a.shapes or ("smollm2,qwen05" if a.device == "cuda" else "tiny,tiny-lora")).split(",")
    unknown = [name for name in sections if name not in SECTIONS] + [name for name in shapes if name not in SHAPES]
    if unknown:
        parser.error(f"{unknown[0]!r} is neither a section ({', '.join(SECTIONS)}) nor a shape ({', '.join(SHAPES)})")
    quiet()
    name = torch.cuda.get_device_name() if a.device == "cuda" else platform.machine()
    command = f"--sections {','.join(sections)} --shapes {','.join(shapes)} --repeats {a.repeats}"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    lines = [f"`python benchmarks/gpu.py {command}` · {name} · {versions}, {torch.get_num_threads()} threads."]
    a.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    start = time.perf_counter()
    for shape in shapes:
        bench = None
        for section in sections:
            passed = time.perf_counter() - start
            if passed > 60 * a.minutes:
                lines += ["", f"**{shape}, {section}**: not measured, {a.minutes:g} minutes were over."]
            else:
                bench = bench or Bench(SHAPES[shape](), a.device, a.repeats)
                try:
                    rows, failed = SECTIONS[section](bench), ""
                except Exception as error:  # what one section cannot do must not cost the others' figures
                    rows, failed = [], f"{type(error).__name__}: {str(error)[:200]}"
                results.append({"shape": shape, "section": section, "rows": rows, "failed": failed})
                title = f"**{shape}, {section}**: {(SECTIONS[section].__doc__ or '').strip()}"
                body = table(rows) if rows else [failed or "Nothing to measure with this layout."]
                lines += ["", title, "", *body]
            (a.out / "gpu.md").write_text("\n".join(lines) + "\n")
            (a.out / "gpu.json").write_text(json.dumps({"device": name, "results": results}, indent=1))
            print("\n".join(lines[-6:]), f"[{time.perf_counter() - start:.0f} s]", flush=True)
        del bench
        gc.collect()
        if a.device == "cuda":
            torch.cuda.empty_cache()
            torch.compiler.reset()


if __name__ == "__main__":
    main()
