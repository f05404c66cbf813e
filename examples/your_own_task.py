"""A task and a reward of your own: write three digits backwards. Half of the demonstrations do not."""

import random

import lightning as L

from ippo import PPOModule, PromptDataModule, SFTModule
from ippo.callbacks import InfluenceFilterCallback, NumericGuard
from ippo.data import Task
from ippo.data.demonstrations import encode_demonstrations
from ippo.models import SeparateModels, tiny_llama, train_tokenizer
from ippo.ppo.options import PPOOptions
from ippo.rewards import AnswerFormat
from ippo.rollout.sampling import Sampling
from ippo.sft import SFTOptions, demonstration_loader


def reward(prompts, completions, answer, **columns):  # what training is told: the share of digits in their place
    return [sum(map(str.__eq__, text, right)) / len(right) for text, right in zip(completions, answer, strict=True)]


L.seed_everything(0, verbose=False)
numbers = random.sample([f"{number:03d}" for number in range(1000)], 1000)
rows = [{"prompt": f"{n} backwards:", "solution": n[::-1], "answer": n[::-1]} for n in numbers]
mixed = [{**row, "solution": random.choice((row["answer"], n))} for row, n in zip(rows, numbers, strict=True)]
splits = {"gold": rows[:64], "validation": rows[64:96], "test": rows[96:224], "train": mixed[224:]}
truth = AnswerFormat(read=str.strip, compare=str.__eq__)  # for the figures alone
task = Task("backwards", **splits, reward=reward, check=truth.check)
tokenizer = train_tokenizer(["backwards:"], vocab_size=260)
policy = tiny_llama(tokenizer)  # or your checkpoint: AutoModelForCausalLM.from_pretrained, and its tokenizer
sft = SFTOptions(steps=150, batch_size=32, learning_rate=3e-3)
demonstrations = demonstration_loader(encode_demonstrations(tokenizer, task.train, 256, "train"), sft, seed=0)
L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(SFTModule(policy, sft), demonstrations)
ppo = PPOOptions(samples_per_prompt=4, learning_rate=3e-4, value_learning_rate=1e-3)
module = PPOModule(SeparateModels(policy), tokenizer, task.reward, task.check, ppo, Sampling(max_new_tokens=8))
data, callbacks = PromptDataModule(task), [InfluenceFilterCallback(), NumericGuard()]
trainer = L.Trainer(max_epochs=12, limit_val_batches=0, log_every_n_steps=1, callbacks=callbacks)
(before,), _, (after,) = trainer.test(module, data), trainer.fit(module, data), trainer.test(module, data)
print(f"EM {before['test/em']:.2f} after the warm start, {after['test/em']:.2f} after PPO")
