"""Nothing that a model, a data set or a checkpoint holds is ever run."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from tensorboard.plugin_util import markdown_to_safe_html
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import ippo
from ippo.callbacks import EpisodeLogger
from ippo.data.prompts import PromptDataModule
from ippo.errors import UsageError
from ippo.models.loading import load_policy
from ippo.rollout.episodes import write_parquet
from tests.parts import MakeModule, MakeTrainer

ROOT = Path(ippo.__file__).parent
RUNS_CODE = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE = {("weights_only", False), ("trust_remote_code", True), ("allow_pickle", True), ("shell", True)}


def dangers(source: str) -> list[str]:
    """Whatever in a file could run what it reads."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if alias.name != "UnpicklingError"]  # to catch is not to load
            found += names if (node.module or "").split(".")[0] in PICKLES else []
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {(one.arg, getattr(one.value, "value", None)) for one in node.keywords}
            loads = name == "torch.load" and ("weights_only", True) not in given
            found += [name] if name in RUNS_CODE or loads or given & UNSAFE else []
        elif isinstance(node, ast.arguments):
            both = [*node.posonlyargs, *node.args][::-1]
            defaults = [
                *zip(both, node.defaults[::-1], strict=False),
                *zip(node.kwonlyargs, node.kw_defaults, strict=True),
            ]
            found += [name.arg for name, value in defaults if (name.arg, getattr(value, "value", None)) in UNSAFE]
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_it_reads(path: Path) -> None:
    assert dangers(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(text)",
        "import pickle",
        "from dill import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "trainer.fit(module, weights_only=False)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "def load(path, trust_remote_code=True): ...",
        "def load(path, *, weights_only=False): ...",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "yaml.load(text)",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert dangers(source)


@pytest.mark.parametrize("source", ["model.eval()", "re.compile(x)", "torch.load(path, weights_only=True)"])
def test_the_search_knows_what_is_harmless(source: str) -> None:
    assert not dangers(source)


class Bomb:
    """Unpickling it makes a file: what running code would do is seen."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_checkpoint_cannot_run_code(
    tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    mark, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    torch.save({"epoch": 0, "state_dict": {}, "bomb": Bomb(mark)}, path)
    with pytest.raises(pickle.UnpicklingError):
        make_trainer().fit(make_module(), data, ckpt_path=path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # it would have


def test_a_policy_directory_cannot_run_code(
    tmp_path: Path, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder, mark = tmp_path / "policy", tmp_path / "ran"
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="wants to run code: get them as safetensors"):
        load_policy(str(folder), [])
    assert not mark.exists()


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "](javascript:alert(1))",
    "```\n</code></pre><script>alert(1)</script>",
    "\x00\x1b[2J\u202e\u2028<svg onload=alert(1)>",
    "../../../etc/passwd",
]


def test_tensorboard_gets_escaped_text() -> None:
    n = len(HOSTILE)
    numbers = {"reward": [0.0] * n, "weight": [1.0] * n, "finished": [True] * n}
    table = {"prompt": HOSTILE, "response": HOSTILE[::-1], "chain": HOSTILE, "reason": HOSTILE, **numbers}
    page = EpisodeLogger(texts=n)._page(table)
    assert "<" not in page
    shown = markdown_to_safe_html(page)
    assert not [tag for tag in ("<script", "<img", "<svg", "<a ") if tag in shown.lower()]


def test_episode_files_hold_hostile_text_as_it_is(tmp_path: Path) -> None:
    write_parquet({"response": HOSTILE, "reward": [0.0] * len(HOSTILE)}, tmp_path / "run" / "episodes.parquet")
    assert parquet.read_table(tmp_path / "run" / "episodes.parquet")["response"].to_pylist() == HOSTILE
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["episodes.parquet"]
