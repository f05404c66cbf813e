"""A chat model of your own: trained for two iterations, written out, and loaded as anyone would load it.

Two stand-ins are made here, tiny and untrained, as directories like those that `hf download` leaves: a Qwen2, and a
multimodal Gemma 3 of which the text path is trained. Each has a chat template that ends a turn with a token of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Gemma3Config, GenerationConfig, Qwen2Config, pipeline

from ippo.data import EmbeddedOptions, embedded_task
from ippo.models import train_tokenizer
from ippo.recipes.math import main

TURNS = {
    "qwen2": ("<|im_start|>", "<|im_end|>"),
    "gemma3": ("<start_of_turn>", "<end_of_turn>"),
}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 256}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {
    "embedded.train_size": 64,
    "embedded.gold_size": 8,
    "embedded.validation_size": 4,
    "embedded.test_size": 4,
    "embedded.max_steps": 2,
    "sft.steps": 20,
    "sft.batch_size": 8,
    "sft.learning_rate": 0.01,
    "data.prompts_per_iteration": 4,
    "ppo.samples_per_prompt": 2,
    "sampling.max_new_tokens": 24,
    "evaluation.samples": 1,
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
    "filter": "none",  # no filter: this is about what goes in and comes out
}
OPTIONS = [f"--{name}={value}" for name, value in SMALL.items()]


def make(kind: str, folder: Path) -> None:
    """A model directory with a tokenizer and its chat template."""
    start, end = TURNS[kind]
    rows = embedded_task(EmbeddedOptions(train_size=64, max_steps=2)).train
    tokenizer = train_tokenizer([row["prompt"] + row["solution"] for row in rows], vocab_size=320)
    tokenizer.add_special_tokens({"additional_special_tokens": [start, end]})
    said = f"{start}{{{{ one.role }}}}\n{{{{ one.content }}}}{end}\n"
    asked = f"{{% if add_generation_prompt %}}{start}assistant\n{{% endif %}}"
    tokenizer.chat_template = f"{{% for one in messages %}}{said}{{% endfor %}}{asked}"
    rows_of_embeddings = len(tokenizer) + 14  # more than tokens, as many models have
    text = {"vocab_size": rows_of_embeddings, **TEXT, **HEADS}
    config = Qwen2Config(**text)
    if kind == "gemma3":
        vision = {**VISION, "image_size": 28, "patch_size": 14}
        config = Gemma3Config(text_config={**text, "head_dim": 8}, vision_config=vision, mm_tokens_per_image=1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_and_load(kind: str, work: Path) -> None:
    make(kind, work / kind)
    run, out = work / f"run of {kind}", work / f"trained {kind}"
    assert main([f"--policy={work / kind}", "--chat", f"--trainer.default_root_dir={run}", *OPTIONS]) == 0
    assert main(["export", f"--checkpoint={run}", f"--output={out}"]) == 0
    policy = pipeline("text-generation", str(out))
    question = [{"role": "user", "content": "Ava has 3 pens, buys 4. How many now?"}]
    answer = policy(question, max_new_tokens=24, do_sample=False, return_full_text=False)[0]["generated_text"]
    first = AutoModelForCausalLM.from_pretrained(work / kind)
    first.load_state_dict(policy.model.state_dict())  # it fits the model that it was made from, to the last embedding
    print(
        f"{kind}: {type(policy.model).__name__} ends at {policy.model.generation_config.eos_token_id}, says {answer!r}"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        for kind in TURNS:
            train_and_load(kind, Path(work))
