"""Time plain-PPO iterations of `trl.experimental.ppo` on CPU at fixed sizes: the peer half of a benchmark.

It runs in the peers' own virtual environment (see benchmarks/requirements-peers.txt), downloads nothing and
imports nothing of this project:

    .venv-peers/bin/python benchmarks/peers/trl_ppo.py --iterations 5 --threads 2

One iteration is TRL's own loop body: generate, score (reference, critic, reward), then the PPO epochs of
minibatches. It is timed from one `on_step_end` to the next, so set-up is outside, and nothing is saved,
sampled for show or reported. The last line on stdout is one JSON object. What stands there under "measured"
was counted while running, and the run fails if that is not the work asked for. Where a setting could favour
one side, it favours TRL.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from typing import Any

# Before the imports that read them: on the CPU whatever the machine has, and never a look at the network.
os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput
from trl.experimental.ppo import PPOConfig, PPOTrainer


class RuleReward(torch.nn.Module):
    """The cheapest reward TRL accepts: it wants a backbone and a `score` head; these have no weights.

    The reward, read at the last token, is the share of even tokens: three tensor operations, next to nothing.
    """

    base_model_prefix = "backbone"
    score = torch.nn.Identity()

    def backbone(self, input_ids: torch.Tensor, **_: Any) -> BaseModelOutput:
        even = (input_ids % 2 == 0).float().cumsum(1) / input_ids.shape[1]
        return BaseModelOutput(hidden_states=(even.unsqueeze(-1),))


class Recorder(transformers.TrainerCallback):
    """Notes the times within each turn of the trainer's loop, and counts the work done in it."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, Any]] = []

    def attach(self, trainer: PPOTrainer) -> None:
        self._generate, trainer.policy_model.generate = trainer.policy_model.generate, self._timed_generate
        # The wrapper of policy and critic is called in the PPO epochs only, once per minibatch. The hook on
        # torch's own optimizer sees real steps, not those accelerate swallows while it accumulates gradients.
        trainer.model.register_forward_pre_hook(self._on_minibatch, with_kwargs=True)
        trainer.optimizer.optimizer.register_step_post_hook(self._on_optimizer_step)

    def _timed_generate(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        start = time.perf_counter()
        output = self._generate(input_ids=input_ids, **kwargs)
        self.now["generated_at"] = time.perf_counter()
        self.now["generate"] += self.now["generated_at"] - start
        new_tokens = output.sequences.shape[1] - input_ids.shape[1]
        self.now["generations"].append((len(input_ids), new_tokens, output.past_key_values is not None))
        return output

    def _on_minibatch(self, _: torch.nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        self.now.setdefault("update_at", time.perf_counter())
        self.now["minibatches"].append((*kwargs["input_ids"].shape, int(kwargs["attention_mask"].sum())))

    def _on_optimizer_step(self, *_: Any) -> None:
        self.now["steps"] += 1
        self.now["updated_at"] = time.perf_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.now: dict[str, Any] = {"start": time.perf_counter(), "generate": 0.0, "steps": 0}
        self.now |= {"generations": [], "minibatches": []}

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.iterations.append(self.now | {"end": time.perf_counter()})
        self.on_train_begin()


def build_trainer(a: argparse.Namespace, output_dir: str) -> tuple[PPOTrainer, Recorder]:
    shape = LlamaConfig(
        vocab_size=a.vocab, hidden_size=a.hidden, intermediate_size=a.intermediate, num_labels=1,
        num_hidden_layers=a.layers, num_attention_heads=a.heads, num_key_value_heads=a.heads,
        max_position_embeddings=a.prompt + a.response, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, attn_implementation=a.attention,
        use_cache=False,  # scoring and training need no key-value cache
    )  # fmt: skip
    policy, reference = transformers.LlamaForCausalLM(shape), transformers.LlamaForCausalLM(shape)
    critic = transformers.LlamaForSequenceClassification(shape)
    reference.load_state_dict(policy.state_dict())
    policy.generation_config.use_cache = True  # generation does, and would else inherit the False above
    # Pad and EOS have ids past the models' vocabulary: never sampled, so no response is cut short or masked.
    words = {f"t{i}": i for i in range(a.vocab)} | {"<pad>": a.vocab, "<eos>": a.vocab + 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<eos>")),
        pad_token="<pad>", eos_token="<eos>", padding_side="left",
    )  # fmt: skip
    config = PPOConfig(
        output_dir=output_dir, use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no",
        report_to="none", num_sample_generations=0, disable_tqdm=True, temperature=1.0, stop_token=None,
        total_episodes=a.episodes * (1 + a.iterations), response_length=a.response,
        kl_coef=0.05, learning_rate=3e-4, num_mini_batches=a.minibatches, num_ppo_epochs=a.epochs,
        # The whole batch as "per device" and no accumulation: a forward, backward and optimizer step per
        # minibatch. With 64 and 4 accumulation steps, TRL steps once in four minibatches, but for the last
        # batch of the data, where it steps at each.
        per_device_train_batch_size=a.episodes, gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=a.rollout_batch,  # of 64, 128 and 256, the largest was the fastest
    )  # fmt: skip
    prompts = Dataset.from_dict({"input_ids": torch.randint(a.vocab, (4 * a.episodes, a.prompt)).tolist()})
    recorder = Recorder()
    trainer = PPOTrainer(
        config, tokenizer, policy, reference, RuleReward(), train_dataset=prompts, value_model=critic,
        callbacks=[recorder],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    recorder.attach(trainer)
    return trainer, recorder


def report(a: argparse.Namespace, iterations: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON object; ends the run where the work counted is not the work asked for."""
    steps, size, width = a.epochs * a.minibatches, a.episodes // a.minibatches, a.prompt + a.response
    asked = (a.episodes, {(a.response, True)}, steps, [(size, width, size * width)] * steps)
    for it in iterations:
        rows, kinds = sum(g[0] for g in it["generations"]), {g[1:] for g in it["generations"]}
        if (counted := (rows, kinds, it["steps"], it["minibatches"])) != asked:
            raise SystemExit(f"TRL did other work than was asked for: counted {counted}, asked {asked}")
    seconds = [it["end"] - it["start"] for it in iterations]
    phases = {
        "generate": [it["generate"] for it in iterations],
        "score": [it["update_at"] - it["generated_at"] for it in iterations],  # and rewards and advantages
        "update": [it["updated_at"] - it["update_at"] for it in iterations],
    }
    phases["rest"] = [total - sum(parts) for total, *parts in zip(seconds, *phases.values(), strict=True)]
    measured = {
        "optimizer_steps": [it["steps"] for it in iterations],
        "new_tokens": sorted({g[1] for it in iterations for g in it["generations"]}),
        "minibatch_episodes": sorted({m[0] for it in iterations for m in it["minibatches"]}),
        "threads": torch.get_num_threads(),
    }
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    return {"peer": "trl.experimental.ppo"} | versions | {
        "seconds": [round(s, 4) for s in seconds],
        "phases": {name: round(statistics.median(values), 4) for name, values in phases.items()},
        "episodes": a.episodes, "measured": measured, "settings": vars(a),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Time PPO iterations of trl.experimental.ppo on CPU.")
    defaults = {"iterations": 5, "threads": 2, "rollout-batch": 256}
    defaults |= {"hidden": 64, "layers": 4, "heads": 4, "intermediate": 192, "vocab": 384}
    defaults |= {"prompt": 10, "response": 34, "episodes": 256, "minibatches": 4, "epochs": 2}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--attention", default="sdpa", choices=("eager", "sdpa"))  # level here; sdpa is usual
    parser.add_argument("--freeze-gc", action=argparse.BooleanOptionalAction, default=True)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as output_dir:
        trainer, recorder = build_trainer(a, output_dir)
        if a.freeze_gc:
            # TRL calls gc.collect() twice per iteration, which walks every object of every imported module: a
            # constant, whatever the sizes, but it shows at small ones. Hiding those objects favours TRL.
            gc.collect()
            gc.freeze()
        trainer.train()
    print(json.dumps(report(a, recorder.iterations[1:])), flush=True)  # the first iteration was the warm-up


if __name__ == "__main__":
    main()
