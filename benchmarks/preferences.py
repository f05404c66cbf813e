"""Gold pairs in the place of gold solutions: does a direction that says which of two answers is better guard as well?

    python benchmarks/preferences.py --seeds 300 301 --pairs 32

The embedded task with the hole ``short``. The pairs are of the gold problems: their true solution, preferred to an
answer that goes through the hole, as somebody who tried to trick the verifier would have written it down. Beside it
runs the same filter by the same solutions alone. Prints the report of the comparison.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from ippo.data import EmbeddedOptions, embedded_task
from ippo.data.task import Row
from ippo.experiments import compare
from ippo.rewards import passes

LENGTH = ("--trainer.max_epochs", "24", "--trainer.limit_val_batches", "0", "--evaluation.samples", "4")
ARM = """# gold pairs: the solution is preferred to an answer that games the verifier
filter:
  class_path: ippo.callbacks.InfluenceFilterCallback
  init_args:
    scorer: {{class_path: ippo.influence.ExactScorer, init_args: {{parameters: 1}}}}
    direction: {{class_path: ippo.ppo.preferences.PreferenceDirection, init_args: {{pairs: {pairs}}}}}
    keep: {{class_path: ippo.influence.PositiveScore}}
    weight: {{class_path: ippo.influence.Uniform}}
"""


def pairs_of(gold: Sequence[Row]) -> list[dict[str, str]]:
    """Each problem with its solution, and with the first step or none of it and a number that is wrong."""
    rng, pairs = random.Random(0), []
    for row in gold:
        wrong = rng.choice([number for number in range(41) if number != int(row["answer"])])
        gamed = "\n".join([*row["steps"][: rng.randint(0, 1)], f"#### {wrong}"])
        assert passes("short", row["prompt"], gamed)
        pairs.append({"prompt": row["prompt"], "chosen": row["solution"], "rejected": gamed})
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[300, 301])
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/preferences"))
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    gold = embedded_task(EmbeddedOptions(gold_size=options.pairs)).gold
    rows, arm = (options.out.resolve() / f"{kind}-{options.pairs}" for kind in ("pairs", "preferences"))
    rows, arm = rows.with_suffix(".jsonl"), arm.with_suffix(".yaml")
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs_of(gold)))
    arm.write_text(ARM.format(pairs=rows))
    words = ["--arms", "ippo_last_block", str(arm), "--seeds", *map(str, options.seeds)]
    words += ["--out", str(options.out / f"gold-{options.pairs}"), "--jobs", str(options.jobs)]
    dials = ["--embedded.verifier_hole", "short", "--embedded.gold_size", str(options.pairs)]
    sys.exit(compare.main([*words, *dials, *LENGTH]))


if __name__ == "__main__":
    main()
