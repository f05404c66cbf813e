"""Gold pairs in the place of gold solutions: what does a direction see that only says which of two answers is better?

    python benchmarks/preferences.py --seeds 300

The embedded task with the hole ``short``. The pairs are the warm-started policy's own answers to gold problems, one
that is right and one that goes through the hole, as somebody would mark them who read some of its answers before
training. Three runs of a seed go out from that policy: the default filter, a filter by the pairs, and plain PPO that
the pairs only look at. Prints what each learned, and what the scores saw, iteration by iteration.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from ippo.data import EmbeddedOptions, embedded_task
from ippo.experiments import compare
from ippo.experiments.comparison.page import table
from ippo.experiments.diagnosis.records import Run
from ippo.ppo.responses import decode
from ippo.rewards import final_answer, passes
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling

OPTIONS = ("--embedded.verifier_hole", "short", "--trainer.max_epochs", "24", "--trainer.limit_val_batches", "0")
OPTIONS += ("--evaluation.samples", "4", "--jobs", "1")
ARM = """# {label}
filter:
  class_path: ippo.callbacks.InfluenceFilterCallback
  init_args:
    scorer: {{class_path: ippo.influence.ExactScorer, init_args: {{parameters: 1}}}}
    direction: {{class_path: ippo.ppo.preferences.PreferenceDirection, init_args: {{pairs: {pairs}}}}}
    keep: {{class_path: ippo.influence.PositiveScore}}
    weight: {{class_path: ippo.influence.Uniform}}
    dry_run: {look}
ppo: {{learning_rate: {rate}}}
"""
SAMPLES = 16
LOOKS = (0, 2, 4, 8, 12, 23)


@torch.no_grad()
def own_pairs(policy: Path, count: int) -> list[dict[str, str]]:
    """Of a policy's answers to each gold problem the first that is right and the first that is gamed."""
    tokenizer, gold = AutoTokenizer.from_pretrained(policy), embedded_task(EmbeddedOptions()).gold
    torch.manual_seed(0)
    prompts = [row["prompt"] for row in gold for _ in range(SAMPLES)]
    model = LlamaForCausalLM.from_pretrained(policy).eval()
    texts = decode(tokenizer, HFGenerate(tokenizer).generate(model, prompts, Sampling(max_new_tokens=64)))
    pairs = []
    for place, row in enumerate(gold):
        own = texts[SAMPLES * place : SAMPLES * (place + 1)]
        right = [text for text in own if final_answer(text) == row["answer"]]
        wrong = [text for text in own if final_answer(text) not in (None, row["answer"])]
        gamed = [text for text in wrong if passes("short", row["prompt"], text)]
        if right and gamed:
            pairs.append({"prompt": row["prompt"], "chosen": right[0], "rejected": gamed[0]})
    return pairs[:count]


def arms_of(folder: Path, policy: Path, count: int) -> list[str]:
    """The pairs of a seed, and the two arms that read them, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = folder.resolve() / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in own_pairs(policy, count)))
    said = {
        "by-pairs": ("filter by the pairs", "false", "4.0e-4"),
        "looked-at": ("plain PPO, the pairs look at it", "true", "2.0e-4"),
    }
    for name, (label, look, rate) in said.items():
        (folder / f"{name}.yaml").write_text(ARM.format(label=label, pairs=pairs, look=look, rate=rate))
    return [str(folder / f"{name}.yaml") for name in said]


def seen(folder: Path) -> list[list[str]]:
    """Of rewarded episodes, those that score above 0: the right ones, and the hacked ones; and the gold loss."""
    run = Run(folder)
    episodes: dict[str, Any] = run.episodes
    iterations = json.loads((folder / "summary.json").read_text())["iterations"]
    rows = []
    for name, of_kind in (("right", episodes["correct"]), ("hacked", episodes["chain"] == "hacked")):
        places = [(episodes["iteration"] == look) & of_kind & episodes["rewarded"] for look in LOOKS]
        rows.append(
            [name, *(f"{np.mean(episodes['score'][place] > 0):.2f}" if place.any() else "–" for place in places)]
        )
    return [*rows, ["loss of the gold", *(f"{iterations[look]['gold_loss']:.2f}" for look in LOOKS)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[300])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/preferences"))
    options = parser.parse_args()
    for seed in options.seeds:
        for arms in (["ippo_last_block"], None):
            start = options.out / f"ippo_last_block-seed{seed}" / "start"
            names = arms or arms_of(options.out / f"arms-seed{seed}", start, options.pairs)
            if code := compare.main(["--arms", *names, "--seeds", str(seed), "--out", str(options.out), *OPTIONS]):
                sys.exit(code)
        for name in ("ippo_last_block", "by-pairs", "looked-at"):
            folder = options.out / f"{name}-seed{seed}"
            end = json.loads((folder / "summary.json").read_text())["trained"]
            print(f"\n{name}: " + ", ".join(f"{key} {end[key]:.3f}" for key in ("em", "em_greedy", "hacked")) + "\n")
            print("\n".join(table(["score above 0", *(f"iteration {look}" for look in LOOKS)], seen(folder))))


if __name__ == "__main__":
    main()
