"""The judges of docs/tasks.md: the page's own code as a task of the working directory."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from ippo import PromptDataModule
from ippo.recipes.tasks import load_task
from ippo.rewards import Rewards

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"


@pytest.fixture(autouse=True)
def my_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (block,) = re.findall(r"### A judge.*?^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "my_task.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("my_task", None)


class Server(BaseHTTPRequestHandler):
    """Says 1 of an answer that names 36, 0 of another one, and something else of an empty one."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        (answer,) = re.findall(r"\nAnswer: (.*)\nIs the answer", asked, re.DOTALL)
        said = str(int("36" in answer)) if answer else "hard to say"
        content = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{running.server_port}")
        Thread(target=running.serve_forever, daemon=True).start()
        yield
        running.shutdown()


def test_a_server_judges_and_where_it_says_nothing_the_task_rewards_alone(server: None) -> None:
    task = load_task("my_task:by_server")
    answers = ["#### 36", "#### 4", ""]
    columns = {"answer": ["36", "36", "36"], "steps": [task.train[0]["steps"]] * 3}
    earned = Rewards(task.reward, task.reward_weights)(["6 times 6?"] * 3, answers, **columns)
    own, judged = earned.each.values()
    assert judged == [1.0, 0.0, None]
    assert earned.total == [0.5 * own[0] + 0.5, 0.5 * own[1], 0.5 * own[2]]


def test_a_model_judges_in_a_training_and_learns_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerFast,
    make_module: MakeModule,
    make_trainer: MakeTrainer,
    data: PromptDataModule,
) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    monkeypatch.setenv("JUDGE_MODEL", str(tmp_path / "judge"))
    judge = load_task("my_task:by_model").reward
    before = [parameter.clone() for parameter in judge.parameters()]
    module, recorder = make_module(reward=judge), Recorder()
    make_trainer(recorder, max_epochs=1).fit(module, data)
    (episodes,) = recorder.episodes
    with torch.no_grad():
        expected = judge(episodes.prompts, episodes.responses).squeeze(-1)
    assert torch.allclose(torch.tensor(episodes.extras["reward_raw"]), expected, atol=1e-5)
    assert len(set(episodes.extras["reward_raw"])) > 1
    assert all(map(torch.equal, before, judge.parameters()))
    assert not any("judge" in name for name in module.state_dict())
