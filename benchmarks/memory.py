"""What each card holds where eight share one model: 8 B and 70 B, every weight trained or adapters, by phase.

    python benchmarks/memory.py [--cards 8] [--gib 80]

Worked out from shapes alone, as a run does before it starts (``ippo/models/memory.py``): no weights are read, and
nothing here has run on such cards. Prints the table of ``docs/scaling.md``.
"""

from __future__ import annotations

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ippo.models.memory import GIB, MemoryEstimate
from ippo.recipes.math import RECIPE
from ippo.recipes.memory import estimate
from ippo.recipes.parser import parse, parser_of

SHAPES = {
    "8 B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
    "70 B": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672},
}
"""Llama-3's, with 8 key and value heads and 128,256 tokens, embeddings and head apart."""
PROMPT = 256
PHASES = ("weights", "training", "gathered", "rollout", "scoring", "update")


def needed(size: str, layout: str, cards: int) -> MemoryEstimate:
    """The estimate of one card: GSM8K's options, four episodes a pass, layers run again in the backward pass."""
    words = [
        "--preset=gsm8k_llama3_8b",
        f"--layout={layout}",
        "--ppo.micro_batch_size=4",
        "--sampling.batch_tokens=40000",
    ]
    _, options = parse(parser_of(RECIPE, "train", words), [*words, "--models.gradient_checkpointing=true"])
    with torch.device("meta"):
        policy = LlamaForCausalLM(LlamaConfig(vocab_size=128256, num_key_value_heads=8, **SHAPES[size]))
    return estimate(options, policy.to(torch.bfloat16 if layout == "lora" else torch.float32), PROMPT, cards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cards", type=int, default=8)
    parser.add_argument("--gib", type=float, default=80.0)
    asked = parser.parse_args()
    print(f"| GiB on each of {asked.cards} cards | {' | '.join(PHASES)} | peak | fits into {asked.gib:g} |")
    print("|---" * (len(PHASES) + 3) + "|")
    for size in SHAPES:
        for layout in ("separate", "shared", "lora"):
            found = needed(size, layout, asked.cards)
            numbers = " | ".join(f"{getattr(found, phase) / GIB:.1f}" for phase in PHASES)
            fits = "yes" if found.total <= asked.gib * GIB else "no"
            print(f"| {size}, `{layout}` | {numbers} | {found.total / GIB:.0f} | {fits} |")


if __name__ == "__main__":
    main()
