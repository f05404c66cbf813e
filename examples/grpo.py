"""A GRPO LightningModule as a stranger would write it, rewarded by a verifier that errs; one line lets callbacks in.

The model learns small sums from scratch; a quarter of the rewards are flipped. Half of the sums, solved, guide the
filter."""

from tempfile import mkdtemp
from typing import Any

import lightning as L
import torch
from pyarrow import parquet
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from ippo import emit
from ippo.callbacks import InfluenceFilterCallback
from ippo.influence import Uniform, ValidationDirection

SUMS = torch.tensor([(a, b, 9) for a in range(5) for b in range(5)])  # "a b =", a number is its own token


class GRPO(L.LightningModule):
    samples = 8

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        self.policy = LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes))

    def logprobs(self, prompts: Tensor) -> Tensor:
        """[n, 10] of the answer."""
        return self.policy(input_ids=prompts, use_cache=False).logits[:, -1].log_softmax(-1)

    @torch.no_grad()
    def roll_out(self, prompts: Tensor) -> dict[str, Any]:
        prompts = prompts.repeat_interleave(self.samples, 0)
        answers = torch.multinomial(self.logprobs(prompts).exp(), 1)
        right = answers[:, 0] == prompts[:, :2].sum(1)
        flipped = torch.rand(len(right), device=right.device) < 0.25
        rewards = (right ^ flipped).float().view(-1, self.samples)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
        self.log("right", right.float().mean(), prog_bar=True)
        return {"prompts": prompts, "answers": answers, "advantages": advantages.flatten(), "flipped": flipped}

    def losses(self, episodes: dict[str, Any]) -> Tensor:
        return -episodes["advantages"] * self.logprobs(episodes["prompts"]).gather(1, episodes["answers"])[:, 0]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        episodes = self.roll_out(batch)
        episodes = emit(self.trainer, self, "on_rollout_end", episodes)  # the one line
        return self.losses(episodes).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def solved(module: GRPO, prompts: Tensor) -> Tensor:
    return -module.logprobs(prompts).gather(1, prompts[:, :2].sum(1, keepdim=True))[:, 0]


if __name__ == "__main__":
    L.seed_everything(0)
    run, gold = mkdtemp(), SUMS[torch.randperm(25)[:12]]
    influence_filter = InfluenceFilterCallback(
        losses=GRPO.losses,
        direction=ValidationDirection([gold], solved),
        weight=Uniform(),  # the module reads no weights
        on_empty="keep_all",  # nor can it take a mean over no episode
        audit="audit",
        row_id="flipped",
    )
    trainer = L.Trainer(max_epochs=20, callbacks=[influence_filter], default_root_dir=run)
    trainer.fit(GRPO(), DataLoader(SUMS.repeat(16, 1), 32, shuffle=True))
    rows = parquet.read_table(f"{run}/audit", filters=[("epoch", ">=", 10)]).to_pydict()
    kept, flipped = torch.tensor(rows["kept"]).float(), torch.tensor(rows["id"])
    shares = f"{kept[~flipped].mean():.0%} of the honest rewards, {kept[flipped].mean():.0%} of the flipped ones"
    print(f"Kept in the second half: {shares}.")
    print(f"Right answers in the last rollout: {float(trainer.callback_metrics['right']):.2f}. TensorBoard: {run}")
