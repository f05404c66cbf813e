"""The doctor from end to end, as a user calls it: a healthy examined, planted defects, wrong arguments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, RwkvConfig, RwkvForCausalLM

from ippo.data import EmbeddedOptions, embedded_task
from ippo.doctor.__main__ import main
from ippo.doctor.examination import examine
from ippo.doctor.examined import Examined
from ippo.doctor.finding import Finding
from ippo.models import TinyOptions, response_logprobs, tiny_llama, train_tokenizer
from ippo.recipes.warm_start import warm_start
from ippo.sft import SFTOptions

TASK = EmbeddedOptions(train_size=256, gold_size=64, validation_size=4, test_size=4, max_steps=2, verifier_error=0.0)
SMALL = [
    "--preset=embedded_tiny",
    *(f"--embedded.{name}={getattr(TASK, name)}" for name in ("train_size", "gold_size", "max_steps")),
    "--embedded.validation_size=4",
    "--embedded.test_size=4",
    "--embedded.verifier_error=0",
    "--sampling.max_new_tokens=24",
    "--filter=uniform",  # 64 gold solutions are enough for the gradient of all of so small a policy, not of its block
    "--doctor.warm_start_steps=0",
    "--doctor.episodes=32",
    "--doctor.compared=6",
    "--trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has learnt the task's format, as a plain Hugging Face directory. Copied where it is changed."""
    folder = tmp_path_factory.mktemp("policies") / "healthy"
    rows = embedded_task(TASK).train
    tokenizer = train_tokenizer([row["prompt"] + row["solution"] for row in rows], 320)
    torch.manual_seed(0)
    policy = tiny_llama(tokenizer, TinyOptions(hidden_size=32, layers=1, heads=2, intermediate_size=48, context=96))
    options = SFTOptions(steps=150, batch_size=16, learning_rate=0.01)
    policy, _ = warm_start(policy, tokenizer, rows, options, seed=0, accelerator="cpu", progress=False)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def states(capsys: pytest.CaptureFixture[str], state: str) -> set[str]:
    """The checks in that state."""
    return set(re.findall(rf"^ ?([a-z].*?) +{state} ", capsys.readouterr().out, re.MULTILINE))


def test_a_healthy_patient(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, f"--policy={trained}"]) == 0
    out = capsys.readouterr().out
    assert "Warm start: none here; the run makes 1500 steps first" in out
    assert re.search(r"^Healthy.*\. Looked at 32 episodes in \d+ s\.$", out, re.MULTILINE)
    assert len(re.findall(r"  (?:ok|warning)  ", out)) == 17


def test_a_healthy_patient_in_the_precision_of_its_run(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Examined] = []

    def look(examined: Examined, *options: int) -> list[Finding]:
        seen.append(examined)
        return examine(examined, *options)

    monkeypatch.setattr("ippo.doctor.__main__.examine", look)
    assert main([*SMALL, f"--policy={trained}", "--trainer.precision=bf16-mixed"]) == 0
    assert "it broke down" not in capsys.readouterr().out
    (examined,) = seen
    episodes = examined.episodes
    with torch.no_grad():
        exact = response_logprobs(examined.module.model.policy, episodes, examined.module.sampling.temperature)
    width = exact.shape[1]
    assert (episodes.old_logprobs[:, :width] - exact).abs().max() > 1e-4


class TestPlantedDefects:
    """Each is found by its name, and the exit code is 1."""

    def test_two_gold_solutions(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*SMALL, f"--policy={trained}", "--embedded.gold_size=2"]) == 1
        assert states(capsys, "wrong") == {"gold set"}

    def test_gold_solutions_in_another_style(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*SMALL, f"--policy={trained}", "--embedded.gold_style=words"]) == 1
        assert "gold style" in states(capsys, "wrong")

    def test_an_end_that_is_never_written(
        self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        policy, tokenizer = LlamaForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
        tokenizer.add_special_tokens({"eos_token": "<stop>"})
        policy.resize_token_embeddings(len(tokenizer))
        policy.config.eos_token_id = policy.generation_config.eos_token_id = (
            None  # it writes an end that nobody declares
        )
        policy.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        assert main([*SMALL, f"--policy={tmp_path}"]) == 1
        out = capsys.readouterr().out
        assert re.search(r"^ ?end of sequence +wrong .*'<stop>'", out, re.MULTILINE)

    def test_a_model_that_generates_otherwise_than_it_reads(
        self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """RWKV reads padding as text, and the prompts of a batch are padded to one length."""
        tokenizer = AutoTokenizer.from_pretrained(trained)
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = RwkvConfig(vocab_size=len(tokenizer), max_position_embeddings=96, **sizes, **ends)
        policy = RwkvForCausalLM(config)
        for parameter in policy.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.3)
        policy.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        few = ["--doctor.episodes=8", "--embedded.gold_size=16"]  # it is a slow one
        assert main([*SMALL, *few, f"--policy={tmp_path}"]) == 1
        out = capsys.readouterr().out
        assert re.search(r"^ ?log-probabilities +wrong", out, re.MULTILINE)
        assert re.search(r"^ ?sampling +(wrong|warning)", out, re.MULTILINE)  # by how much differs by what was drawn

    def test_more_tokens_than_embeddings(
        self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """No run could start: this is told as a wrong argument."""
        policy, tokenizer = LlamaForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
        policy.resize_token_embeddings(100)
        policy.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        assert main([*SMALL, f"--policy={tmp_path}"]) == 2
        assert "it has 100 embeddings but its tokenizer" in capsys.readouterr().err

    def test_weights_that_are_no_numbers(
        self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        policy = LlamaForCausalLM.from_pretrained(trained)
        with torch.no_grad():
            policy.model.norm.weight[0] = torch.nan
        policy.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(trained).save_pretrained(tmp_path)
        assert main([*SMALL, f"--policy={tmp_path}"]) == 1
        out = capsys.readouterr().out
        assert re.search(r"^ ?finite numbers +wrong +0 of 32 episodes", out, re.MULTILINE)
        assert out.count("not checked: there is no usable episode") == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy=/no/where"], ["policy = '/no/where'", "no such directory"]),
        (["--task=nope"], ["task = 'nope'", "embedded"]),
        (["--doctor.episodes=4"], ["doctor.episodes = 4", "at least doctor.compared, which is 6"]),
        (["--doctor.compared=1"], ["doctor.compared = 1", "at least 2"]),
        (["--doctor.warm_start_steps=-1"], ["doctor.warm_start_steps = -1", "0 (none) or more"]),
        (["--doctor.nope=1"], ["doctor.nope"]),
        (["--sampling.top_p=0.9"], ["sampling.top_p = 0.9", "1.0"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_a_wrong_argument_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert main([*SMALL, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words)
